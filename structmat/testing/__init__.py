"""Tools to test matrix types: the examples of every type, strategies, assertions, and a conformance suite for types
of your own.

Imported by name (``from structmat import testing``); needs ``pip install 'structmat[testing]'``.
"""

from structmat.testing import strategies
from structmat.testing.assertions import (
    assert_claims,
    assert_gradients,
    assert_matches_dense,
    assert_orthogonal,
    assert_rank_at_most,
)
from structmat.testing.conformance import check_matrix_type
from structmat.testing.examples import EXAMPLES, Example, examples_of

__all__ = [
    "EXAMPLES",
    "Example",
    "assert_claims",
    "assert_gradients",
    "assert_matches_dense",
    "assert_orthogonal",
    "assert_rank_at_most",
    "check_matrix_type",
    "examples_of",
    "strategies",
]
