"""Adapters that LyCORIS saved (boft, diag-oft, lokr), read without LyCORIS."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from structmat.adapters.checkpoint import refusing
from structmat.adapters.importing import Found, Imported, names_of, put, read_all, target_of
from structmat.adapters.importing_peft_tuners import kronecker
from structmat.adapters.importing_rotations import OutputBOFT
from structmat.adapters.method import Target, near
from structmat.adapters.tree import Place
from structmat.errors import CheckpointError
from structmat.functional.orthogonal import skew_entries

__all__ = ["from_lycoris"]

_ROTATION = {"oft_blocks", "rescale", "alpha"}
_KRONECKER = {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha"}


def from_lycoris(
    model: nn.Module,
    file: str | os.PathLike[str],
    name: str = "default",
    *,
    prefix: str = "lycoris",
    trainable: bool = False,
) -> Imported:
    """Put an adapter that LyCORIS saved on a model: boft, diag-oft and lokr, one or several in a file.

    The layers then compute what LyCORIS's compute with multiplier 1, up to rounding. Its rotations act on the outputs
    of a layer (methods ``OutputBOFT``; ``BOFT`` and ``OFT`` here act on the inputs, as in the papers), a constraint is
    applied once, when the file is read. Its lokr becomes ``LoKr``.

    Args:
        file: a safetensors file; a pickle (.pt, .ckpt) is never read.
        name: the adapter's name here.
        prefix: what the names in the file begin with: "lycoris", or "lora_unet" and the like for files of trainers,
            one for each model they hold; names of another prefix are refused.
        trainable: freeze all else and train it, as after ``attach``.
    Raises:  CheckpointError for files that are damaged, hostile, do not fit the model, or hold other methods. The
        model is not changed then.
    """
    source = Path(file)
    if source.suffix != ".safetensors":
        raise CheckpointError(
            f"{source} is no .safetensors file; a pickle can run any program when it is read: load it with lycoris "
            "where you trust it, and save it as .safetensors"
        )
    known = names_of(model)
    with refusing():
        found = _read_file(source, known, _flattened(known, prefix))
        return put(model, found, {}, name=name, trainable=trainable, source=source, verb="from_lycoris")


def _read_file(source: Path, known: Mapping[str, Place], called: Mapping[str, list[str]]) -> dict[str, Found]:
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in read_all(source).items():
        flat, _, suffix = key.partition(".")
        grouped.setdefault(flat, {})[suffix] = tensor
    found: dict[str, Found] = {}
    for flat, tensors in grouped.items():
        if flat not in called:
            raise CheckpointError(
                f"{source} adapts {flat!r}, which the model does not have; {near(flat[:200], called)}"
            )
        if len(called[flat]) > 1:
            raise CheckpointError(f"{source}: {flat!r} may stand for any of {', '.join(map(repr, called[flat]))}")
        layer = called[flat][0]
        target = target_of(layer, known, source)
        try:
            found[layer] = _read(tensors, target)
        except Exception as error:  # whatever hostile numbers lead to
            said = f"lacks the tensor {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{source}, layer {layer!r}: {said}") from error
    return found


def _flattened(known: Mapping[str, Place], prefix: str) -> dict[str, list[str]]:
    """The names of the layers as LyCORIS writes them, dots as underscores, which may make two of them one."""
    found: dict[str, list[str]] = {}
    for place in dict.fromkeys(known.values()):
        found.setdefault(f"{prefix}_{place.name}".replace(".", "_"), []).append(place.name)
    return found


def _read(tensors: Mapping[str, torch.Tensor], target: Target) -> Found:
    if "oft_blocks" in tensors:
        _only(tensors, _ROTATION)
        return _rotation(tensors, target)
    if "lokr_w1" in tensors or "lokr_w1_a" in tensors:
        _only(tensors, _KRONECKER)
        whole = "lokr_w1" in tensors and "lokr_w2" in tensors
        if whole:
            return kronecker(tensors, target, 1.0)
        rank = tensors["lokr_w2_b" if "lokr_w2_b" in tensors else "lokr_w1_b"].shape[0]
        return kronecker(tensors, target, float(tensors["alpha"]) / rank)
    raise ValueError(
        f"holds {', '.join(sorted(tensors))}; read are boft, diag-oft and lokr; merge others in lycoris (merge_to)"
    )


def _only(tensors: Mapping[str, torch.Tensor], known: set[str]) -> None:
    unknown = sorted(set(tensors) - known)
    if unknown:
        raise ValueError(f"holds {', '.join(unknown)}, which is not read here; merge it in lycoris (merge_to)")


def _rotation(tensors: Mapping[str, torch.Tensor], target: Target) -> Found:
    """Blocks P with ``Q = P - P^T``. diag-oft applies ``((I + Q) (I - Q)^-1)^T``, which is ours with K = Q; boft
    applies ``(I + Q) (I - Q)^-1``, ours with K = -Q, to pairs of entries that it interleaves.
    """
    blocks = tensors["oft_blocks"].double()
    q = blocks - blocks.mT
    limit = float(tensors["alpha"]) * target.out_features
    size = float(torch.linalg.vector_norm(q)) + 1e-8
    if limit > 0 and size > limit:
        q = q * (limit / size)
    b = blocks.shape[-1]
    if blocks.ndim == 3:
        entries, factors = skew_entries(q)[None], 1
    elif blocks.ndim == 4:
        half = torch.arange(b).reshape(b // 2, 2).mT.flatten()  # ours at (g, t) is theirs at (t, g)
        entries, factors = skew_entries(-q[..., half, :][..., half]), blocks.shape[0]
    else:
        raise ValueError(f"oft_blocks has {blocks.ndim} axes; diag-oft has 3, boft 4")
    found = {"skew": entries}
    if "rescale" in tensors:
        found["scales"] = tensors["rescale"].flatten()
    return Found(OutputBOFT(b, factors, scale="rescale" in tensors), found)
