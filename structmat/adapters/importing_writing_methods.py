"""Each of our methods in PEFT's terms: its kind, the fields of the configuration, and the tensors."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from structmat.adapters.boft import BOFT, OFT
from structmat.adapters.hra import HRA
from structmat.adapters.importing_additions import C3A, LoHa, LoKr
from structmat.adapters.importing_rotations import NeumannOFT, Reflections
from structmat.adapters.layer import Slot
from structmat.adapters.lora import LoRA
from structmat.adapters.method import State, Target
from structmat.adapters.pace import rotation_scale
from structmat.adapters.surm import SURM
from structmat.errors import StructureError
from structmat.functional.orthogonal import skew

__all__ = ["Written", "common", "factorisation", "written"]

Tensors = Mapping[str, torch.Tensor]
_WAY_OUT = "convert it with adapters.to_lora, or merge"


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
    """One layer: PEFT's kind, the fields all layers must agree on, rank and alpha of its own, and its tensors."""

    kind: str
    fields: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    rank: int | None = None
    alpha: float | None = None
    blocks: tuple[int, int] | None = None  # OFT and BOFT: size and number of the blocks
    sizes: tuple[int, int, int, int] | None = None  # LoKr: out, in, and those of the first factor
    low: bool = False  # LoKr: the first factor is factored


def written(slot: Slot, layer: nn.Module, as_boft: bool) -> Written:
    """An adapter on one layer, or StructureError. ``as_boft``: OFT as a BOFT of one factor."""
    method, target, state = slot.method, slot.target, slot.state()
    tensors = {**state.trained, **state.frozen}
    writer = _WRITERS.get(type(method))
    if writer is None:
        raise _refuse(method, target, f"PEFT has no such method; {_WAY_OUT}")
    _check_layer(method, target, layer)
    return writer(method, target, tensors, as_boft)


def _refuse(method: object, target: Target, reason: str) -> StructureError:
    return StructureError(f"to_peft: {method!r} on {target.name!r}, a {target.kind}: {reason}")


def _check_layer(method: Any, target: Target, layer: Any) -> None:
    """PEFT computes the weight's own change on this layer."""
    kinds = {LoRA: ("Conv1D", "Embedding", "Conv1d", "Conv2d", "Conv3d"), C3A: (), OFT: ("Conv2d",), NeumannOFT: ()}
    more = kinds.get(type(method), ("Conv2d",))
    if target.kind not in ("Linear", "Opaque", *more):
        raise _refuse(method, target, f"PEFT's method takes Linear{''.join(', ' + k for k in more)}; {_WAY_OUT}")
    if not target.kernel:
        return
    plain = layer.padding_mode == "zeros"
    if not isinstance(method, (LoRA, LoHa, LoKr)):
        plain = plain and set(layer.dilation) == {1} and not isinstance(layer.padding, str)
        plain = plain and all(len(set(v)) == 1 for v in (target.kernel, layer.stride, layer.padding))
    if not plain or target.groups > 1:
        raise _refuse(method, target, f"PEFT ignores the layer's padding mode, dilation, groups or shape; {_WAY_OUT}")


def common(parts: Mapping[str, Written]) -> dict[str, Any]:
    """The configuration that all layers share; StructureError where they differ."""
    first = next(iter(parts.values()))
    config: dict[str, Any] = {"peft_type": first.kind}
    for name, part in parts.items():
        for key, value in {"peft_type": part.kind, **part.fields}.items():
            if config.setdefault(key, value) != value:
                raise StructureError(
                    f"to_peft: {name!r} needs {key} = {value!r}, another layer {config[key]!r}, and one PEFT adapter "
                    "has one configuration; attach them under two names"
                )
    if first.blocks is not None:
        config |= _blocks(first.kind, {part.blocks for part in parts.values() if part.blocks is not None})
    if first.kind not in ("LOHA", "LOKR"):
        config["bias"] = "none"
    if first.rank is not None:
        alpha = "lora_alpha" if first.kind == "LORA" else "alpha"
        config |= {"r": first.rank, alpha: first.alpha}
        patterns = {f"^{_escaped(name)}": part for name, part in parts.items()}
        config["rank_pattern"] = {key: p.rank for key, p in patterns.items() if p.rank != first.rank}
        config["alpha_pattern"] = {key: p.alpha for key, p in patterns.items() if p.alpha != first.alpha}
    if first.sizes is not None:
        config |= {"decompose_factor": _factor(parts), "decompose_both": any(part.low for part in parts.values())}
        for name, part in parts.items():
            if config["decompose_both"] and not part.low and part.sizes and (part.rank or 0) < max(part.sizes[2:]) / 2:
                raise StructureError(f"to_peft: PEFT would factor the first factor of {name!r} too; {_WAY_OUT}")
    return config


def _blocks(kind: str, found: set[tuple[int, int]]) -> dict[str, Any]:
    """One size for all layers, or else one number."""
    sizes, numbers = {b for b, _ in found}, {k for _, k in found}
    size, number = ("oft_block_size", "r") if kind == "OFT" else ("boft_block_size", "boft_block_num")
    if len(sizes) == 1:
        return {size: sizes.pop(), number: 0}
    if len(numbers) == 1:
        return {size: 0, number: numbers.pop()}
    raise StructureError(f"to_peft: one {kind} of PEFT has one size or one number of blocks, here are {sorted(found)}")


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


# -- rotations --------------------------------------------------------------------------------------------------------


def _oft(method: OFT, target: Target, tensors: Tensors, as_boft: bool) -> Written:
    b, k = method.sizes(target.columns, target.name)
    entries = tensors["skew"] * rotation_scale(b, 1, method.step)
    if as_boft:
        return _butterfly(entries.expand(k, -1)[None], b, target, tensors)
    fields = {"block_share": method.shared, "use_cayley_neumann": False, "coft": False}
    return Written("OFT", fields, {"oft_R.weight": _upper(entries, b)}, blocks=(b, k))


def _upper(entries: torch.Tensor, b: int) -> torch.Tensor:
    rows, columns = torch.triu_indices(b, b, 1)
    return skew(entries, b)[:, rows, columns]


def _neumann(method: NeumannOFT, target: Target, tensors: Tensors, as_boft: bool) -> Written:
    b = method.block
    fields = {"block_share": method.shared, "use_cayley_neumann": True, "num_cayley_neumann_terms": method.terms}
    found = {"oft_R.weight": _upper(tensors["skew"], b)}
    return Written("OFT", fields | {"coft": False}, found, blocks=(b, target.columns // b))


def _boft(method: BOFT, target: Target, tensors: Tensors, as_boft: bool) -> Written:
    if "skew" not in tensors:
        raise _refuse(method, target, f"PEFT has no mixed radix; {_WAY_OUT}")
    entries = tensors["skew"] * rotation_scale(method.block, method.factors, method.step)
    return _butterfly(entries, method.block, target, tensors)


def _butterfly(entries: torch.Tensor, b: int, target: Target, tensors: Tensors) -> Written:
    scales = tensors["scales"] if "scales" in tensors else entries.new_ones(target.out_features)
    fields = {"boft_n_butterfly_factor": entries.shape[0]}
    shaped = scales[None] if target.kind == "Conv2d" else scales[:, None]
    return Written("BOFT", fields, {"boft_R": skew(entries, b), "boft_s": shaped}, blocks=(b, entries.shape[1]))


def _hra(method: HRA, target: Target, tensors: Tensors, as_boft: bool) -> Written:
    # Where a frozen reference belongs to the start (odd rank, orthonormal vectors), its reflections are written too.
    state = State(
        *({key: t for key, t in tensors.items() if (key == "reference") == frozen} for frozen in (False, True))
    )
    vectors = method.rotation(state).vectors
    return Written("HRA", {"apply_GS": False, "r": vectors.shape[0]}, {"hra_u": vectors.mT})


def _reflections(method: Reflections, target: Target, tensors: Tensors, as_boft: bool) -> Written:
    return Written("HRA", {"apply_GS": method.orthonormal, "r": method.rank}, {"hra_u": tensors["vectors"].mT})


# -- additions --------------------------------------------------------------------------------------------------------


def _lora(method: LoRA, target: Target, tensors: Tensors, as_boft: bool) -> Written:
    r, alpha = method.rank, float(method.rank if method.alpha is None else method.alpha)
    a, b = tensors["right"].mT, tensors["left"]
    if target.kernel:
        a = a.reshape(r, target.in_features, *target.kernel)
        b = b.reshape(*b.shape, *(1,) * len(target.kernel))
    keys = (
        ("lora_embedding_A", "lora_embedding_B") if target.kind == "Embedding" else ("lora_A.weight", "lora_B.weight")
    )
    return Written("LORA", {}, dict(zip(keys, (a, b), strict=True)), r, alpha)


def _c3a(method: C3A, target: Target, tensors: Tensors, as_boft: bool) -> Written:
    return Written("C3A", {"block_size": method.block}, {"c3a_kernel": tensors["kernel"]})


def _loha(method: LoHa, target: Target, tensors: Tensors, as_boft: bool) -> Written:
    found: dict[str, torch.Tensor] = {}
    for k in (1, 2):
        left = tensors[f"left{k}"]
        found |= {f"hada_w{k}_a": left.mT if method.tucker else left, f"hada_w{k}_b": tensors[f"right{k}"].mT}
        if method.tucker:
            found[f"hada_t{k}"] = tensors[f"core{k}"]
    alpha = float(method.rank if method.alpha is None else method.alpha)
    fields = {"use_effective_conv2d": method.tucker} if math.prod(target.kernel) > 1 else {}
    return Written("LOHA", fields, found, method.rank, alpha)


def _lokr(method: LoKr, target: Target, tensors: Tensors, as_boft: bool) -> Written:
    (a, c), m, n = method.shape, target.out_features, target.in_features
    b, d = m // a, n // c
    # PEFT decides from the rank what is factored: full above half the larger size, which the rank here must give.
    r = max(a, b, c, d) if method.rank is None else method.rank
    both = method.first == "low"
    if (both and r >= max(a, c) / 2) or (method.second == "full") != (r >= max(b, d) / 2):
        raise _refuse(method, target, f"PEFT factors other parts of this product at rank {r}; {_WAY_OUT}")
    found: dict[str, torch.Tensor] = {}
    if both:
        found |= {"lokr_w1_a": tensors["first_left"], "lokr_w1_b": tensors["first_right"].mT}
    else:
        found["lokr_w1"] = tensors["first"]
    if method.second == "full":
        whole = tensors["second"]
        found["lokr_w2"] = whole.reshape(b, d, *target.kernel)
    else:
        tucker = method.second == "tucker"
        left = tensors["second_left"]
        found |= {"lokr_w2_a": left.mT if tucker else left, "lokr_w2_b": tensors["second_right"].mT}
        if tucker:
            found["lokr_t2"] = tensors["second_core"]
    fields: dict[str, Any] = {}
    if math.prod(target.kernel) > 1 and method.second != "full":
        fields["use_effective_conv2d"] = method.second == "tucker"
    return Written("LOKR", fields, found, r, method.scale * r, sizes=(m, n, a, c), low=both)


def _surm(method: SURM, target: Target, tensors: Tensors, as_boft: bool) -> Written:
    if method.structure != "kronecker":
        raise _refuse(method, target, f"PEFT has no {method.structure} matrices; {_WAY_OUT}")
    if target.kernel:
        raise _refuse(method, target, f"PEFT's product has the channels alone in its first factor; {_WAY_OUT}")
    first, second = tensors["entries"], tensors["second"]
    scale = 0.5 * method.scale * math.sqrt(3 / second.shape[-2])
    found = {"first": first, "second": second}
    return _lokr(LoKr((first.shape[0], first.shape[1]), scale=scale), target, found, as_boft)


def factorisation(size: int, factor: int) -> tuple[int, int]:
    """How PEFT splits a size: by ``factor`` if that divides it, else into two factors as near to each other as can be,
    the smaller one first and at most ``factor`` (-1: no limit).
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = size if factor == -1 else factor
    best = max(k for k in range(1, math.isqrt(size) + 1) if size % k == 0 and k <= limit)
    return best, size // best


def _factor(parts: Mapping[str, Written]) -> int:
    """The decompose_factor that splits all layers as they are."""
    sizes = {name: part.sizes for name, part in parts.items() if part.sizes is not None}
    largest = max(max(s) for s in sizes.values())
    for factor in (-1, *range(1, largest + 1)):
        if all((factorisation(m, factor)[0], factorisation(n, factor)[0]) == (a, c) for m, n, a, c in sizes.values()):
            return factor
    shown = ", ".join(f"{name!r} ({m} x {n}) as {a} x {c}" for name, (m, n, a, c) in list(sizes.items())[:3])
    raise StructureError(f"to_peft: no decompose_factor of PEFT's LoKr splits {shown}; {_WAY_OUT}")


_WRITERS: dict[type, Callable[[Any, Target, Tensors, bool], Written]] = {
    OFT: _oft,
    BOFT: _boft,
    NeumannOFT: _neumann,
    HRA: _hra,
    Reflections: _reflections,
    LoRA: _lora,
    C3A: _c3a,
    LoHa: _loha,
    LoKr: _lokr,
    SURM: _surm,
}
