"""Rules and conversions between the orthogonal types."""

from structmat.dispatch import rule
from structmat.functional import givens as fg
from structmat.matrix import Matrix
from structmat.types.givens import GivensProduct
from structmat.types.householder import HouseholderProduct

__all__: list[str] = []


@rule("householder", GivensProduct)
def _reflections(a: GivensProduct) -> Matrix:
    """HouseholderProduct: two reflections a rotation."""
    return HouseholderProduct(fg.reflectors(a.angles, a.planes, a.n))


@rule("matmul", GivensProduct, HouseholderProduct)
def _rotations_times_reflections(a: GivensProduct, b: HouseholderProduct) -> Matrix:
    """HouseholderProduct: the rotations become reflections."""
    left: Matrix = _reflections(a)
    product: Matrix = left @ b
    return product


@rule("matmul", HouseholderProduct, GivensProduct)
def _reflections_times_rotations(a: HouseholderProduct, b: GivensProduct) -> Matrix:
    """HouseholderProduct: the rotations become reflections."""
    right: Matrix = _reflections(b)
    product: Matrix = a @ right
    return product
