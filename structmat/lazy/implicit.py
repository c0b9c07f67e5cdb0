"""A function of rows as a matrix."""

from collections.abc import Callable
from typing import Any

import torch

from structmat import backend
from structmat._shell import broadcast
from structmat.errors import DtypeError, ShapeError, StructureError
from structmat.matrix import Matrix

__all__ = ["Implicit"]

Function = Callable[..., torch.Tensor]


class Implicit(Matrix):
    """A matrix known by its products: ``linear(x, *tensors) = x A^T`` and ``transpose_linear(y, *tensors) = y A``.

    Stores:   the two functions and the dtype (static), and tensors, which both functions get after x. Functions take
              rows, ``(..., n) -> (..., m)``; conjugates and adjoints are derived from the two.
    Shape:    as given, ``(*batch, m, n)``.      Claims: none but what ``assume`` adds.
    Cost:     that of the functions. Solves: dense LU up to the dense limit, above it cg, minres or gmres by the claims.
    Closed:   transpose, conj; all else is lazy.
    Args:     shape; linear; transpose_linear; dtype, None to adopt that of tensors, else of the other operand;
              tensors, a tuple: derivatives, ``to``, ``torch.func`` and ``nn.Trainable`` reach them. What the functions
              close over is reached by autograd in products only, so a solve refuses it where it requires a gradient.
              Pickling needs functions that pickle (defined at the top of a module).
    Raises:   ShapeError, naming the function, where its result has another shape; StructureError for what needs
              entries above the dense limit, and for batch indexing.
    Example:
        >>> A = Implicit((3, 3), lambda x: 2 * x.flip(-1), lambda y: 2 * y.flip(-1), torch.float32)
        >>> A @ torch.tensor([1.0, 2.0, 3.0])
        tensor([6., 4., 2.])
    """

    _shape: torch.Size
    _linear: Function
    _transpose_linear: Function
    dtype: torch.dtype | None = None
    held: tuple[torch.Tensor, ...] = ()
    device: torch.device | None = None
    conjugated: bool = False

    calls_user_code = True  # solves look whether the functions close over what requires a gradient

    def __init__(
        self,
        shape: tuple[int, ...],
        linear: Function,
        transpose_linear: Function,
        dtype: torch.dtype | None = None,
        *,
        tensors: tuple[torch.Tensor, ...] = (),
        device: torch.device | str | None = None,
    ) -> None:
        values: dict[str, Any] = {
            "_shape": torch.Size(shape),
            "_linear": linear,
            "_transpose_linear": transpose_linear,
            "dtype": dtype,
            "held": tuple(tensors),
            "device": torch.device(device) if device is not None else None,
            "conjugated": False,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def _validate(self) -> None:
        if len(self._shape) < 2 or any(isinstance(s, int) and s < 0 for s in self._shape):
            raise ShapeError(f"Implicit: shape must be (*batch, m, n), got {tuple(self._shape)}")
        for name in ("_linear", "_transpose_linear"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Implicit: {name[1:]} must be a function of rows, got {getattr(self, name)!r}")
        if not all(isinstance(t, torch.Tensor) for t in self.held):
            raise TypeError("Implicit: tensors must be a tuple of tensors")
        floating = [t for t in self.held if t.is_floating_point() or t.is_complex()]
        if self.dtype is None and floating:
            found = floating[0].dtype
            for t in floating[1:]:
                found = torch.promote_types(found, t.dtype)
            object.__setattr__(self, "dtype", found)
        if self.dtype is not None and not (self.dtype.is_floating_point or self.dtype.is_complex):
            raise DtypeError(f"Implicit: dtype must be floating point or complex, got {self.dtype}")
        if self.device is None and self.held:
            object.__setattr__(self, "device", self.held[0].device)

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def batch_shape(self) -> torch.Size:
        return self._shape[:-2]

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        given = x.conj().resolve_conj() if self.conjugated else x
        y = self._linear(given, *self.held)
        if not isinstance(y, torch.Tensor):
            raise TypeError(f"{self!r}: {_name(self._linear)} returned {type(y).__name__}, a tensor is needed")
        place = f"{self!r}.linear(x)"
        lead = self.batch_shape if x.ndim == 1 else (*broadcast(place, self.batch_shape, x.shape[:-2]), x.shape[-2])
        wanted = (*lead, self._shape[-2])
        if tuple(y.shape) != wanted:
            raise ShapeError(
                f"{self!r}: {_name(self._linear)} returned shape {tuple(y.shape)} for x of shape {tuple(x.shape)}; "
                f"{wanted} is needed"
            )
        if self.dtype is not None:
            y = y.to(torch.promote_types(self.dtype, x.dtype))
        return y.conj().resolve_conj() if self.conjugated else y

    def _with(self, **changes: Any) -> "Implicit":
        new = self._map(lambda _, t: t)
        new.__dict__.update(changes)
        new.__dict__["_assumed"] = frozenset()
        return new

    def transpose(self) -> Matrix:
        m, n = self._shape[-2:]
        turned = torch.Size((*self.batch_shape, n, m))
        return self._with(_shape=turned, _linear=self._transpose_linear, _transpose_linear=self._linear)

    def conj(self) -> Matrix:
        """The functions are called with conjugated rows, and their results conjugated."""
        real = self.dtype is not None and not self.dtype.is_complex
        return self._with() if real else self._with(conjugated=not self.conjugated)

    def _pick(self, batch: tuple[Any, ...], lead: tuple[int, ...]) -> Any:
        raise StructureError(f"{self!r}[...]: a function has no batch elements; use structmat.Dense(A.to_dense())[...]")

    def plan(self, verb: str, columns: int = 1) -> backend.Plan:
        if verb == "linear":
            return backend.Plan("function", f"{_name(self._linear)} is called with the rows")
        return super().plan(verb, columns)

    def _statics(self) -> list[str]:
        return [f"linear={_name(self._linear)}"]


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__
