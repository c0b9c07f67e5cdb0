"""The kinds of layers that adapters wrap: how each stores its weight, and how inputs pass through it."""

from structmat.adapters.kinds.base import Kind, gathered, sharded
from structmat.adapters.kinds.checked import check_layer, kind_named, kind_of
from structmat.adapters.kinds.parameter import ParameterOf

__all__ = ["Kind", "ParameterOf", "check_layer", "gathered", "kind_named", "kind_of", "sharded"]
