"""Weighted sums of additive adapters as one adapter of the same method, exactly."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from structmat.adapters.flora import FLoRA
from structmat.adapters.method import State, Target
from structmat.adapters.peft.config import StructmatConfig, StructmatFloraConfig, StructmatSurmConfig
from structmat.adapters.surm import SURM
from structmat.types.tucker import Tucker

if TYPE_CHECKING:
    from structmat.adapters.peft.layer import StructmatLayer

__all__ = ["config", "state"]

_WAY_OUT = "make a LoRA of each with peft's convert_to_lora, and combine those"
_LINEAR = ("circulant", "skew", "toeplitz", "symmetric_toeplitz")


def config(given: Sequence[Any]) -> StructmatConfig:
    """The configuration of the sum; ValueError if these have none."""
    first = given[0]
    what = f"add_weighted_adapter: {type(first).__name__}"
    if not isinstance(first, (StructmatFloraConfig, StructmatSurmConfig)):
        raise ValueError(f"{what}: a rotation has no multiples and no sums; {_WAY_OUT}")
    for field in ("layers_to_transform", "layers_pattern", "modules_to_save"):
        if any(getattr(one, field) != getattr(first, field) for one in given):
            raise ValueError(f"{what}: the adapters differ in {field}")
    shared: dict[str, Any] = {"target_modules": _targets(given, what), "exclude_modules": _excluded(given, what)}
    if isinstance(first, StructmatFloraConfig):
        return dataclasses.replace(first, ranks=_ranks(given, what), **shared)
    if any(one.structure != first.structure for one in given):
        raise ValueError(f"{what}: the adapters have the structures {[one.structure for one in given]}; {_WAY_OUT}")
    if first.structure == "ldr":
        return dataclasses.replace(first, rank=sum(one.rank or 1 for one in given), **shared)
    products = [one for one in given if one.form == "product" and one.structure != "circulant"]
    if first.structure not in _LINEAR or products:
        raise ValueError(f"{what}: sums of {first.structure} matrices of this form are no such matrix; {_WAY_OUT}")
    return dataclasses.replace(first, form="direct", **shared)


def _targets(given: Sequence[Any], what: str) -> Any:
    """All names that any of the adapters has; of regular expressions the alternative."""
    found = [one.target_modules for one in given]
    if all(isinstance(one, str) for one in found):
        distinct = list(dict.fromkeys(found))
        return distinct[0] if len(distinct) == 1 else "|".join(f"(?:{one})" for one in distinct)
    if any(isinstance(one, str) for one in found):
        raise ValueError(f"{what}: target_modules are lists for some of the adapters, expressions for others")
    return sorted(set().union(*found))


def _excluded(given: Sequence[Any], what: str) -> Any:
    found = given[0].exclude_modules
    if any(one.exclude_modules != found for one in given):
        raise ValueError(f"{what}: the adapters differ in exclude_modules")
    return sorted(found) if isinstance(found, set) else found


def _ranks(given: Sequence[Any], what: str) -> int | list[int]:
    if all(isinstance(one.ranks, int) for one in given):
        return sum(one.ranks for one in given)
    lengths = {len(one.ranks) for one in given if not isinstance(one.ranks, int)}
    if len(lengths) > 1:
        raise ValueError(f"{what}: the adapters give ranks for {sorted(lengths)} modes")
    count = lengths.pop()
    lists = [[one.ranks] * count if isinstance(one.ranks, int) else list(one.ranks) for one in given]
    return [sum(column) for column in zip(*lists, strict=True)]


def state(layer: "StructmatLayer", names: Sequence[str], weights: Sequence[float], new: str) -> dict[str, torch.Tensor]:
    """The trained tensors of the sum on one layer; an adapter that the layer does not have counts as zero."""
    method, target = layer.methods[new]
    parts = [
        (layer.methods[name][0], layer.state(name), weight * layer.scaling[name])
        for name, weight in zip(names, weights, strict=True)
        if name in layer.methods
    ]
    with torch.no_grad():
        if isinstance(method, FLoRA):
            return _tucker(method, parts, target)
        assert isinstance(method, SURM)
        return _generators(method, parts, target) if method.structure == "ldr" else _numbers(method, parts)


def _numbers(method: SURM, parts: Sequence[tuple[Any, State, float]]) -> dict[str, torch.Tensor]:
    """Circulant and Toeplitz matrices add up number by number."""
    terms = []
    for one, (trained, _), weight in parts:
        # A product takes half the scale (structmat.adapters.surm), the sum is written without one.
        entries = 0.5 * trained["entries"] * trained["second"] if "second" in trained else trained["entries"]
        terms.append(entries * (weight * one.scale / method.scale))
    return {"entries": torch.stack(terms).sum(0)}


def _generators(method: SURM, parts: Sequence[tuple[Any, State, float]], target: Target) -> dict[str, torch.Tensor]:
    """``sum_k Z_1(g_k) Z_-1(h_k)``: the pairs of all, and pairs of zeros where the layer lacks an adapter."""
    rank = method.rank or 1
    scale = [weight * one.scale / (one.rank or 1) / (method.scale / rank) for one, _, weight in parts]
    pairs = [
        torch.cat(
            [(s if key == "entries" else 1.0) * part.trained[key] for s, (_, part, _) in zip(scale, parts, strict=True)]
        )
        for key in ("entries", "second")
    ]
    missing = rank - len(pairs[0])
    first, second = (torch.cat([t, t.new_zeros(missing, t.shape[1])]) for t in pairs)
    return {"entries": first, "second": second}


def _tucker(method: FLoRA, parts: Sequence[tuple[Any, State, float]], target: Target) -> dict[str, torch.Tensor]:
    """Tucker tensors add up with block diagonal cores; where a mode then has more columns than rows, its factor's QR
    brings it back.
    """
    added = [(one.update(part, target), weight) for one, part, weight in parts]
    tensors: list[tuple[Tucker, float]] = [(update.matrix, weight * update.scale) for update, weight in added]
    sizes, ranks = method.modes(target)
    inner = [[tensor.factors[k].shape[1] for tensor, _ in tensors] for k in range(len(sizes))]
    core = tensors[0][0].core.new_zeros([max(sum(r), rank) for r, rank in zip(inner, ranks, strict=True)])
    at = [0] * len(sizes)
    for tensor, weight in tensors:
        place = tuple(slice(a, a + r) for a, r in zip(at, tensor.core.shape, strict=True))
        core[place] = weight * tensor.core
        at = [piece.stop for piece in place]
    found = {}
    for k, (d, rank) in enumerate(zip(sizes, ranks, strict=True)):
        factor = torch.cat([tensor.factors[k] for tensor, _ in tensors], 1)
        if factor.shape[1] > rank:
            factor, small = torch.linalg.qr(factor)
            core = torch.tensordot(small, core, dims=([1], [k])).movedim(0, k)
        found[f"factor{k}"] = torch.cat([factor, factor.new_zeros(d, rank - factor.shape[1])], 1)
    unit = method.update(State({"core": torch.ones_like(core), **found}, {}), target)
    assert isinstance(unit.matrix, Tucker)
    found["core"] = core / (unit.scale * unit.matrix.core.flatten()[0])
    return found
