"""Real orthogonal circulants, out of the free phases of their eigenvalues."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from structmat import backend, dispatch
from structmat._nearest import distance_check, require_square_entries
from structmat.claims import Claim, Claims
from structmat.errors import DtypeError, StructureError
from structmat.functional import circulant as fc
from structmat.functional import toeplitz as ft
from structmat.matrix import Matrix
from structmat.solving import Factorisation, Options, SolveInfo
from structmat.types.circulant_family import CirculantFamily

__all__ = ["OrthogonalCirculant"]


class OrthogonalCirculant(CirculantFamily):
    """The real circulant (f = 1) or skew-circulant (f = -1) with eigenvalues ``exp(+-i angles)`` and ``signs``.

    Stores:   angles (*batch, p), real: the phase of one of each conjugate pair of eigenvalues, number 1 to p in FFT
              order; signs, a tuple of +1 and -1 (static, one for the whole batch): the real eigenvalues, for f = 1
              number 0 and, if there are two, number n/2; for f = -1 none (even n) or number (n + 1) / 2 (odd n).
    Shape:    (*batch, n, n), n = 2 p + len(signs).      Claims: orthogonal.
    Cost:     linear as Circulant, after one transform of length n that forms the column; p numbers of memory. The error
              ``||Q^T Q - I||_F / sqrt(n)`` is a few eps at every angle.
    Closed:   X @ X (one f: the angles add), inv = transpose (the angles change sign), det = the product of the signs;
              X @ Circulant, X + Circulant, X + s Identity -> Circulant.
    Raises:   ValueError for signs that no n has; ShapeError; DtypeError for complex angles.
    Example:
        >>> sm.OrthogonalCirculant(torch.tensor([1.0]), signs=(1,)).to_dense()
        tensor([[ 0.6935,  0.6391, -0.3326],
                [-0.3326,  0.6935,  0.6391],
                [ 0.6391, -0.3326,  0.6935]])
    References: P. J. Davis, Circulant Matrices, 1979, section 3.2.
    """

    core: ClassVar[Mapping[str, int]] = {"angles": 1}
    real_fields: ClassVar[frozenset[str]] = frozenset({"angles"})
    angles: torch.Tensor
    signs: tuple[int, ...]
    f: int = 1

    def _validate(self) -> None:
        legal = {1: (1, 2), -1: (0, 1)}
        if self.f not in legal:
            raise ValueError(f"OrthogonalCirculant: f must be 1 or -1, got {self.f!r}")
        if self.angles.is_complex():
            raise DtypeError(f"OrthogonalCirculant: angles are real, got {self.angles.dtype}")
        if not isinstance(self.signs, tuple) or any(s not in (1, -1) for s in self.signs):
            raise ValueError(f"OrthogonalCirculant: signs must be a tuple of +1 and -1, got {self.signs!r}")
        if len(self.signs) not in legal[self.f] and self.angles.shape[-1] + len(self.signs):
            right = "one sign (odd n) or two (even n)" if self.f == 1 else "no sign (even n) or one (odd n)"
            raise ValueError(f"OrthogonalCirculant: f = {self.f} has {right}, got {len(self.signs)}")

    @property
    def shape(self) -> torch.Size:
        *batch, p = self.angles.shape
        n = 2 * p + len(self.signs)
        return torch.Size((*batch, n, n))

    def _number(self) -> complex:
        return self.f

    def _column(self) -> torch.Tensor:
        return self._wide_column().to(self.angles.dtype)

    def _wide_column(self) -> torch.Tensor:
        """The column before it is rounded to half precision."""
        return fc.from_eigenvalues(fc.spectrum_of_phases(self.angles, self.signs, self.f), self.f, real=True)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        y = ft.circulant_product(self._wide_column(), x, self.f)
        return y.to(torch.promote_types(self.angles.dtype, x.dtype))

    def circulant(self) -> Matrix:
        """The same matrix as a ``Circulant``, which stores its first column."""
        matrix: Matrix = dispatch.call("circulant", self)
        return matrix

    def transpose(self) -> Matrix:
        return OrthogonalCirculant(-self.angles, self.signs, self.f)

    def inv(self) -> Matrix:
        return OrthogonalCirculant(-self.angles, self.signs, self.f)

    def pinv(self) -> Matrix:
        return self.transpose()

    def conj(self) -> Matrix:
        return OrthogonalCirculant(self.angles, self.signs, self.f)

    def _solve_rows(self, y: torch.Tensor, options: Options) -> tuple[torch.Tensor, SolveInfo]:
        if options.method == "dense":
            return super()._solve_rows(y, options)
        options.refuse_iterative(f"{self!r}.solve", "transpose")
        x = self.transpose().linear(y.to(backend.compute_dtype(y.dtype)))
        return x, self._checked(x, y, "transpose", 0, options, ("the inverse of an orthogonal matrix",))

    def _factor(self, method: str) -> Factorisation:
        return super()._factor(method) if method == "dense" else Factorisation(self, "transpose")

    # -- measures -------------------------------------------------------------------------------------------------

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The product of the signs, exactly, and 0."""
        zero = torch.zeros(self.angles.shape[:-1], dtype=self.angles.dtype, device=self.angles.device)
        return zero + math.prod(self.signs), zero

    def eigvals(self) -> torch.Tensor:
        """In FFT order."""
        return fc.spectrum_of_phases(self.angles, self.signs, self.f)

    def svdvals(self) -> torch.Tensor:
        return torch.ones(self.shape[:-1], dtype=self.angles.dtype, device=self.angles.device)

    def norm(self) -> torch.Tensor:
        return self._norm_bound() * self._n**0.5

    def _norm_bound(self) -> torch.Tensor:
        return torch.ones(self.angles.shape[:-1], dtype=self.angles.dtype, device=self.angles.device)

    def _properties(self) -> Claims:
        rank = min(1, self._n)
        return Claims(frozenset({Claim.ORTHOGONAL}), None, {(1, -1): rank, (-1, 1): rank})

    def _statics(self) -> list[str]:
        return [f"signs={self.signs}"] + ([] if self.f == 1 else [f"f={self.f}"])

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        if verb != "solve":
            return super().plan(verb, columns)
        product = super().plan("linear", columns)
        return backend.Plan("transpose", "orthogonal: one product", product.flops, product.bytes)

    # -- makers ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_dense(cls, dense: torch.Tensor, tol: float | None = None, f: int = 1) -> Matrix:
        """The orthogonal f-circulant equal to the matrix within ``tol ||dense||_F`` (default 8 eps);
        NotStructuredError otherwise."""
        return distance_check(cls, dense, cls.nearest(dense, f), tol)

    @classmethod
    def nearest(cls, dense: torch.Tensor, f: int = 1) -> "OrthogonalCirculant":
        """The best in the Frobenius norm: the polar factor ``lam / |lam|`` of the nearest f-circulant.

        (``||A - Q||^2 = ||A||^2 + n - 2 <P A, Q>`` with the projection P on the f-circulants.) An eigenvalue 0 counts
        as 1. A real matrix is needed, and equal signs in the whole batch: StructureError where they differ.
        """
        if dense.is_complex():
            raise DtypeError(f"OrthogonalCirculant.nearest: a real matrix is needed, got {dense.dtype}")
        require_square_entries(dense, "OrthogonalCirculant.nearest")
        column = fc.nearest_column(dense.to(backend.compute_dtype(dense.dtype)), f)
        single, chosen = fc.separated(fc.eigenvalues(column, f), f)
        signs = []
        for value in single.real.detach().unbind(-1):
            negative = value < 0
            if bool(negative.any()) and not bool(negative.all()):
                raise StructureError(
                    "OrthogonalCirculant.nearest: the elements of the batch need different signs, and the type holds "
                    "one tuple of signs for all; take them one by one"
                )
            signs.append(-1 if bool(negative.any()) else 1)
        return cls(torch.atan2(chosen.imag, chosen.real).to(dense.dtype), tuple(signs), f)

    @classmethod
    def random(cls, n: int, f: int = 1, *, generator: Any = None, **options: Any) -> "OrthogonalCirculant":
        """Uniform phases and signs: Haar measure on the real orthogonal f-circulants."""
        count = len(fc.alone(n, f))
        angles = (2 * torch.rand((n - count) // 2, generator=generator, **options) - 1) * math.pi
        bits = torch.randint(0, 2, (count,), generator=generator, device=options.get("device"))
        return cls(angles, tuple(1 - 2 * int(b) for b in bits), f)

    @classmethod
    def identity(cls, n: int, f: int = 1, **options: Any) -> "OrthogonalCirculant":
        count = len(fc.alone(n, f))
        return cls(torch.zeros((n - count) // 2, **options), (1,) * count, f)


@dispatch.rule("matmul", OrthogonalCirculant, OrthogonalCirculant)
def _times(a: OrthogonalCirculant, b: OrthogonalCirculant) -> Matrix:
    """One f: the angles add and the signs multiply; else lazy."""
    if a.f != b.f:
        lazy: Matrix = dispatch.lookup("matmul", Matrix, Matrix)(a, b)  # type: ignore[misc]
        return lazy
    return OrthogonalCirculant(a.angles + b.angles, tuple(s * t for s, t in zip(a.signs, b.signs, strict=True)), a.f)
