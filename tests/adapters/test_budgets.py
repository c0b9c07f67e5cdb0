"""How many numbers each method trains on DeBERTaV3-base: the budgets that the papers compare at."""

import pytest
from torch import nn

from structmat import adapters

WIDTH, INNER, LAYERS = 768, 3072, 12


def encoder() -> nn.ModuleList:
    """The six linears of each of the twelve layers by name and size; on the meta device they hold nothing."""
    sizes = {
        "query_proj": (WIDTH, WIDTH),
        "key_proj": (WIDTH, WIDTH),
        "value_proj": (WIDTH, WIDTH),
        "attention_dense": (WIDTH, WIDTH),
        "intermediate_dense": (WIDTH, INNER),
        "output_dense": (INNER, WIDTH),
    }
    return nn.ModuleList(
        nn.ModuleDict({name: nn.Linear(n, m, device="meta") for name, (n, m) in sizes.items()}) for _ in range(LAYERS)
    )


@pytest.mark.parametrize(
    ("method", "train_bias", "parts", "total"),
    [
        (adapters.BOFT(8, 2), True, {"skew": 580_608, "scales": 82_944, "bias": 82_944}, 746_496),
        (adapters.OFT(block=16), True, {"skew": 622_080, "scales": 82_944, "bias": 82_944}, 787_968),
        (adapters.HRA(8), False, {"vectors": 663_552}, 663_552),
        (adapters.LoRA(8), False, {"left": 663_552, "right": 663_552}, 1_327_104),
    ],
    ids=["BOFT", "OFT", "HRA", "LoRA"],
)
def test_the_numbers_that_train(method: adapters.Method, train_bias: bool, parts: dict[str, int], total: int) -> None:
    model = encoder()
    report = adapters.attach(model, method, "all-linear", train_bias=train_bias)
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.rsplit(".", 1)[1]
            found[part] = found.get(part, 0) + parameter.numel()
    assert found == parts
    assert report.trainable == total == sum(parts.values())
    assert len(report.layers) == 6 * LAYERS
