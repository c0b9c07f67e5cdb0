"""Structured matrices for PyTorch: exact, differentiable, fast. ``import structmat as sm``."""

from structmat import algebra as _algebra  # enters the rules between types
from structmat import backend, checks, linalg, nn
from structmat._version import __version__
from structmat.claims import Claim, Claims
from structmat.construct import circulant, hankel, stack, toeplitz
from structmat.errors import (
    AmbiguousRuleError,
    BackendError,
    CheckpointError,
    DeviceError,
    DtypeError,
    NotStructuredError,
    ShapeError,
    SolveError,
    StructureError,
)
from structmat.lazy import Inverse, Product, Scaled, Sum
from structmat.matrix import Matrix, allclose
from structmat.types.circulant import Circulant
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.givens import GivensProduct
from structmat.types.hankel import Hankel
from structmat.types.hermitian_toeplitz import HermitianToeplitz
from structmat.types.householder import HouseholderProduct
from structmat.types.low_rank import LowRank
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz

del _algebra

__all__ = [
    "AmbiguousRuleError",
    "BackendError",
    "CheckpointError",
    "Circulant",
    "Claim",
    "Claims",
    "Dense",
    "DeviceError",
    "Diagonal",
    "DtypeError",
    "GivensProduct",
    "Hankel",
    "HermitianToeplitz",
    "HouseholderProduct",
    "Identity",
    "Inverse",
    "LowRank",
    "Matrix",
    "NotStructuredError",
    "Product",
    "Scaled",
    "ShapeError",
    "SolveError",
    "StructureError",
    "Sum",
    "SymmetricToeplitz",
    "Toeplitz",
    "__version__",
    "allclose",
    "backend",
    "checks",
    "circulant",
    "hankel",
    "linalg",
    "nn",
    "stack",
    "toeplitz",
]
