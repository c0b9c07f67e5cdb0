"""A matrix value as a trainable module, weights kept orthogonal, and dense layers replaced by structured ones."""

from structmat.nn.modules import Linear, Trainable, split
from structmat.nn.orthogonal import orthogonal, remove_orthogonal
from structmat.nn.replace import Replaced, Replacement

__all__ = ["Linear", "Replaced", "Replacement", "Trainable", "orthogonal", "remove_orthogonal", "split"]
