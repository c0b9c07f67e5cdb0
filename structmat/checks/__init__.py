"""Measuring what claims state: orthogonality, rank, displacement rank, membership in a structure.

Each check takes a Matrix, a tensor, a numpy array or a scipy LinearOperator and returns a ``Report``: one number, what
it is judged by, how it was found, and the probability that a pass is wrong. Entries are looked at in float64
(complex128) up to 2^20 of them; a larger Matrix, or one with ``probes=k`` asked for, is multiplied with k Gaussian
vectors, of seed 0 unless a ``generator`` is given. NaN raises ValueError: nothing can be said of it.
"""

from structmat.checks.claims import check_claims
from structmat.checks.membership import distance
from structmat.checks.orthogonality import is_orthogonal, operations, orthogonality_error
from structmat.checks.rank import displacement_rank, is_low_rank, numerical_rank
from structmat.checks.report import Report
from structmat.checks.structures import (
    is_banded,
    is_block_diagonal,
    is_butterfly,
    is_circulant,
    is_diagonal,
    is_hankel,
    is_hermitian,
    is_kronecker,
    is_permutation,
    is_symmetric,
    is_toeplitz,
    is_triangular,
)

__all__ = [
    "Report",
    "check_claims",
    "displacement_rank",
    "distance",
    "is_banded",
    "is_block_diagonal",
    "is_butterfly",
    "is_circulant",
    "is_diagonal",
    "is_hankel",
    "is_hermitian",
    "is_kronecker",
    "is_low_rank",
    "is_orthogonal",
    "is_permutation",
    "is_symmetric",
    "is_toeplitz",
    "is_triangular",
    "numerical_rank",
    "operations",
    "orthogonality_error",
]
