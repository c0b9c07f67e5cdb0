"""The inverse of a Toeplitz matrix from two solutions, applied in O(n log n). Float64 (complex128), no gradients here.

From ``x = T^-1 e_0`` and ``z = T^-1 c``, ``c_i = t_{i-n} + t_i`` (t_{-n} := 0),

    T^-1 = S(x) (I - C(z) / 2) + S(z) C(x) / 2,     C circulant, S skew-circulant of that first column,

which holds for every nonsingular T (no condition on x_0, unlike Gohberg-Semencul). Six transforms a row: of length n,
real ones packed into n / 2 complex numbers for S, where n is even and has no large prime factor; else of length
>= 2n - 1, a linear convolution whose second half is added (C) or subtracted (S).
Source: G. Heinig and K. Rost, Algebraic Methods for Toeplitz-like Matrices and Operators, 1984 (the f-circulant
family).
"""

import torch

from structmat.functional.fourier import good_length, is_smooth

__all__ = ["TwoSolve"]


class TwoSolve:
    """T^-1 from the pair (x, z), each ``(*b, n)``; four spectra are kept."""

    def __init__(self, x: torch.Tensor, z: torch.Tensor) -> None:
        self.x, self.z, self.n = x, z, int(x.shape[-1])
        n, real = self.n, not x.is_complex()
        self._folded = not is_smooth(n) or (real and n % 2 == 1)
        self._length = good_length(2 * n - 1) if self._folded else n
        if not self._folded:
            size = n // 2 if real else n
            angle = torch.arange(size, device=x.device, dtype=torch.float64) * (torch.pi / n)
            self._twist = torch.polar(torch.ones_like(angle), angle)
            self._untwist = self._twist.conj().resolve_conj()
            self._sx, self._sz = (self._skew(v)[..., None, :] for v in (x, z))
        self._cx, self._cz = (self._forward(v)[..., None, :] for v in (x, z))

    # -- transforms -----------------------------------------------------------------------------------------------

    def _forward(self, v: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(v, self._length) if v.is_complex() else torch.fft.rfft(v, self._length)

    def _back(self, hat: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifft(hat) if self.x.is_complex() else torch.fft.irfft(hat, self._length)

    def _skew(self, v: torch.Tensor) -> torch.Tensor:
        """Values at the roots of ``u^n = -1``; of real v at every second one, ``exp(i pi (4 l + 1) / n)``, which is a
        transform of the n / 2 numbers ``v_k + i v_{k + n/2}``."""
        if v.is_complex():
            return torch.fft.ifft(v * self._twist, norm="forward")
        half = self.n // 2
        return torch.fft.ifft(torch.complex(v[..., :half], v[..., half:]).mul_(self._twist), norm="forward")

    def _unskew(self, hat: torch.Tensor) -> torch.Tensor:
        v = torch.fft.fft(hat, norm="forward").mul_(self._untwist)
        return v if self.x.is_complex() else torch.cat((v.real, v.imag), -1)

    # -- application ----------------------------------------------------------------------------------------------

    def solve_rows(self, b: torch.Tensor) -> torch.Tensor:
        """y with ``T y = b`` for each row b ``(*b, k, n)``."""
        if b.is_complex() and not self.x.is_complex():
            k = b.shape[-2]
            both = self.solve_rows(torch.cat((b.real, b.imag), -2))
            return torch.complex(both[..., :k, :], both[..., k:, :])
        if self.x.is_complex() and not b.is_complex():
            b = b.to(self.x.dtype)
        hat = self._forward(b)
        by_x, by_z = self._back(self._cx * hat), self._back(self._cz * hat)
        if self._folded:
            return self._fold(b, by_x, by_z)
        first = torch.sub(b, by_z, alpha=0.5)
        hat = self._skew(first).mul_(self._sx) if b.shape == first.shape else self._skew(first) * self._sx
        return self._unskew(hat.addcmul_(self._skew(by_x), self._sz, value=0.5))

    def _fold(self, b: torch.Tensor, by_x: torch.Tensor, by_z: torch.Tensor) -> torch.Tensor:
        """The same from linear convolutions s: ``C`` is ``s_i + s_{i+n}``, ``S`` is ``s_i - s_{i+n}``."""
        n, tail = self.n, 2 * self.n - 1
        for s in (by_x, by_z):
            s[..., : n - 1] += s[..., n:tail]
        hat = self._cx * self._forward(torch.sub(b, by_z[..., :n], alpha=0.5))
        s = self._back(hat.addcmul_(self._cz, self._forward(by_x[..., :n]), value=0.5))
        y = s[..., :n].clone()
        y[..., : n - 1] -= s[..., n:tail]
        return y

    def solve_transposed_rows(self, b: torch.Tensor) -> torch.Tensor:
        """y with ``T^T y = b``: ``T^-T = J T^-1 J``, so no new factorisation."""
        return self.solve_rows(b.flip(-1)).flip(-1)

    def adjoint(self) -> "TwoSolve":
        """The inverse of T^H, from the same spectra."""
        return _Adjoint(self)


class _Adjoint(TwoSolve):
    """``T^-H = conj(J T^-1 J)``."""

    def __init__(self, inner: TwoSolve) -> None:
        self.inner, self.n = inner, inner.n
        self.x, self.z = inner.x, inner.z

    def solve_rows(self, b: torch.Tensor) -> torch.Tensor:
        return self.inner.solve_transposed_rows(b.conj()).conj().resolve_conj()

    def solve_transposed_rows(self, b: torch.Tensor) -> torch.Tensor:
        return self.solve_rows(b.flip(-1)).flip(-1)

    def adjoint(self) -> TwoSolve:
        return self.inner
