"""Rules and conversions between the orthogonal types."""

import torch

from structmat import backend
from structmat.claims import Claim
from structmat.dispatch import rule
from structmat.errors import StructureError
from structmat.functional import givens as fg
from structmat.matrix import Matrix
from structmat.types.butterfly import Butterfly
from structmat.types.givens import GivensProduct
from structmat.types.householder import HouseholderProduct
from structmat.types.orthogonal_butterfly import OrthogonalButterfly

__all__: list[str] = []


@rule("householder", GivensProduct)
def _reflections(a: GivensProduct) -> Matrix:
    """HouseholderProduct: two reflections a rotation."""
    return HouseholderProduct(fg.reflectors(a.angles, a.planes, a.n))


@rule("butterfly", GivensProduct)
def _stages(a: GivensProduct) -> Matrix:
    """Butterfly: 2 x 2 rotations on one binary digit a factor."""
    found = fg.stages(a.planes)
    levels = 0 if not found else 1 + max(stage.bit for stage in found)
    if found is None or a.n % 2**levels:
        raise StructureError(
            f"{a!r}.to_butterfly: every plane must be a pair (a, a XOR 2^l) with 2^(l + 1) dividing n = {a.n}; "
            "to_householder() takes any planes"
        )
    if not found:  # the identity is one factor of blocks 1 x 1
        ones = a.angles.new_ones(*a.batch_shape, 1, 1, 1)
        return Butterfly((ones,), (a.n, 1), ((1,),)).assume(Claim.ORTHOGONAL)
    blocks = tuple(fg.rotation_blocks(a.angles, stage, a.n) for stage in found)
    digits = (a.n >> levels, *(2,) * levels)
    return Butterfly(blocks, digits, tuple((levels - stage.bit,) for stage in found)).assume(Claim.ORTHOGONAL)


@rule("givens", OrthogonalButterfly)
def _angles(a: OrthogonalButterfly) -> Matrix:
    """GivensProduct: with ``K = [[0, -k], [k, 0]]`` a block is the rotation by ``-2 atan k``."""
    if a.block != 2 or a.skew.is_complex():
        raise StructureError(
            f"{a!r}.to_givens: real blocks of size 2 are plane rotations, these are {a.skew.dtype} of size {a.block}; "
            "GivensProduct.from_dense(A.to_dense()) takes any real one"
        )
    d = int(a.shape[-1])
    wide = a.skew[..., 0].to(backend.compute_dtype(a.skew.dtype))
    order = range(a.layers) if a.reverse else range(a.layers - 1, -1, -1)
    planes = tuple((k, k ^ 2**i) for i in order for k in range(d) if not k >> i & 1)
    turns = -2 * torch.atan(wide if a.reverse else wide.flip(-2))
    return GivensProduct(turns.flatten(-2).to(a.skew.dtype), planes, d)


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
