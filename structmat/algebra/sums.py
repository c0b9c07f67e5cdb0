"""Rules of lazy sums: a new term joins the one it has a closed sum with, so that ``(Q + D) + E`` holds one diagonal."""

from structmat.dispatch import lookup, rule
from structmat.lazy import Sum
from structmat.matrix import Matrix, add
from structmat.types.dense import Dense
from structmat.types.zero import Zero

__all__: list[str] = []


def _terms(a: Matrix) -> tuple[Matrix, ...]:
    return a.terms if isinstance(a, Sum) and not a._assumed else (a,)


def _merged(a: Matrix, b: Matrix) -> Matrix:
    terms = list(_terms(a))
    for term in _terms(b):
        for k, mine in enumerate(terms):
            both = _closed(mine, term)
            if both is not None:
                terms[k] = both
                break
        else:
            terms.append(term)
    return terms[0] if len(terms) == 1 else Sum(tuple(terms))


def _closed(a: Matrix, b: Matrix) -> Matrix | None:
    """A + B where a rule closes it; a sum inside a sum, vouched for as a whole, stays whole."""
    if isinstance(a, Sum) or isinstance(b, Sum) or lookup("add", type(a), type(b)) is lookup("add", Matrix, Matrix):
        return None
    both = add(a, b)
    return None if isinstance(both, Sum) else both


@rule("add", Sum, Matrix)
def _sum_first(a: Sum, b: Matrix) -> Matrix:
    """Sum: the other joins the first term it has a closed sum with."""
    return _merged(a, b)


@rule("add", Matrix, Sum)
def _sum_last(a: Matrix, b: Sum) -> Matrix:
    """Sum: each term joins the first it has a closed sum with."""
    return _merged(a, b)


@rule("add", Sum, Sum)
def _sums(a: Sum, b: Sum) -> Matrix:
    """Sum: each term joins the first it has a closed sum with."""
    return _merged(a, b)


def _whole(kind: type[Matrix]) -> None:
    """A type that has rules with every matrix keeps them beside a sum."""

    @rule("add", Sum, kind)
    def first(a: Matrix, b: Matrix) -> Matrix:
        """As with every matrix."""
        result: Matrix = lookup("add", Matrix, kind)(a, b)  # type: ignore[misc]
        return result

    @rule("add", kind, Sum)
    def last(a: Matrix, b: Matrix) -> Matrix:
        """As with every matrix."""
        result: Matrix = lookup("add", kind, Matrix)(a, b)  # type: ignore[misc]
        return result


for _kind in (Dense, Zero):
    _whole(_kind)
