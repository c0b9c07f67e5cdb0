"""Solves and determinants of ``Z_e A - A Z_f = G H^T`` by the Cauchy-like form (Gohberg, Kailath, Olshevsky).

``Z_e = D_e^-1 F^-1 diag(lambda) F D_e`` with F the unitary Fourier matrix, ``D_e = diag(e^(k/n))`` (principal powers)
and ``lambda_i = e^(1/n) exp(-2 pi i I / n)``, so that

    C = F D_e A D_f^-1 F^-1,      C_ij = g_i . h_j / (lambda_i - mu_j),      g = F D_e G,  h = F^-1 D_f^-1 H,

which is eliminated with partial pivoting (``elimination``). With ``lambda_i = exp(alpha_i)``, ``mu_j = exp(beta_j)``,

    lambda_i - mu_j = exp((alpha_i + beta_j) / 2) 2 sinh((alpha_i - beta_j) / 2),

where the second factor depends on i - j alone and is formed from the reduced angle: no cancellation, and one table of
2n - 1 numbers holds all quotients.

Cost: 2r transforms, then as ``elimination``: O(n^2 (b + r)) time, ``16 n^2`` bytes. The twists cost a factor
``max(|e|, 1/|e|) max(|f|, 1/|f|)`` of accuracy at most, nothing for numbers of modulus 1. Computed in complex128
whatever the dtype; results come in that of the arguments. No gradients here.

Source: I. Gohberg, T. Kailath, V. Olshevsky, Math. Comp. 64, 1995, sections 2 and 3.
"""

import cmath
import dataclasses
import math

import torch

from structmat import backend
from structmat.functional.elimination import Factors, eliminate, solve_together, spread_order

__all__ = ["GKO", "factor"]


def factor(left: torch.Tensor, right: torch.Tensor, e: complex, f: complex) -> "GKO":
    """The factorisation of A with ``Z_e A - A Z_f = left right^T``: generators ``(*b, n, r)``, nonzero ``e != f``.

    A singular A gives inf or NaN in solutions, which the caller looks for.
    """
    dtype = torch.promote_types(left.dtype, right.dtype)
    if isinstance(e, complex) or isinstance(f, complex):
        dtype = backend.complex_of(dtype)
    n = left.shape[-2]
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    wide: list[torch.Tensor] = []
    for t in (left.detach(), right.detach()):
        if t.shape[-1] == 0:  # the zero matrix
            t = t.new_zeros(*batch, n, 1)
        wide.append(t.to(torch.complex128).expand(*batch, *t.shape[-2:]).reshape(math.prod(batch), *t.shape[-2:]))
    with backend.full_precision(left.device):
        twist_e, twist_f = (_twist(number, n, left.device) for number in (e, f))
        g = torch.fft.fft(twist_e[:, None] * wide[0], dim=1, norm="ortho") if n else wide[0]
        h = torch.fft.ifft(wide[1] / twist_f[:, None], dim=1, norm="ortho") if n else wide[1]
        circle = _Circle(n, e, f, left.device)
        factors = eliminate(g[:, circle.order[:n]], h[:, circle.order[:n]], circle)
    return GKO(factors, circle.order, twist_e, twist_f, dtype, batch, (cmath.log(f) - cmath.log(e)) * ((n - 1) / 2))


def _twist(number: complex, n: int, device: torch.device) -> torch.Tensor:
    """``number^(k/n)``, k = 0..n-1, principal."""
    log = cmath.log(number) / max(n, 1)
    k = torch.arange(n, dtype=torch.float64, device=device)
    return torch.polar(torch.exp(k * log.real), k * log.imag)


class _Circle:
    """The quotients of nodes on two circles: ``alpha_i = (log e - 2 pi i I) / n``, ``beta_j`` likewise of f.

    Row and column k stand for the nodes of number ``a k mod n``, ``a`` near ``0.618 n``: the columns of a panel then
    lie far from each other on the circle. Neighbouring ones are nearly dependent where the matrix is graded, which
    makes the corner U_11 ill-conditioned and costs up to 1e7 in the backward error. The quotients still depend on
    the difference of the positions alone: all is periodic in the number of a node, the halved angles with period 2n.
    """

    def __init__(self, n: int, e: complex, f: complex, device: torch.device) -> None:
        self.n = n = max(n, 1)
        alpha, beta = cmath.log(e) / n, cmath.log(f) / n
        step = spread_order(n)
        turns = step * torch.arange(n, device=device) % (2 * n)
        self.order = turns % n
        half = math.pi / n * turns.double()
        self.rows, self.columns = (
            torch.polar(torch.full_like(half, math.exp(-z.real / 2)), half - z.imag / 2) for z in (alpha, beta)
        )
        d = step * torch.arange(n - 1, -n, -1, device=device) % (2 * n)  # falling: a row's entries ascend in j
        halves = torch.div(2 * d + n, 2 * n, rounding_mode="floor")  # sinh changes its sign with each n
        angle = (alpha.imag - beta.imag) / 2 - math.pi / n * (d - n * halves).double()
        stretch = (alpha.real - beta.real) / 2
        gap = torch.complex(2 * math.sinh(stretch) * torch.cos(angle), 2 * math.cosh(stretch) * torch.sin(angle))
        self.table = torch.where(halves == 1, -1.0, 1.0) / gap

    def block(
        self, left: torch.Tensor, right: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor | int
    ) -> torch.Tensor:
        count, p, q = left.shape[0], left.shape[1], right.shape[1]
        turned = left * self.rows[rows][..., None]
        if isinstance(columns, torch.Tensor):
            product = turned @ (right * self.columns[columns][..., None]).mT
            product *= self.table[(self.n - 1 - rows)[..., None] + columns[:, None, :]]
            return product
        product = turned @ (right * self.columns[columns : columns + q, None]).mT
        if q:
            windows = self.table.unfold(0, q, 1)  # window s holds the quotients of one row, from i - j = n - 1 - s on
            places = (self.n - 1 + columns - rows).reshape(-1)
            product *= windows.index_select(0, places).reshape(count, p, q)
        return product


@dataclasses.dataclass(frozen=True, eq=False)
class GKO:
    """A^-1 (or A^-H) ready to be applied; see ``factor``."""

    factors: Factors
    order: torch.Tensor
    twist_e: torch.Tensor
    twist_f: torch.Tensor
    dtype: torch.dtype
    batch: torch.Size
    log_twist: complex
    adjointed: bool = False

    def solve_rows(self, y: torch.Tensor) -> torch.Tensor:
        """x with ``A x = y`` for each row: y ``(*batch, k, n)``, broadcast against the batch of A."""
        dtype = torch.promote_types(self.dtype, y.dtype)
        inward, outward = (self.twist_f.conj(), self.twist_e.conj()) if self.adjointed else (self.twist_e, self.twist_f)
        if y.shape[-1] == 0:
            return y.to(dtype).expand(*torch.broadcast_shapes(self.batch, y.shape[:-2]), *y.shape[-2:])
        bulk = y.detach().to(torch.complex128)
        with backend.full_precision(y.device):
            bulk = torch.fft.fft(bulk / inward if self.adjointed else bulk * inward, norm="ortho")
            z = solve_together(self.factors, self.order, bulk, self.batch, self.adjointed)
            x = torch.fft.ifft(z, norm="ortho")
            x = x * outward if self.adjointed else x / outward
        return (x if dtype.is_complex else x.real).to(dtype)

    def adjoint(self) -> "GKO":
        """The same factors, solving with A^H."""
        return dataclasses.replace(self, adjointed=not self.adjointed)

    def slogdet(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sign (a phase for complex A) and log modulus of the determinant; 0 and -inf where a pivot is exactly zero.

        ``det A = det C (f / e)^((n - 1) / 2)``, principal powers.
        """
        sign, logabs = self.factors.slogdet()
        sign = sign * cmath.exp(1j * self.log_twist.imag)
        logabs = logabs + self.log_twist.real
        sign = torch.sgn(sign if self.dtype.is_complex else sign.real)
        sign = sign.conj().resolve_conj() if self.adjointed else sign
        return (
            sign.to(self.dtype).reshape(self.batch),
            logabs.to(backend.real_of(self.dtype)).reshape(self.batch),
        )

    @property
    def growth(self) -> torch.Tensor:
        """Growth of the generators ``(*batch)``: the backward error of a solve is about ``eps`` times this."""
        return self.factors.growth.reshape(self.batch)
