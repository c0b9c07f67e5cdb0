"""The conformance suite: what every matrix type must do, also one written outside the library.

``check_matrix_type(MyType, cases)`` takes ``Example`` objects or pairs ``(matrix, dense)`` and raises AssertionError
naming the first fault. Each check stands alone and says what it asks.
"""

from collections.abc import Callable, Iterable, Iterator

import torch

from structmat.matrix import Matrix
from structmat.testing.conformance_case import Case
from structmat.testing.conformance_state import check_fields, check_precision, check_pytree, check_value
from structmat.testing.conformance_transforms import (
    check_compiled,
    check_compiled_gradient,
    check_gradients,
    check_transforms,
)
from structmat.testing.conformance_values import (
    check_dense,
    check_linear,
    check_matmul,
    check_operands,
    check_shape,
    check_state,
    check_transpose,
)
from structmat.testing.conformance_verbs import (
    check_claims_true,
    check_indexing,
    check_solves,
    check_verb_gradients,
    check_verbs,
)
from structmat.testing.examples import Example
from structmat.testing.reference import magnitude_of

__all__ = [
    "CHECKS",
    "Case",
    "check_compiled",
    "check_compiled_gradient",
    "check_gradients",
    "check_matrix_type",
    "check_transforms",
]

CHECKS: tuple[Callable[[Case], None], ...] = (
    check_shape,
    check_dense,
    check_linear,
    check_operands,
    check_state,
    check_matmul,
    check_transpose,
    check_value,
    check_fields,
    check_pytree,
    check_precision,
    check_claims_true,
    check_indexing,
    check_verbs,
    check_solves,
    check_gradients,
    check_verb_gradients,
    check_transforms,
    check_compiled_gradient,
)


def check_matrix_type(cls: type[Matrix], examples: Iterable[Example | tuple[Matrix, torch.Tensor]]) -> None:
    """Run every check on every example of ``cls``; AssertionError on the first fault, one line that names the type, the
    example, the verb, the error and what was allowed.

    An ``Example`` stands for all its dtypes and batches; a pair is a matrix and its dense entries ``(*batch, m, n)``,
    best in double precision. Give a square example, a wide or a tall one if the type has them, one of order 1, and one
    with a batch: no suite can see what it is not shown.

    Asked are: shape, entries and products (rows of every form: strided, expanded, complex, none), transposes,
    immutability, copies, conversions, lower precisions, claims and their survival, indexing, every verb (diagonal,
    norm, inverse, solve, determinant, ...), first and second derivatives, ``torch.func`` and ``torch.compile``. Half
    precision may be refused; a system of condition number above 10^4 is not solved.

    Example:
        >>> entries = torch.randn(3, dtype=torch.float64)
        >>> check_matrix_type(sm.Diagonal, [(sm.Diagonal(entries), torch.diag(entries))])
    """
    name = f"check_matrix_type({cls.__name__})"
    cases = list(_cases(examples))
    assert cases, f"{name}: no examples, so nothing was checked"
    for label, _, case in cases:
        assert isinstance(case.matrix, cls), f"{name}, {label}: {case.matrix!r} is not a {cls.__name__}"
    for check in CHECKS:  # the quick ones first, on all examples
        for label, compiled, case in cases:
            if compiled or check is not check_compiled_gradient:
                _run(check, case, f"{name}, {label}")


def _run(check: Callable[[Case], None], case: Case, place: str) -> None:
    """One check; whatever it raises becomes one line."""
    try:
        check(case)
    except AssertionError as error:
        raise AssertionError(f"{place}: {_line(error)}") from error
    except Exception as error:
        what = f"{check.__name__} ended in {type(error).__name__}: {_line(error)}"
        raise AssertionError(f"{place}: {case.matrix!r}: {what}") from error


def _line(error: Exception) -> str:
    """The message without line breaks and without an end that nobody reads."""
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else text[:400] + " ..."


def _cases(examples: Iterable[Example | tuple[Matrix, torch.Tensor]]) -> Iterator[tuple[str, bool, Case]]:
    """The name of each case, whether it is compiled (the first dtype of an example is), and the case."""
    for k, example in enumerate(examples):
        if not isinstance(example, Example):
            if not (isinstance(example, tuple) and len(example) == 2):
                kind = type(example).__name__
                raise TypeError(
                    f"check_matrix_type: example {k} is a {kind}; an Example or a pair (matrix, its dense entries) "
                    "is needed"
                )
            matrix, dense = example
            size = float(torch.linalg.vector_norm(dense.detach(), dim=(-2, -1)).max())
            yield f"example {k}", True, Case(matrix, dense.detach(), size)
            continue
        for dtype in example.dtypes:
            for batch in example.batches:
                matrix = example.build(dtype, batch)
                shown = f"example {example.name!r} in {str(dtype).removeprefix('torch.')}, batch {batch}"
                case = Case(matrix, example.dense(matrix), magnitude_of(matrix), example.smooth)
                yield shown, dtype == example.dtypes[0], case
