"""A weight that stays orthogonal while it trains: a drop-in for ``torch.nn.utils.parametrizations.orthogonal``.

The weight of a module is replaced by a property that builds it from free parameters at every access. Unlike torch's,
no discrete state lies in a trained tensor (there, one step with weight decay makes the weight exactly zero), half
precision works (computed in float32), and the whole module can be pickled and copied: its class is made again from its
base class and the names of its orthogonal weights.
"""

from typing import Any

import torch
from torch import nn

from structmat import backend
from structmat.errors import DtypeError, ShapeError, StructureError
from structmat.functional import householder as fh
from structmat.functional import orthogonal as fo
from structmat.functional.qr import householder_qr
from structmat.types.butterfly import Butterfly
from structmat.types.butterfly_family import block_shapes, mixed

__all__ = ["KINDS", "orthogonal", "remove_orthogonal"]

KINDS = ("householder", "cayley", "exp", "butterfly")


def orthogonal(module: nn.Module, name: str = "weight", kind: str = "householder") -> nn.Module:
    """Keep ``module.<name>`` ``(*b, m, n)`` orthogonal: orthonormal columns if m >= n, else orthonormal rows.

    ``kind``: "householder" (min(m, n) reflections: the fewest numbers that reach every matrix of the starting
    determinant, and the cheapest for tall or wide weights), "cayley", "exp" (a rotation of the start by the image of a
    skew-Hermitian matrix), "butterfly" (the same with an orthogonal butterfly in mixed radix: about p log p numbers for
    p = max(m, n), not every rotation; a prime factor above 64 leaves some coordinates in place).
    The start is the Q of the weight's QR factorisation with a positive diagonal: an orthogonal weight stays as it is.
    Returns the module; a frozen weight stays frozen.
    Orthogonality error at most ``8 eps (1 + sqrt(ops))``, at every size of the parameters, with
    weight decay, and for parameters stored in half precision up to the rounding of the weight itself. Assigning a
    tensor to the weight starts again from it; ``remove_orthogonal`` makes it a plain parameter.

    Raises ValueError for an unknown kind, ShapeError for a weight without two axes, StructureError where the module
    has no such parameter or it is orthogonal already.

    >>> layer = sm.nn.orthogonal(torch.nn.Linear(3, 5, dtype=torch.float64))
    >>> bool(torch.allclose(layer.weight.mT @ layer.weight, torch.eye(3, dtype=torch.float64)))
    True
    """
    if kind not in KINDS:
        raise ValueError(f"nn.orthogonal(kind={kind!r}): legal kinds are {', '.join(map(repr, KINDS))}")
    base, names = _made_of(module)
    if name in names:
        raise StructureError(f"nn.orthogonal: {base.__name__}.{name} is orthogonal already; remove_orthogonal it first")
    weight = module._parameters.get(name)
    if weight is None:
        legal = ", ".join(module._parameters)
        raise StructureError(f"nn.orthogonal: {base.__name__} has no parameter {name!r}; it has {legal or 'none'}")
    if weight.ndim < 2 or 0 in weight.shape:
        raise ShapeError(f"nn.orthogonal: {base.__name__}.{name} has shape {tuple(weight.shape)}, a matrix is needed")
    frame = Frame(weight.detach(), kind).requires_grad_(weight.requires_grad)
    del module._parameters[name]
    module.add_module(_place(name), frame)
    module.__class__ = _class_of(base, (*names, name))
    return module


def remove_orthogonal(module: nn.Module, name: str = "weight") -> nn.Module:
    """Make an orthogonal weight a plain parameter again, of its present value. Returns the module."""
    base, names = _made_of(module)
    if name not in names:
        raise StructureError(f"nn.remove_orthogonal: {base.__name__}.{name} is not orthogonal by nn.orthogonal")
    value = getattr(module, name)
    trained = any(p.requires_grad for p in module._modules[_place(name)].parameters())  # type: ignore[union-attr]
    rest = tuple(n for n in names if n != name)
    module.__class__ = _class_of(base, rest) if rest else base
    del module._modules[_place(name)]
    module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=trained))
    return module


class Frame(nn.Module):
    """The parameters of one orthogonal weight; calling it gives the weight.

    With B the reflections of the start, s its signs and R the trained rotation (reflections are trained themselves,
    R = I): ``weight = (B diag(s, 1) R)[:, :n]`` for a tall weight, its adjoint for a wide one.
    """

    signs: torch.Tensor
    vectors: torch.Tensor

    def __init__(self, weight: torch.Tensor, kind: str) -> None:
        super().__init__()
        self.kind, self.shape, self.wide = kind, tuple(weight.shape), weight.shape[-2] < weight.shape[-1]
        self.kept = weight.dtype
        vectors, phases, signs = _start(weight.mH if self.wide else weight)
        dtype = weight.dtype
        real = backend.real_of(dtype)
        held: dict[str, torch.Tensor] = {"vectors": vectors.to(dtype)}
        if phases is not None:
            held["phases"] = phases.to(real)
        for key, tensor in held.items():
            if kind == "householder":
                self.register_parameter(key, nn.Parameter(tensor))
            else:
                self.register_buffer(key, tensor)
        self.register_buffer("signs", signs.to(dtype))
        if kind in ("cayley", "exp"):
            count = len(self._places())
            self.entries = nn.Parameter(torch.zeros(*weight.shape[:-2], count, dtype=dtype, device=weight.device))
        elif kind == "butterfly":
            p = max(weight.shape[-2:])
            rows, self.digits, self.tail = mixed(p, p)
            for k, (rest, _, size) in enumerate(block_shapes(self.digits, rows)):
                zero = torch.zeros(*weight.shape[:-2], rest, size * (size - 1) // 2, dtype=dtype, device=weight.device)
                self.register_parameter(f"skew_{k}", nn.Parameter(zero))

    def forward(self) -> torch.Tensor:
        """The weight, in the dtype of the parameters."""
        p, q = max(self.shape[-2:]), min(self.shape[-2:])
        dtype = self.vectors.dtype
        wide = backend.compute_dtype(dtype)
        signs = self.signs.to(wide)
        rows = (
            torch.eye(q, p, dtype=wide, device=signs.device) if self.kind == "householder" else self._rotation(wide, q)
        )
        signs = torch.cat((signs, signs.new_ones(*signs.shape[:-1], p - q)), -1)[..., None, :]
        phases: Any = getattr(self, "phases", None)
        rows = fh.rotate_rows(
            rows * signs, self.vectors.to(wide), None if phases is None else phases.to(signs.real.dtype)
        )
        frame = rows.conj() if self.wide and rows.is_complex() else rows
        return (frame if self.wide else rows.mT).to(dtype)

    def _rotation(self, wide: torch.dtype, q: int) -> torch.Tensor:
        """The first q columns of R, as rows."""
        p = max(self.shape[-2:])
        if self.kind == "butterfly":
            skew = tuple(getattr(self, f"skew_{k}").to(wide) for k in range(len(self.digits)))
            butterfly = Butterfly.from_skew(skew, self.digits, None, self.tail)
            return butterfly.linear(torch.eye(q, p, dtype=wide, device=self.signs.device))
        entries = self.entries.to(wide)
        places = torch.tensor(self._places(), dtype=torch.long, device=entries.device)
        lower = entries.new_zeros(*entries.shape[:-1], p * p).index_copy(-1, places, entries)
        lower = lower.unflatten(-1, (p, p))
        k = lower - lower.mH
        rotation = fo.cayley(k) if self.kind == "cayley" else fo.expm(k)
        return rotation[..., :, :q].mT

    def _places(self) -> list[int]:
        """Where, row by row, the entries stand in the p x p lower triangle: those that move the first q columns, the
        diagonal among them for complex ones."""
        p, q = max(self.shape[-2:]), min(self.shape[-2:])
        diagonal = 0 if self.kept.is_complex else 1
        return [i * p + j for j in range(q) for i in range(j + diagonal, p)]

    def extra_repr(self) -> str:
        return f"{self.kind}, shape={self.shape}"


def _start(tall: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Reflections and signs of the Q of a QR factorisation with positive diagonal, no vector being zero (a zero vector
    would never train): H = I becomes the reflection at one axis, and the sign takes it back."""
    if not (tall.is_floating_point() or tall.is_complex()):
        raise DtypeError(f"nn.orthogonal: the weight must be floating point or complex, got {tall.dtype}")
    wide = tall.to(torch.promote_types(tall.dtype, torch.float64))
    vectors, phases, r = householder_qr(wide)
    still = (vectors == 0).all(-1)
    q = vectors.shape[-2]
    vectors = torch.where(
        still[..., None], torch.eye(q, vectors.shape[-1], dtype=vectors.dtype, device=vectors.device), vectors
    )
    diagonal = torch.diagonal(r, dim1=-2, dim2=-1).real if r.is_complex() else torch.diagonal(r, dim1=-2, dim2=-1)
    signs = torch.where(diagonal < 0, -torch.ones_like(diagonal), torch.ones_like(diagonal))
    signs = torch.where(still, -signs, signs)
    if phases is not None:
        phases = torch.where(still, torch.full_like(phases, torch.pi), phases)
    return vectors, phases, signs


def _place(name: str) -> str:
    return f"{name}_frame"


def _made_of(module: nn.Module) -> tuple[type[nn.Module], tuple[str, ...]]:
    kind = type(module)
    return _parts.get(kind, (kind, ()))


_classes: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}
_parts: dict[type[nn.Module], tuple[type[nn.Module], tuple[str, ...]]] = {}


def _class_of(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The class of a module of ``base`` whose parameters ``names`` are orthogonal; one class, however often it is asked
    for."""
    key = (base, names)
    if key not in _classes:

        def reduce(self: nn.Module, protocol: Any) -> Any:
            return _empty, key, self.__dict__

        made: dict[str, Any] = {name: _property(name) for name in names}
        made |= {"__reduce_ex__": reduce, "__module__": base.__module__, "__doc__": base.__doc__}
        _classes[key] = type(f"Orthogonal{base.__name__}", (base,), made)
        _parts[_classes[key]] = key
    return _classes[key]


def _empty(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """A module of the class, before its state: what pickle and copy start from."""
    kind = _class_of(base, names)
    return kind.__new__(kind)


def _property(name: str) -> property:
    def value(self: nn.Module) -> torch.Tensor:
        result: torch.Tensor = self._modules[_place(name)]()  # type: ignore[misc]
        return result

    def assign(self: nn.Module, new: torch.Tensor) -> None:
        frame: Any = self._modules[_place(name)]
        if tuple(new.shape) != frame.shape:
            raise ShapeError(f"{type(self).__name__}.{name} has shape {frame.shape}, the new value {tuple(new.shape)}")
        fresh = Frame(new.detach().to(frame.vectors.dtype).to(frame.vectors.device), frame.kind)
        frame.load_state_dict(fresh.state_dict())

    return property(value, assign)
