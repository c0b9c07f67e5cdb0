"""The checked shell: what every public verb asks of its operands, once, before the unchecked core runs."""

import functools
from typing import Any

import numpy
import torch

from structmat.errors import DeviceError, DtypeError, ShapeError, StructureError

__all__ = [
    "Place",
    "as_entries",
    "as_factor",
    "as_operand",
    "broadcast",
    "check_makers",
    "check_pair",
    "common_dtype",
    "name_of",
    "require_floating",
    "require_square",
]

_COMPLEX = {torch.float16: torch.complex32, torch.float32: torch.complex64, torch.float64: torch.complex128}
_PRECISION = {dtype: dtype for dtype in (torch.bfloat16, *_COMPLEX)} | {c: r for r, c in _COMPLEX.items()}


class Place:
    """Where an error happened, ``owner`` and what was asked of it, written out only if it does: a repr costs more than
    a small solve."""

    def __init__(self, owner: Any, what: str) -> None:
        self.owner, self.what = owner, what

    def __str__(self) -> str:
        return f"{self.owner!r}{self.what}"


def name_of(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def as_operand(value: Any, like: torch.dtype | None, device: torch.device | None, place: str | Place) -> torch.Tensor:
    """A tensor from a tensor or a numpy array; integers and booleans are refused."""
    if isinstance(value, numpy.ndarray):
        value = torch.as_tensor(value, device=device)
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{place}: expected a Matrix, a tensor or a numpy array, got {type(value).__name__}")
    if not (value.is_floating_point() or value.is_complex()):
        wanted = name_of(like or torch.get_default_dtype())
        raise DtypeError(f"{place}: x has integer dtype {name_of(value.dtype)}; convert it first: x.to(torch.{wanted})")
    return value


def require_floating(place: str | Place, **tensors: torch.Tensor) -> None:
    """DtypeError for a tensor of integers or booleans, by its name."""
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise DtypeError(
                f"{place}: {name} must be floating point or complex, got {tensor.dtype}; convert it first, "
                f"e.g. {name}.to(torch.float64)"
            )


def as_entries(dense: Any, place: str | Place) -> torch.Tensor:
    """A dense matrix ``(*batch, m, n)`` from a tensor or a numpy array; integers, booleans and vectors are refused."""
    tensor = torch.as_tensor(dense) if isinstance(dense, numpy.ndarray) else dense
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{place}: the matrix must be a tensor or a numpy array, got {type(dense).__name__}")
    require_floating(place, dense=tensor)
    if tensor.ndim < 2:
        raise ShapeError(f"{place}: a matrix (*batch, m, n) is needed, got shape {tuple(tensor.shape)}")
    return tensor


def check_makers(cls: type) -> None:
    """Put ``as_entries`` before the class methods ``from_dense(dense, ...)`` and ``nearest(dense, ...)`` of a type,
    and a look at ``dtype`` before ``random``."""
    for name in ("from_dense", "nearest"):
        if isinstance(cls.__dict__.get(name), classmethod):
            setattr(cls, name, _takes_entries(name, cls.__dict__[name]))
    if isinstance(cls.__dict__.get("random"), classmethod):
        cls.random = _draws_numbers(cls.__dict__["random"])  # type: ignore[attr-defined]


def _draws_numbers(method: Any) -> Any:
    """``random(..., dtype=...)`` that refuses integers by name."""
    core = method.__func__

    @functools.wraps(core)
    def checked(cls: type, *arguments: Any, **options: Any) -> Any:
        dtype = options.get("dtype")
        if isinstance(dtype, torch.dtype) and not (dtype.is_floating_point or dtype.is_complex):
            raise DtypeError(f"{cls.__name__}.random(dtype={dtype}): entries are floating point or complex")
        return core(cls, *arguments, **options)

    return classmethod(checked)


def _takes_entries(name: str, method: Any) -> Any:
    core = method.__func__

    @functools.wraps(core)
    def checked(cls: type, *arguments: Any, **options: Any) -> Any:
        place = f"{cls.__name__}.{name}"
        if arguments:
            arguments = (as_entries(arguments[0], place), *arguments[1:])
        elif "dense" in options:
            options["dense"] = as_entries(options["dense"], place)
        return core(cls, *arguments, **options)

    return classmethod(checked)


def common_dtype(a: torch.dtype | None, b: torch.dtype | None, place: str | Place) -> torch.dtype | None:
    """The dtype of a result: equal precision is required (autocast lifts that), real and complex promote to complex."""
    if a is None or b is None or a == b:
        return b if a is None else a
    if (
        _PRECISION.get(a) != _PRECISION.get(b)
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_autocast_enabled("cuda")
    ):
        raise DtypeError(
            f"{place}: dtypes {name_of(a)} and {name_of(b)} differ in precision; convert one with .to(dtype)"
        )
    return torch.promote_types(a, b)


def check_pair(a: Any, b: Any, place: str | Place) -> torch.dtype | None:
    """Dtype and device of two operands (tensors or matrices); the common dtype."""
    if a.device is not None and b.device is not None and a.device != b.device:
        raise DeviceError(f"{place}: operands are on {a.device} and {b.device}; move one with .to(device)")
    return common_dtype(a.dtype, b.dtype, place)


def as_factor(factor: Any, owner: Any) -> complex | torch.Tensor:
    """The s of ``s A``: a number, or a tensor of shape () or (*batch, 1, 1)."""
    if isinstance(factor, (numpy.generic, numpy.ndarray)) and factor.ndim == 0:
        factor = factor.item()
    if isinstance(factor, numpy.ndarray):
        factor = torch.as_tensor(factor)
    if isinstance(factor, (bool, int, float, complex)):
        return factor
    if not isinstance(factor, torch.Tensor):
        raise TypeError(
            f"{owner!r} * {type(factor).__name__}: scale by a number or a tensor of shape () or (*batch, 1, 1)"
        )
    if factor.ndim and (factor.ndim < 2 or factor.shape[-2:] != (1, 1)):
        raise ShapeError(
            f"{owner!r} * tensor of shape {tuple(factor.shape)}: a scale has shape () or (*batch, 1, 1); "
            "use Diagonal(entries) @ A to scale rows, A @ Diagonal(entries) to scale columns"
        )
    check_pair(owner, factor, f"{owner!r} * tensor")
    return factor


def require_square(matrix: Any, verb: str) -> int:
    m, n = matrix.shape[-2:]
    if m != n:
        raise ShapeError(
            f"{matrix!r}.{verb}: the matrix is {m} x {n}, {verb} needs a square one; see pinv, lstsq, svdvals"
        )
    return int(n)


def broadcast(place: str | Place, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    if all(shape == shapes[0] for shape in shapes):  # torch takes longer to say so
        return tuple(shapes[0])
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError as error:
        shown = " and ".join(str(tuple(s)) for s in shapes)
        raise ShapeError(f"{place}: batch shapes {shown} do not broadcast") from error


def refuse_numpy(function: Any) -> None:
    name = getattr(function, "__name__", str(function))
    raise StructureError(
        f"numpy.{name} on a structured matrix would form it densely: use structmat.linalg.{name} or a "
        "method of the matrix, "
        "or ask for the dense array with numpy.asarray(A)"
    )
