"""How each of PEFT's methods stores its tensors, in our terms; a file whose tensors contradict its configuration is
refused, naming both.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from structmat.adapters.boft import BOFT, OFT
from structmat.adapters.hra import HRA
from structmat.adapters.importing import Found
from structmat.adapters.importing_additions import C3A, LoHa, LoKr
from structmat.adapters.importing_rotations import NeumannOFT, Reflections
from structmat.adapters.lora import LoRA
from structmat.adapters.method import State, Target
from structmat.functional.orthogonal import cayley, skew, skew_entries

__all__ = ["READERS", "Config", "Reader", "adjusted", "block_of"]

Tensors = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Config:
    """adapter_config.json: its method, its fields, and where it lies."""

    kind: str
    fields: Mapping[str, Any]
    place: Path

    def integer(self, key: str, default: int) -> int:
        """A whole number."""
        value = self.fields.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{self.place.name}: {key} must be an integer, got {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        return _finite(self, key, self.fields.get(key, default))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.fields.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.place.name}: {key} must be true or false, got {value!r}")
        return value

    def of_layer(self, pattern: str, key: str, layer: str, default: float) -> float:
        """The number of a layer: that of the first entry of a pattern that ends its name, else the common one."""
        entries = self.fields.get(pattern) or {}
        if not isinstance(entries, dict):
            raise ValueError(f"{self.place.name}: {pattern} must be an object, got {entries!r}")
        for expression, value in entries.items():
            if _ends(expression, layer):
                return _finite(self, pattern, value)
        return self.number(key, default)

    def require(self, shown: str, key: str, told: object, seen: object, hint: str = "") -> None:
        """ValueError where a tensor contradicts a field."""
        if told != seen:
            raise ValueError(f"{shown} means {key} = {seen}, and {self.place.name} says {key} = {told}{hint}")


@dataclasses.dataclass(frozen=True)
class Reader:
    """One method of PEFT: how its tensors are called, the fields that matter, and how they are read."""

    prefix: str
    suffixes: tuple[str, ...]
    fields: frozenset[str]
    read: Callable[[Config, str, Target, Tensors], Found]
    orthogonal: Callable[[Found], Found] | None = None


def _finite(config: Config, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise ValueError(f"{config.place.name}: {key} must hold numbers, got {value!r}")
    return value


def _ends(expression: str, layer: str) -> bool:
    """PEFT reads a key of a pattern as an expression for the end of a name; one that could run for ever is refused."""
    wild = sum(expression.count(sign) for sign in "*+{")
    if len(expression) > 300 or wild > 3 or re.search(r"\)[*+{]", expression):
        raise ValueError(f"the pattern {expression[:60]!r} is more than an expression for the end of a name")
    try:
        return re.match(rf"(.*\.)?({expression})$", layer) is not None
    except re.error as error:
        raise ValueError(f"the pattern {expression[:60]!r} is no regular expression: {error}") from None


def _shown(suffix: str, tensor: torch.Tensor) -> str:
    return f"{suffix} of shape {tuple(tensor.shape)}"


# -- rotations --------------------------------------------------------------------------------------------------------

_SILENT_ONE = "; peft trains 1 factor without its CUDA extension: if that is so here, correct the configuration"


def _boft(config: Config, layer: str, target: Target, tensors: Tensors) -> Found:
    blocks = tensors["boft_R"]
    shown, (m, k, b, _) = _shown("boft_R", blocks), blocks.shape
    told = config.integer("boft_n_butterfly_factor", 1)
    config.require(shown, "boft_n_butterfly_factor", told, m, _SILENT_ONE)
    for key, seen in (("boft_block_size", b), ("boft_block_num", k)):
        if config.integer(key, 0):
            config.require(shown, key, config.integer(key, 0), seen)
    method = BOFT(b, m, step="paper")
    return Found(method, {"skew": skew_entries(blocks), "scales": tensors["boft_s"].flatten()})


def block_of(entries: int) -> int:
    """b of ``b (b - 1) / 2`` entries."""
    return (1 + math.isqrt(1 + 8 * entries)) // 2


def adjusted(size: int, wanted: int) -> int:
    """The divisor of ``size`` that PEFT takes for ``wanted``: itself, or the nearest one."""
    if wanted < 1:
        raise ValueError(f"a size or number of blocks is at least 1, got {wanted}")
    if wanted >= size:
        return size
    below = next(k for k in range(wanted, 0, -1) if size % k == 0)
    above = next(k for k in range(wanted, size + 1) if size % k == 0)
    return below if wanted - below <= above - wanted else above


def _oft(config: Config, layer: str, target: Target, tensors: Tensors) -> Found:
    if "oft_embedding_R.weight" in tensors:
        raise ValueError("a rotation of an embedding's output is not a change of a layer's input; merge it in peft")
    if math.prod(target.kernel) > 1:
        raise ValueError(
            "peft's OFT of a convolution adds up overlapping patches, so that it is no change of the weight, and "
            "differs from peft's own merged model; merge it in peft, or train with BOFT"
        )
    weight = tensors["oft_R.weight"]
    shown, (k, entries), n = _shown("oft_R.weight", weight), weight.shape, target.columns
    b, shared = block_of(entries), config.flag("block_share", False)
    size, rank = config.integer("oft_block_size", 0), config.integer("r", 0)
    if size:
        config.require(shown, "oft_block_size", adjusted(n, size), b)
    elif rank:
        config.require(shown, "r", adjusted(n, rank), n // b)
    upper = torch.zeros(k, b, b, dtype=weight.dtype)
    rows, columns = torch.triu_indices(b, b, 1)
    upper[:, rows, columns] = weight
    lower = -upper.mT[:, *torch.tril_indices(b, b, -1)]  # Q = U - U^T = L - L^T with L = -U^T
    constraint = config.number("eps", 6e-5) if config.flag("coft", False) else None
    exact = OFT(block=b, shared=shared, constraint=constraint, scale=False, step="paper")
    found = {"skew": lower.clone()}
    exact.project_(State(found, {}))  # peft projects in its forward, so the file may be one step outside
    if config.flag("use_cayley_neumann", True):
        return Found(NeumannOFT(b, config.integer("num_cayley_neumann_terms", 5), shared), found)
    return Found(exact, found)


def _exact(found: Found) -> Found:
    """The Cayley transform that a cut series stands for: ``(I + Q)(I - Q)^-1``, ours with K = -Q."""
    method = found.method
    if not isinstance(method, NeumannOFT):
        return found
    entries = found.tensors["skew"].double()
    rotation = cayley(skew(-entries, method.block))
    difference = torch.linalg.vector_norm(method.blocks(entries) - rotation) / math.sqrt(math.prod(rotation.shape[:2]))
    made = OFT(block=method.block, shared=method.shared, scale=False, step="paper")
    return Found(made, {"skew": -found.tensors["skew"]}, float(difference))


def _hra(config: Config, layer: str, target: Target, tensors: Tensors) -> Found:
    vectors = tensors["hra_u"].mT.contiguous()
    r = vectors.shape[0]
    config.require(_shown("hra_u", tensors["hra_u"]), "r", config.integer("r", 8), r)
    if not bool((vectors.norm(dim=1) > 0).all()):
        raise ValueError("hra_u has a column of zeros, for which peft computes NaN")
    if not config.flag("apply_GS", False):
        method = Reflections(r) if r % 2 else HRA(r, step="paper")
        return Found(method, {"vectors": vectors})
    basis: list[torch.Tensor] = []
    for v in vectors:
        for w in basis:
            v = v - (w @ v) * w
        basis.append(v / v.norm())
    lost = float((torch.stack(basis) @ torch.stack(basis).mT - torch.eye(r)).abs().max())
    if not lost < 1e-4:
        raise ValueError(
            f"peft's Gram-Schmidt process loses orthogonality on hra_u (error {lost:.1e}); merge it in peft"
        )
    return Found(Reflections(r, orthonormal=True), {"vectors": vectors})


# -- additions --------------------------------------------------------------------------------------------------------


def _c3a(config: Config, layer: str, target: Target, tensors: Tensors) -> Found:
    kernel = tensors["c3a_kernel"]
    told = config.of_layer("block_size_pattern", "block_size", layer, 256)
    config.require(_shown("c3a_kernel", kernel), "block_size", told, kernel.shape[-1])
    return Found(C3A(kernel.shape[-1]), {"kernel": kernel})


def _ranked(config: Config, layer: str, key: str, seen: int, alpha: str) -> tuple[int, float]:
    """Rank and alpha of a layer; the rank is that of its tensors."""
    told = config.of_layer("rank_pattern", "r", layer, 8)
    config.require(f"{key}, of rank {seen},", "r", told, seen)
    return seen, config.of_layer("alpha_pattern", alpha, layer, 8)


def _lora(config: Config, layer: str, target: Target, tensors: Tensors) -> Found:
    if "lora_embedding_A" in tensors:
        a, b = tensors["lora_embedding_A"], tensors["lora_embedding_B"]
    else:
        a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
    start = config.fields.get("init_lora_weights", True)
    if start not in (True, False, None, "gaussian", "eva", "orthogonal"):
        raise ValueError(
            f"init_lora_weights = {start!r} also changes the frozen weights; write a plain LoRA with peft's "
            "save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    if target.groups > 1:
        raise ValueError("peft's LoRA of a grouped convolution mixes its groups, which no weight of the layer does")
    r, alpha = _ranked(config, layer, "lora_A", a.shape[0], "lora_alpha")
    if config.flag("use_rslora", False):
        alpha = alpha * math.sqrt(r)  # peft scales by alpha / sqrt(r)
    left, right = b.flatten(1), a.flatten(1).mT
    if r > max(left.shape[0], right.shape[0]):  # more than any change needs: the same product at the layer's own rank
        left, right = torch.eye(left.shape[0], dtype=left.dtype), (right.double() @ left.double().mT).to(left.dtype)
        r, alpha = left.shape[1], alpha * left.shape[1] / r
    return Found(LoRA(r, alpha=float(alpha)), {"left": left, "right": right})


def _loha(config: Config, layer: str, target: Target, tensors: Tensors) -> Found:
    tucker = "hada_t1" in tensors
    r = tensors["hada_w1_b"].shape[0]
    r, alpha = _ranked(config, layer, "hada_w1_b", r, "alpha")
    found: dict[str, torch.Tensor] = {}
    for k in (1, 2):
        a = tensors[f"hada_w{k}_a"]
        found[f"left{k}"] = a.mT if tucker else a
        found[f"right{k}"] = tensors[f"hada_w{k}_b"].mT
        if tucker:
            found[f"core{k}"] = tensors[f"hada_t{k}"].reshape(r, r, *target.kernel)
    return Found(LoHa(r, alpha=float(alpha), tucker=tucker), found)


def _lokr(config: Config, layer: str, target: Target, tensors: Tensors) -> Found:
    whole = "lokr_w2" in tensors
    if whole and tensors["lokr_w2"].ndim == 3 and target.kernel != (1,):
        raise ValueError("peft's LoKr scrambles the taps of a Conv1d with a full second factor; merge it in peft")
    r = int(config.of_layer("rank_pattern", "r", layer, 8))
    alpha = config.of_layer("alpha_pattern", "alpha", layer, 8)
    for key in ("lokr_w1_b", "lokr_w2_b"):
        if key in tensors:
            config.require(_shown(key, tensors[key]), "r", r, tensors[key].shape[0])
    return kronecker(tensors, target, alpha / r)


def kronecker(tensors: Tensors, target: Target, scale: float) -> Found:
    """LoKr's tensors under the names that PEFT and LyCORIS share."""
    found: dict[str, torch.Tensor] = {}
    ranks: set[int] = set()
    low, second = "lokr_w1" not in tensors, "full"
    if low:
        found |= {"first_left": tensors["lokr_w1_a"], "first_right": tensors["lokr_w1_b"].mT}
        ranks.add(tensors["lokr_w1_b"].shape[0])
        shape = (tensors["lokr_w1_a"].shape[0], tensors["lokr_w1_b"].shape[1])
    else:
        found["first"] = tensors["lokr_w1"]
        shape = (tensors["lokr_w1"].shape[0], tensors["lokr_w1"].shape[1])
    if "lokr_w2" in tensors:
        found["second"] = tensors["lokr_w2"].flatten(1)
    else:
        right = tensors["lokr_w2_b"]
        ranks.add(right.shape[0])
        second = "tucker" if "lokr_t2" in tensors else "low"
        left = tensors["lokr_w2_a"]
        found |= {"second_left": left.mT if second == "tucker" else left, "second_right": right.flatten(1).mT}
        if second == "tucker":
            r = right.shape[0]
            found["second_core"] = tensors["lokr_t2"].reshape(r, r, *target.kernel)
    if len(ranks) > 1:
        raise ValueError(f"the factors have the ranks {sorted(ranks)}, and a layer has one")
    method = LoKr(shape, ranks.pop() if ranks else None, "low" if low else "full", second, float(scale))
    return Found(method, found)


def _fields(names: str) -> frozenset[str]:
    return frozenset(names.split())


_LYCORIS = "r alpha rank_dropout module_dropout use_effective_conv2d"
READERS: dict[str, Reader] = {
    "BOFT": Reader(
        "boft_",
        ("boft_R", "boft_s"),
        _fields("boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout"),
        _boft,
    ),
    "OFT": Reader(
        "oft_",
        ("oft_R.weight", "oft_embedding_R.weight"),
        _fields("r oft_block_size module_dropout coft eps block_share use_cayley_neumann num_cayley_neumann_terms"),
        _oft,
        _exact,
    ),
    "HRA": Reader("hra_", ("hra_u",), _fields("r apply_GS"), _hra),
    "C3A": Reader("c3a_", ("c3a_kernel",), _fields("block_size block_size_pattern"), _c3a),
    "LOHA": Reader(
        "hada_", ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"), _fields(_LYCORIS), _loha
    ),
    "LOKR": Reader(
        "lokr_",
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        _fields(_LYCORIS + " decompose_both decompose_factor rank_dropout_scale"),
        _lokr,
    ),
    "LORA": Reader(
        "lora_",
        ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B"),
        _fields("r lora_alpha lora_dropout use_rslora init_lora_weights"),
        _lora,
    ),
}
