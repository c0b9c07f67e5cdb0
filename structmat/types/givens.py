"""Products of plane rotations: orthogonal by construction, each number an angle."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat.claims import Claim, Claims
from structmat.errors import DtypeError, NotStructuredError, ShapeError
from structmat.functional import givens as fg
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo

__all__ = ["GivensProduct"]


class GivensProduct(Matrix):
    """``A = G_1 G_2 ... G_k``, G_l the rotation by ``angles[l]`` in the plane ``planes[l] = (i, j)``:
    ``[i, i] = [j, j] = cos t``, ``[i, j] = -sin t``, ``[j, i] = sin t``.

    Stores:   angles (*batch, k) in radians, real; planes, k pairs of different indices, and n (both static).
    Shape:    (*batch, n, n).      Claims: orthogonal. The determinant is 1.
    Cost:     linear 3 n flops a row and layer, a layer being rotations in disjoint planes (found from the planes, at
              most k, at least 2 k / n); k numbers of memory.
    Closed:   X @ X, inv, transpose, solve (a product); to_householder() -> HouseholderProduct of 2 k reflections;
              to_butterfly() -> Butterfly where the indices of every plane differ in one binary digit.
    Raises:   ShapeError for planes that do not match the angles or n; DtypeError for complex angles.
    Example:
        >>> sm.GivensProduct(torch.tensor([torch.pi / 2]), ((0, 1),), 2) @ torch.tensor([1.0, 0.0])
        tensor([-4.3711e-08,  1.0000e+00])
    References: G. H. Golub and C. F. Van Loan, Matrix Computations, 4th ed., 2013, section 5.1.8. Orthogonality error
    ``||A^T A - I||_F / sqrt(n) <= 8 eps (1 + sqrt(layers))``.
    """

    core: ClassVar[Mapping[str, int]] = {"angles": 1}
    angles: torch.Tensor
    planes: fg.Planes
    n: int

    def _validate(self) -> None:
        if self.angles.is_complex():
            raise DtypeError("GivensProduct: angles are real, got a complex tensor")
        if len(self.planes) != self.angles.shape[-1]:
            raise ShapeError(
                f"GivensProduct: {len(self.planes)} planes for {self.angles.shape[-1]} angles "
                f"(shape {tuple(self.angles.shape)}); there is one angle a plane"
            )
        for plane in self.planes:
            whole = len(plane) == 2 and all(isinstance(index, int) for index in plane)
            if not whole or plane[0] == plane[1] or not (min(plane) >= 0 and max(plane) < self.n):
                raise ShapeError(
                    f"GivensProduct: the plane {plane!r} needs two different indices, ints from 0 to {self.n - 1}"
                )

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.angles.shape[:-1], self.n, self.n))

    @property
    def layers(self) -> int:
        """How many passes over a vector a product takes."""
        return len(fg.layers(self.planes))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return fg.rotate_rows(x, self.angles, self.planes)

    def transpose(self) -> Matrix:
        return GivensProduct(-self.angles.flip(-1), self.planes[::-1], self.n)

    def inv(self) -> Matrix:
        """``A^T``: the rotations in reverse order, by opposite angles."""
        return self.transpose()

    def pinv(self) -> Matrix:
        return self.transpose()

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "closed form")
        return self.transpose().linear(y), SolveInfo("closed form", 0, None, ("the inverse is the reversed product",))

    def _factor(self, method: str) -> Factorisation:
        return super()._factor(method) if method == "dense" else Factorisation(self)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """1 and 0."""
        return self.angles.new_ones(self.batch_shape), self.angles.new_zeros(self.batch_shape)

    def svdvals(self) -> torch.Tensor:
        return self.angles.new_ones(*self.batch_shape, self.n)

    def norm(self) -> torch.Tensor:
        return self.angles.new_full(self.batch_shape, float(self.n) ** 0.5)

    def _norm_bound(self) -> torch.Tensor:
        return self.angles.new_ones(self.batch_shape)

    def _properties(self) -> Claims:
        return Claims(frozenset({Claim.ORTHOGONAL}))

    def _statics(self) -> list[str]:
        return [f"rotations={len(self.planes)}", f"layers={self.layers}"]

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        passes = self.layers
        moved = float(2 * passes * self.n * columns * self.angles.element_size())
        return backend.Plan("layers", f"{len(self.planes)} rotations in {passes} passes", 3.0 * self.n * passes, moved)

    def to_householder(self) -> Matrix:
        """The same matrix as 2 k reflections: ``G(i, j, t) = H(cos(t/2) e_i + sin(t/2) e_j) H(e_i)``, exactly."""
        product: Matrix = dispatch.call("householder", self)
        return product

    def to_butterfly(self) -> Matrix:
        """The same matrix as a Butterfly of 2 x 2 rotations, one factor a layer and binary digit, exactly.

        Raises StructureError unless every plane is a pair ``(a, a XOR 2^l)`` and 2^(l+1) divides n.
        """
        product: Matrix = dispatch.call("butterfly", self)
        return product

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None) -> "GivensProduct":
        """At most ``n (n - 1) / 2`` rotations whose product is the given real rotation; zeros need none.

        Raises NotStructuredError, with the distance, if the matrix is not orthogonal within ``tol`` (default
        8 eps (1 + sqrt(2 n)) for ``||Q^T Q - I||_F / sqrt(n)``), or if its determinant is -1, which no product of
        rotations has. O(n^3).
        """
        if dense.ndim != 2 or dense.shape[0] != dense.shape[1]:
            raise ShapeError(f"GivensProduct.from_dense: one square matrix is needed, got shape {tuple(dense.shape)}")
        if dense.is_complex() or not dense.is_floating_point():
            raise DtypeError(f"GivensProduct.from_dense: the matrix must be real floating point, got {dense.dtype}")
        n = dense.shape[0]
        wide = dense.detach().double()
        gap = float(torch.linalg.matrix_norm(wide.mT @ wide - torch.eye(n, dtype=wide.dtype, device=wide.device)))
        measured, eps = gap / max(1, n) ** 0.5, torch.finfo(dense.dtype).eps
        allowed = 8 * eps * (1 + math.sqrt(2 * n)) if tol is None else tol
        if not measured <= allowed:
            raise NotStructuredError(
                f"GivensProduct.from_dense: the matrix is not orthogonal, ||Q^T Q - I||_F / sqrt(n) = {measured:.2e} "
                f"exceeds {allowed:.1e}; torch.linalg.qr or the polar factor give orthogonal matrices near it",
                measured,
            )
        if n and float(torch.linalg.slogdet(wide)[0]) < 0:
            raise NotStructuredError(
                "GivensProduct.from_dense: the determinant is -1, and rotations have 1; HouseholderProduct.from_dense "
                "takes it, or change the sign of one column",
                2.0,
            )
        angles, planes = fg.angles_of(dense)
        return cls(angles.to(dense.dtype).to(dense.device), planes, n)

    @classmethod
    def random(
        cls, n: int, planes: fg.Planes | None = None, *, generator: Any = None, **options: Any
    ) -> "GivensProduct":
        """Angles uniform in (-pi, pi); all planes ``i < j`` by default, ordered into n - 1 or n layers."""
        chosen = round_robin(n) if planes is None else planes
        return cls((2 * torch.rand(len(chosen), generator=generator, **options) - 1) * math.pi, chosen, n)

    @classmethod
    def identity(cls, n: int, planes: fg.Planes | None = None, **options: Any) -> "GivensProduct":
        """All angles zero: the identity, from which every angle trains."""
        chosen = round_robin(n) if planes is None else planes
        return cls(torch.zeros(len(chosen), **options), chosen, n)


def round_robin(n: int) -> fg.Planes:
    """All planes ``i < j`` of n indices as the rounds of a tournament: every layer is full, so there are n - 1 of them
    (n for odd n).

    Source: the circle method of tournament scheduling, as used for Jacobi sweeps by R. P. Brent and F. T. Luk, 1985.
    """
    size = n + n % 2
    others, planes = list(range(1, size)), []
    for _ in range(size - 1):
        ring = [0, *others]
        for a, b in zip(ring[: size // 2], ring[: size // 2 - 1 : -1], strict=True):
            if max(a, b) < n:
                planes.append((min(a, b), max(a, b)))
        others = [others[-1], *others[:-1]]
    return tuple(planes)


@dispatch.rule("matmul", GivensProduct, GivensProduct)
def _times(a: GivensProduct, b: GivensProduct) -> Matrix:
    """GivensProduct: the rotations one after the other."""
    lead = torch.broadcast_shapes(a.batch_shape, b.batch_shape)
    angles = torch.cat([q.angles.expand(*lead, q.angles.shape[-1]) for q in (a, b)], -1)
    return GivensProduct(angles, a.planes + b.planes, a.n)
