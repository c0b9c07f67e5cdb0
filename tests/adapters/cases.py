"""The methods, layers and dtypes that the adapter tests run over, and dense references written out by definition."""

from __future__ import annotations

import torch
from torch import nn

from structmat import adapters
from structmat.adapters.method import State

METHODS = {
    "LoRA": adapters.LoRA(2, alpha=3.0),
    "HRA-even": adapters.HRA(4),
    "HRA-odd": adapters.HRA(3),
    "HRA-one": adapters.HRA(1),
    "HRA-orthonormal": adapters.HRA(3, orthonormal=True),
    "circulant": adapters.SURM("circulant"),
    "circulant-product": adapters.SURM("circulant", form="product"),
    "toeplitz": adapters.SURM("toeplitz"),
    "toeplitz-product": adapters.SURM("toeplitz", form="product"),
    "symmetric": adapters.SURM("symmetric_toeplitz"),
    "symmetric-product": adapters.SURM("symmetric_toeplitz", form="product"),
}
# kind, in_features, out_features, bias
LAYERS = {
    "square": ("Linear", 8, 8, True),
    "wide": ("Linear", 12, 5, True),
    "tall-odd": ("Linear", 7, 11, False),
    "Conv1D": ("Conv1D", 9, 6, True),
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
# Adapted against merged, relative to ||y||: the limits the library promises.
MERGE_LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2.0**-7}


def make_layer(kind: str, n: int, m: int, bias: bool, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A layer with weights of variance 1 / n."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "Linear":
        layer: nn.Module = nn.Linear(n, m, bias=bias)
    else:
        from transformers.pytorch_utils import Conv1D

        layer = Conv1D(m, n)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64) / n**0.5)
        if layer.bias is not None:
            layer.bias.copy_(torch.randn(m, generator=generator, dtype=torch.float64))
    return layer.to(dtype)


def make_model(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    return nn.Sequential(make_layer(*LAYERS[name], dtype=dtype, seed=seed))


def make_input(name: str, dtype: torch.dtype = torch.float64, lead: tuple[int, ...] = (3, 4)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*lead, LAYERS[name][1], generator=generator, dtype=torch.float64).to(dtype)


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturb(model: nn.Module, seed: int = 2, size: float = 0.3) -> None:
    """Move every adapter away from its start, as training would."""
    source = generator(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".adapters." in key:
                parameter += size * torch.randn(parameter.shape, generator=source, dtype=torch.float64).to(parameter)


def slots(model: nn.Module, layer: str = "0") -> dict[str, adapters.State]:
    return {name: slot.state() for name, slot in model.get_submodule(layer).adapters.items()}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


# -- dense references, entry by entry or factor by factor -------------------------------------------------------------


def reflections(vectors: torch.Tensor) -> torch.Tensor:
    """``H_1 H_2 ... H_r`` as a chain of dense products."""
    n = vectors.shape[-1]
    q = torch.eye(n, dtype=vectors.dtype)
    for u in vectors:
        q = q @ (torch.eye(n, dtype=vectors.dtype) - 2 * torch.outer(u, u) / (u @ u))
    return q


def gram_schmidt(vectors: torch.Tensor) -> torch.Tensor:
    rows: list[torch.Tensor] = []
    for v in vectors:
        for _ in range(2):
            for w in rows:
                v = v - (v @ w) * w
        rows.append(v / v.norm())
    return torch.stack(rows)


def filled(m: int, n: int, entry) -> torch.Tensor:
    return torch.stack([torch.stack([entry(i, j) for j in range(n)]) for i in range(m)])


def structured(structure: str, t: torch.Tensor, m: int, n: int) -> torch.Tensor:
    size = max(m, n)
    entry = {
        "circulant": lambda i, j: t[(i - j) % size],
        "toeplitz": lambda i, j: t[i - j + n - 1],
        "symmetric_toeplitz": lambda i, j: t[abs(i - j)],
    }[structure]
    return filled(m, n, entry)


def change(method, state: State, weight: torch.Tensor) -> torch.Tensor:
    """The weight ``(out, in)`` after one adapter."""
    m, n = weight.shape
    trained, frozen = state
    if isinstance(method, adapters.LoRA):
        scale = 1.0 if method.alpha is None else method.alpha / method.rank
        return weight + scale * trained["left"] @ trained["right"].mT
    if isinstance(method, adapters.HRA):
        vectors = gram_schmidt(trained["vectors"]) if method.orthonormal else trained["vectors"]
        rotation = reflections(vectors)
        return weight @ rotation @ reflections(frozen["reference"]).mT if "reference" in frozen else weight @ rotation
    first, second = trained["entries"], trained.get("second")
    if second is None:
        delta = structured(method.structure, first, m, n)
    elif method.structure == "circulant":
        delta = structured("circulant", first * second, m, n)
    else:
        delta = structured(method.structure, first, m, n) @ structured(method.structure, second, n, n)
    return weight + method.scale / n**0.5 * delta
