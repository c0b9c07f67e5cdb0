"""f-circulants in the Fourier domain, for every f: the transforms between which they are diagonal, and their adjoints.

``Z_f(v) u = synthesise(analyse(v) * analyse(u))`` in one of two ways:

    twisted:  analyse(v) = fft(D v), synthesise(s) = D^-1 ifft(s), D = diag(f^(k/n)); length n. The accuracy falls with
              max(|f|, 1/|f|), so it serves f of modulus 1/4 to 4, and n without large prime factors;
    folded:   the zero-padded convolution s of length N >= 2n - 1, then ``s_i + f s_{i+n}``; any f, any n.

``lift`` and ``lower`` are the adjoints of synthesise and analyse, up to the factor N that cancels between them:
``Z_f(v)^H y = lower(conj(analyse(v)) * lift(y))``.
Source: P. J. Davis, Circulant Matrices, 1979, section 3.2.
"""

import cmath
import dataclasses
import functools
from typing import Any

import numpy
import torch

from structmat import backend
from structmat.functional import transforms
from structmat.functional.circulant import twist
from structmat.functional.fourier import good_length, is_smooth

__all__ = ["Shift"]

Array = numpy.ndarray[Any, numpy.dtype[Any]]

_MODERATE = 4.0
_TABLED = 1 << 14


@functools.lru_cache(maxsize=16)
def _tables(n: int, f: complex, dtype: torch.dtype) -> tuple[Array, Array]:
    """D and its inverse: making them costs more than a short transform. Kept as arrays, since a tensor made under
    ``torch.inference_mode`` could not be used outside it."""
    k = numpy.arange(n) / n
    turn = numpy.exp(k * cmath.log(f))
    kind = numpy.complex64 if dtype == torch.complex64 else numpy.complex128
    return turn.astype(kind), (1 / turn).astype(kind)


@dataclasses.dataclass(frozen=True)
class Shift:
    """The transforms of one number f and order n, in one complex dtype; vectors run along the last axis."""

    n: int
    f: complex
    length: int
    twisted: bool
    dtype: torch.dtype
    turn: torch.Tensor | None = None  # D, None for f = 1
    unturn: torch.Tensor | None = None  # D^-1

    @classmethod
    def of(cls, n: int, f: complex, dtype: torch.dtype, device: torch.device) -> "Shift":
        """For operands of this dtype (float32, float64 or complex)."""
        wide = backend.complex_of(dtype)
        if not (is_smooth(n) and 1 / _MODERATE <= abs(f) <= _MODERATE):
            return cls(n, f, good_length(2 * n - 1), False, wide)
        if f == 1:
            return cls(n, f, n, True, wide)
        if device.type == "cpu" and n <= _TABLED and not torch.compiler.is_compiling():
            return cls(n, f, n, True, wide, *(torch.from_numpy(table) for table in _tables(n, f, wide)))
        turn = twist(n, f, wide, device)
        assert turn is not None
        return cls(n, f, n, True, wide, turn, turn.conj().resolve_conj() if abs(f) == 1 else 1 / turn)

    def analyse(self, v: torch.Tensor) -> torch.Tensor:
        """Time to frequency, ``(..., n) -> (..., N)``, complex."""
        if self.twisted:
            return transforms.fft((v if self.turn is None else v * self.turn).to(self.dtype))
        return transforms.fft(v.to(self.dtype), self.length)

    def synthesise(self, hat: torch.Tensor) -> torch.Tensor:
        """Frequency to time."""
        s = transforms.ifft(hat)
        if self.twisted:
            return s if self.unturn is None else s.mul_(self.unturn)  # s is new, and nothing else holds it
        return s[..., : self.n] + torch.nn.functional.pad(s[..., self.n : 2 * self.n - 1], (0, 1)) * self.f

    def lift(self, y: torch.Tensor) -> torch.Tensor:
        """The adjoint of ``synthesise``."""
        if self.twisted:
            if self.unturn is None:
                return transforms.fft(y.to(self.dtype))
            back = self.turn if abs(self.f) == 1 else self.unturn.conj()
            assert back is not None
            return transforms.fft((y * back).to(self.dtype))
        over = y[..., : self.n - 1] * (self.f.conjugate() if isinstance(self.f, complex) else self.f)
        return transforms.fft(torch.cat((y, over), -1).to(self.dtype), self.length)

    def lower(self, hat: torch.Tensor) -> torch.Tensor:
        """The adjoint of ``analyse``."""
        v = transforms.ifft(hat)
        if self.twisted:
            if self.turn is None:
                return v
            back = self.unturn if abs(self.f) == 1 else self.turn.conj()
            assert back is not None
            return v.mul_(back)
        return v[..., : self.n]
