"""Saving adapters and loading them: one folder with ``adapters.json`` and ``adapters.safetensors``.

The JSON names the format and its version, and for every adapter and layer the sizes, the method and its
hyper-parameters, and the model's own parameters that were trained along; the other file holds the tensors. A file is
data, never code, and is not trusted: sizes are limited, the tensors it must hold are computed from the model before it
is read (with ``init`` on the meta device), and any difference is an error before the model is changed.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from structmat._optional import need
from structmat.adapters.attach import commit
from structmat.adapters.kinds import gathered, sharded
from structmat.adapters.layer import Slot
from structmat.adapters.method import to_json
from structmat.adapters.plan import Plan, plan_load
from structmat.adapters.report import Attached
from structmat.adapters.tree import adapted, parameters_by_name, roster_of, selected_names
from structmat.errors import CheckpointError

__all__ = ["FORMAT", "JSON_LIMIT", "VERSION", "load", "opened", "read_object", "refusing", "save", "write_file"]

FORMAT = "structmat.adapters"
VERSION = 1
JSON_FILE = "adapters.json"
TENSOR_FILE = "adapters.safetensors"
JSON_LIMIT = 16 * 2**20
LONGEST_ERROR = 2000
_FLOATS = {"F16", "BF16", "F32", "F64"}
_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"} | {
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"
}  # fmt: skip


def save(model: nn.Module, directory: str | os.PathLike[str], names: str | list[str] | None = None) -> None:
    """Write adapters (default: all) and the parameters trained with them into a folder, which is made if need be.

    Each file is written beside its place and then moved there, so an interrupted call leaves no half a file. Of a
    model that is sharded over devices every process must call this: the tensors are gathered, and rank 0 writes.
    Raises: ValueError for unknown names, TypeError for a method that is not registered, ImportError without
        safetensors.
    """
    torch_files = need("safetensors.torch", "adapters")
    roster = roster_of(model)
    assert roster is not None
    chosen = selected_names(names, roster.order, "save")
    if not chosen:
        raise ValueError(f"save: names={names!r} is no adapter; there are: {', '.join(map(repr, roster.order))}")
    own = parameters_by_name(model)
    layers = adapted(model)
    tensors: dict[str, torch.Tensor] = {}
    adapters: dict[str, Any] = {}
    for name in chosen:
        entry: dict[str, Any] = {"layers": {}, "extras": {}}
        for layer_name, layer in layers.items():
            slot = layer.slot(name)
            if slot is not None:
                entry["layers"][layer_name] = _describe(slot)
                for part in slot.state():
                    tensors |= {tensor_key(name, layer_name, key): _plain(tensor) for key, tensor in part.items()}
        for key in roster.extras[name]:
            if roster.merged is not None and key.removesuffix(".weight") in layers:
                raise RuntimeError(f"save: {key!r} is trained and merged; call adapters.unmerge first")
            entry["extras"][key] = list(own[key].shape)
            tensors[extra_key(name, key)] = _plain(own[key])
        adapters[name] = entry
    active = [[name, weight] for name, weight in roster.active if name in chosen]
    document = {"format": FORMAT, "version": VERSION, "active": active, "adapters": adapters}
    if any(map(sharded, model.parameters())) and torch.distributed.get_rank() != 0:
        return
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, allow_nan=False)
    write_file(folder / TENSOR_FILE, lambda place: torch_files.save_file(tensors, place, metadata={"format": FORMAT}))
    write_file(folder / JSON_FILE, lambda place: Path(place).write_text(text, encoding="utf-8"))


def load(
    model: nn.Module, directory: str | os.PathLike[str], name: str | None = None, trainable: bool = False
) -> tuple[Attached, ...]:
    """Put the adapters of a folder on a model that has none of their names; those active when saved become active,
    last.

    Args:
        name: another name for the adapter, if the folder holds one.
        trainable: freeze all else and train the loaded adapters, as after ``attach``. By default nothing that is
            loaded trains and what else trains is left alone.
    Raises: CheckpointError for files that are damaged, hostile, of another version, or do not fit the model;
        ValueError for a name that is taken. The model is not changed then.
    """
    folder = Path(directory)
    with refusing():
        document = _read_json(folder / JSON_FILE)
        plan = plan_load(model, document, name)
        tensors = _read_tensors(folder / TENSOR_FILE, plan)
        planned = plan.build(tensors)
    names = tuple(planned)
    extras = {one: plan.extras[one] for one in names}
    reports = commit(model, planned, extras, trainable=names if trainable else (), active=plan.active)
    own = parameters_by_name(model)
    with torch.no_grad():
        for one in names:
            for key in extras[one]:
                own[key].copy_(tensors[extra_key(plan.names[one], key)])
    return tuple(reports)


def tensor_key(adapter: str, layer: str, tensor: str) -> str:
    """The name of an adapter's tensor in the file."""
    return f"{adapter}/layers/{layer}/{tensor}"


def extra_key(adapter: str, parameter: str) -> str:
    """The name in the file of a parameter of the model itself."""
    return f"{adapter}/extras/{parameter}"


# -- writing ----------------------------------------------------------------------------------------------------------


def _describe(slot: Slot) -> dict[str, Any]:
    target = slot.target
    sizes = {"out_features": target.out_features, "in_features": target.in_features}
    shape = {"kernel": list(target.kernel), "groups": target.groups}
    written = to_json(slot.method)
    return {"kind": target.kind, **sizes, **shape, "method": written["name"], "parameters": written["parameters"]}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return gathered(tensor.detach()).to("cpu", copy=True).contiguous()


def write_file(place: Path, write: Callable[[str], object]) -> None:
    """Write beside the place, then move there: an interrupted call leaves no half a file."""
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=place.name + ".")
    os.close(handle)
    try:
        write(temporary)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes private files; a saved adapter is an ordinary one
        os.replace(temporary, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


# -- reading ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Errors about a file quote it, and are cut where what they quote has no end."""
    try:
        yield
    except CheckpointError as error:
        said = str(error)
        if len(said) <= LONGEST_ERROR:
            raise
        raise CheckpointError(f"{said[: LONGEST_ERROR - 4]} ...") from None


def read_object(place: Path) -> Any:
    """The value in a file of JSON of limited size, in which no key is repeated; CheckpointError if it is damaged."""
    _require_file(place)
    size = place.stat().st_size
    if size > JSON_LIMIT:
        raise CheckpointError(f"{place}: {size:,} bytes; at most {JSON_LIMIT:,} are read")
    try:
        text = place.read_bytes().decode("utf-8")
        return json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} is damaged: {type(error).__name__}: {error}") from error


def _read_json(place: Path) -> dict[str, Any]:
    document = read_object(place)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{place} is no file of structmat adapters: its format is not {FORMAT!r}")
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        raise CheckpointError(
            f"{place} has version {version!r}; this structmat reads version {VERSION}; update structmat if it is newer"
        )
    return document


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _require_file(place: Path) -> None:
    if not place.is_file():
        raise CheckpointError(
            f"{place} does not exist or is no file; an adapter saved by structmat is a folder with {JSON_FILE} and "
            f"{TENSOR_FILE}, and from_peft and from_lycoris read those of peft and lycoris"
        )


@contextlib.contextmanager
def opened(place: Path, limit: int) -> Iterator[Any]:
    """The file of tensors, its header limited before a parser sees it."""
    _require_file(place)
    with place.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > limit:
        raise CheckpointError(
            f"{place} is damaged or not meant for this model: its header claims {header:,} bytes, at most "
            f"{limit:,} are read"
        )
    safetensors = need("safetensors", "adapters")
    try:
        with safetensors.safe_open(str(place), framework="pt", device="cpu") as handle:
            yield handle
    except CheckpointError:
        raise
    except Exception as error:  # the parser's own exception class, and OSError, say what is damaged
        raise CheckpointError(f"{place} is damaged: {error}") from error


def _read_tensors(place: Path, plan: Plan) -> dict[str, torch.Tensor]:
    expected = plan.expected()
    limit = 2**20 + sum(len(key.encode()) + 512 for key in expected)
    with opened(place, limit) as handle:
        held = set(handle.keys())
        for kind, keys in (("lacks", expected.keys() - held), ("holds the unknown", held - expected.keys())):
            if keys:
                raise CheckpointError(
                    f"{place} {kind} tensor {min(keys)!r} ({len(keys)} in all), which does not fit {JSON_FILE}"
                )
        for key, (shape, dtype) in expected.items():
            described = handle.get_slice(key)
            found, written = tuple(described.get_shape()), described.get_dtype()
            if found != shape:
                raise CheckpointError(f"{place}: {key!r} has shape {found}, the model and its method need {shape}")
            if written != _NAMES[dtype] and not (dtype.is_floating_point and written in _FLOATS):
                raise CheckpointError(f"{place}: {key!r} has dtype {written}, which is not {_NAMES[dtype]}")
        tensors = {key: handle.get_tensor(key) for key in expected}
    _check_finite(place, tensors)
    return tensors


def _check_finite(place: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{place}: {key!r} holds numbers that are not finite")
