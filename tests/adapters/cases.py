"""The methods, layers and dtypes that the adapter tests run over, and dense references written out by definition."""

from __future__ import annotations

import math

import torch
from torch import nn

from structmat import adapters
from structmat.adapters.method import State

METHODS = {
    "LoRA": adapters.LoRA(2, alpha=3.0),
    "HRA-even": adapters.HRA(4),
    "HRA-odd": adapters.HRA(3),
    "HRA-one": adapters.HRA(1, step="paper"),
    "HRA-orthonormal": adapters.HRA(3, orthonormal=True),
    "circulant": adapters.SURM("circulant"),
    "circulant-product": adapters.SURM("circulant", form="product"),
    "toeplitz": adapters.SURM("toeplitz"),
    "toeplitz-product": adapters.SURM("toeplitz", form="product"),
    "symmetric": adapters.SURM("symmetric_toeplitz"),
    "symmetric-product": adapters.SURM("symmetric_toeplitz", form="product"),
    "skew": adapters.SURM("skew"),
    "kronecker": adapters.SURM("kronecker"),
    "ldr": adapters.SURM("ldr", rank=2),
    "OFT": adapters.OFT(blocks=1),
    "OFT-plain": adapters.OFT(blocks=1, shared=True, scale=False, step="paper"),
    "BOFT": adapters.BOFT(4, 2, mixed=True),
    "BOFT-mixed": adapters.BOFT(2, 3, scale=False, mixed=True),
    "FLoRA": adapters.FLoRA(2, scale=1.5),
    "FLoRA-nlp": adapters.FLoRA((3, 2), scale=4000.0, init="nlp"),
    "OnRows": adapters.OnRows(adapters.HRA(2), ((0, 2), (3, 5))),
}
ROTATIONS = tuple(name for name in METHODS if name.startswith(("HRA", "OFT", "BOFT", "OnRows")))
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
        "skew": lambda i, j: t[i - j] if i >= j else -t[size + i - j],
        "toeplitz": lambda i, j: t[i - j + n - 1],
        "symmetric_toeplitz": lambda i, j: t[abs(i - j)],
    }[structure]
    return filled(m, n, entry)


def rotation_of(entries: torch.Tensor, b: int) -> torch.Tensor:
    """``(I - K)(I + K)^-1`` of a strictly lower triangle."""
    k = torch.zeros(b, b, dtype=entries.dtype)
    places = [(row, column) for row in range(b) for column in range(row)]
    for value, (i, j) in zip(entries, places, strict=True):
        k = k + value * (unit(b, i, j, entries) - unit(b, j, i, entries))
    eye = torch.eye(b, dtype=entries.dtype)
    return torch.linalg.solve((eye + k).mT, (eye - k).mT).mT


def unit(n: int, i: int, j: int, like: torch.Tensor) -> torch.Tensor:
    e = torch.zeros(n, n, dtype=like.dtype)
    e[i, j] = 1
    return e


def placed(block: torch.Tensor, index: list[int], n: int) -> torch.Tensor:
    """The block on the rows and columns ``index`` of a zero matrix."""
    e = torch.eye(n, dtype=block.dtype)[index]
    return e.mT @ block @ e


def butterfly(skew: torch.Tensor, n: int) -> torch.Tensor:
    """``F_m ... F_1``, factor i coupling the groups a and ``a XOR 2^(i-1)`` of b / 2 entries."""
    m, count, entries = skew.shape
    b = n // count
    assert entries == b * (b - 1) // 2
    total = torch.eye(n, dtype=skew.dtype)
    for i in range(m):
        factor = torch.zeros(n, n, dtype=skew.dtype)
        if m == 1:
            pairs = [list(range(k * b, (k + 1) * b)) for k in range(count)]
        else:
            half = b // 2
            lower = [a for a in range(n // half) if not a & (1 << i)]
            pairs = [[g * half + k for g in (a, a ^ (1 << i)) for k in range(half)] for a in lower]
        for k, index in enumerate(pairs):
            factor = factor + placed(rotation_of(skew[i, k], b), index, n)
        total = factor @ total
    return total


def mixed_butterfly(trained: dict[str, torch.Tensor], n: int, digits: tuple[int, ...]) -> torch.Tensor:
    """One factor a digit, the least significant first; its blocks sit on numbers that differ in that digit alone."""
    total = torch.eye(n, dtype=next(iter(trained.values())).dtype)
    for k in range(sum(key.startswith("skew") for key in trained)):
        place = len(digits) - 1 - k
        p, low = digits[place], math.prod(digits[place + 1 :])
        rest = [i for i in range(n) if (i // low) % p == 0]
        factor = sum(
            placed(rotation_of(trained[f"skew{k}"][r], p), [i + low * t for t in range(p)], n)
            for r, i in enumerate(rest)
        )
        total = factor @ total
    return total


def turned(method, trained: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """``diag(s) W R^T`` of OFT and BOFT; "even" steps divide the triangles by 0.95 b m / 7.4."""
    n = weight.shape[1]
    paper = method.step == "paper"
    if isinstance(method, adapters.OFT):
        b, k = method.sizes(n)
        entries = trained["skew"].expand(k, -1) * (1 if paper else 7.4 / (0.95 * b))
        r = torch.block_diag(*(rotation_of(entries[i], b) for i in range(k)))
    elif "skew" in trained:
        r = butterfly(trained["skew"] * (1 if paper else 7.4 / (0.95 * method.block * method.factors)), n)
    else:
        digits = method.digits(n)
        used = digits[::-1][: method.factors]
        scaled = {f"skew{k}": trained[f"skew{k}"] * (7.4 / (0.95 * p * len(used))) for k, p in enumerate(used)}
        r = mixed_butterfly(scaled, n, digits)
    found = weight @ r.mT
    return trained["scales"][:, None] * found if "scales" in trained else found


def change(method, state: State, weight: torch.Tensor) -> torch.Tensor:
    """The weight ``(out, columns)`` after one adapter."""
    m, n = weight.shape
    trained, frozen = state
    if isinstance(method, adapters.OnRows):
        pieces = list(weight)
        for start, stop in method.spans:
            inner = State(
                *({k.removeprefix(f"rows{start}_"): t for k, t in p.items() if f"rows{start}_" in k} for p in state)
            )
            pieces[start:stop] = list(change(method.method, inner, weight[start:stop]))
        return torch.stack(pieces)
    if isinstance(method, (adapters.OFT, adapters.BOFT)):
        return turned(method, trained, weight)
    if isinstance(method, adapters.FLoRA):
        delta = trained["core"]
        for k in range(delta.ndim):
            delta = torch.tensordot(trained[f"factor{k}"], delta, dims=([1], [k])).movedim(0, k)
        scale = method.scale / (1 if method.start == "vision" else trained["core"].shape[0])
        return weight + scale * delta.reshape(m, n)
    if isinstance(method, adapters.SURM) and method.structure == "kronecker":
        r = trained["second"].shape[0]
        return weight + 0.5 * method.scale * (3 / r) ** 0.5 * torch.kron(trained["entries"], trained["second"])
    if isinstance(method, adapters.SURM) and method.structure == "ldr":
        size = max(m, n)
        delta = sum(
            structured("circulant", g, size, size) @ structured("skew", h, size, size)
            for g, h in zip(trained["entries"], trained["second"], strict=True)
        )
        return weight + 0.5 * method.scale / (n**0.5 * len(trained["entries"])) * delta[:m, :n]
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
    return weight + method.scale * (1 if second is None else 0.5) / n**0.5 * delta
