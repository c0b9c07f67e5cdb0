"""Structured matrices for PyTorch: exact, differentiable, fast. ``import structmat as sm``."""

from structmat import algebra as _algebra  # enters the rules between types
from structmat import backend, checks, linalg, nn
from structmat._version import __version__
from structmat.claims import Claim, Claims
from structmat.construct import (
    block,
    block_diag,
    cat,
    circulant,
    dft,
    hadamard,
    hankel,
    hstack,
    kron,
    kron_sum,
    stack,
    toeplitz,
    vstack,
)
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
from structmat.identification import identify
from structmat.lazy import Implicit, Inverse, Product, Scaled, Sum
from structmat.matrix import Matrix, allclose
from structmat.types.banded import Banded
from structmat.types.block import Block
from structmat.types.block_circulant import BlockCirculant
from structmat.types.block_diagonal import BlockDiagonal
from structmat.types.block_toeplitz import BlockToeplitz
from structmat.types.butterfly import Butterfly
from structmat.types.cauchy import CauchyLike
from structmat.types.circulant import Circulant
from structmat.types.cosine_diagonal import CosineDiagonal
from structmat.types.dense import Dense
from structmat.types.diagonal import Diagonal, Identity
from structmat.types.displacement import LowDisplacementRank
from structmat.types.givens import GivensProduct
from structmat.types.hankel import Hankel
from structmat.types.hermitian_toeplitz import HermitianToeplitz
from structmat.types.householder import HouseholderProduct
from structmat.types.kronecker import Kronecker
from structmat.types.kronecker_sum import KroneckerSum
from structmat.types.low_rank import LowRank
from structmat.types.orthogonal_butterfly import OrthogonalButterfly
from structmat.types.orthogonal_circulant import OrthogonalCirculant
from structmat.types.permutation import Permutation
from structmat.types.reflected_convolution import ReflectedConvolution
from structmat.types.submatrix import Submatrix
from structmat.types.toeplitz import SymmetricToeplitz, Toeplitz
from structmat.types.triangular import Triangular
from structmat.types.tucker import Tucker
from structmat.types.tucker_matrix_family import TuckerMatrix
from structmat.types.vandermonde import Vandermonde
from structmat.types.zero import Zero

del _algebra

__all__ = [
    "AmbiguousRuleError",
    "BackendError",
    "Banded",
    "Block",
    "BlockCirculant",
    "BlockDiagonal",
    "BlockToeplitz",
    "Butterfly",
    "CauchyLike",
    "CheckpointError",
    "Circulant",
    "Claim",
    "Claims",
    "CosineDiagonal",
    "Dense",
    "DeviceError",
    "Diagonal",
    "DtypeError",
    "GivensProduct",
    "Hankel",
    "HermitianToeplitz",
    "HouseholderProduct",
    "Identity",
    "Implicit",
    "Inverse",
    "Kronecker",
    "KroneckerSum",
    "LowDisplacementRank",
    "LowRank",
    "Matrix",
    "NotStructuredError",
    "OrthogonalButterfly",
    "OrthogonalCirculant",
    "Permutation",
    "Product",
    "ReflectedConvolution",
    "Scaled",
    "ShapeError",
    "SolveError",
    "StructureError",
    "Submatrix",
    "Sum",
    "SymmetricToeplitz",
    "Toeplitz",
    "Triangular",
    "Tucker",
    "TuckerMatrix",
    "Vandermonde",
    "Zero",
    "__version__",
    "allclose",
    "backend",
    "block",
    "block_diag",
    "cat",
    "checks",
    "circulant",
    "dft",
    "hadamard",
    "hankel",
    "hstack",
    "identify",
    "kron",
    "kron_sum",
    "linalg",
    "nn",
    "stack",
    "toeplitz",
    "vstack",
]
