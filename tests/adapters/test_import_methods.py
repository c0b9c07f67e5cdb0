"""The methods that imported adapters become: definitions, starts, training, and each row with its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from structmat import adapters
from structmat.adapters.importing_additions import C3A, CirculantBlocks, LoHa, LoKr
from structmat.adapters.importing_rotations import NeumannOFT, OutputBOFT, Reflections
from tests.adapters.cases import generator, make_input, make_model, perturb, relative

METHODS: dict[str, Any] = {
    "C3A": C3A(4),
    "LoHa": LoHa(2, alpha=3.0),
    "LoHa-dense": LoHa(3),
    "LoKr": LoKr((2, 4), scale=0.5),
    "LoKr-low": LoKr((4, 2), rank=1, first="low", second="low"),
    "NeumannOFT": NeumannOFT(4),
    "NeumannOFT-shared": NeumannOFT(2, terms=7, shared=True),
    "OutputBOFT": OutputBOFT(2, 3, scale=True),
    "Reflections": Reflections(2),
}


@pytest.mark.parametrize("method", METHODS)
def test_starts_at_the_base_trains_and_merges(method: str) -> None:
    model, x = make_model("square"), make_input("square")
    before = model(x)
    adapters.attach(model, METHODS[method], targets=["0"], generator=generator())
    assert relative(model(x), before) < 1e-14
    model(x).square().sum().backward()
    gradients = [p.grad for p in adapters.trainable_parameters(model)]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert any(g.norm() > 1e-3 for g in gradients)
    perturb(model)
    expected = model(x)
    assert relative(expected, before) > 0.01
    adapters.merge(model)
    assert relative(model(x), expected) < 1e-12
    adapters.unmerge(model)
    adapters.merge(model, keep="none")
    adapters.unmerge(model)
    assert relative(model(x), expected) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_each_row_its_own(method: str) -> None:
    """A LongTensor after ``stack`` gives batched updates, equal to one adapter at a time."""
    model, x = make_model("square"), make_input("square")
    for k, name in enumerate("ab"):
        adapters.attach(model, METHODS[method], targets=["0"], name=name, generator=generator(k))
    perturb(model)
    model.requires_grad_(False)
    expected = []
    for k, name in enumerate(("b", "a")):
        adapters.activate(model, name)
        expected.append(model(x[k]))
    expected.append(model[0].base(x[2]))
    adapters.stack(model, ["a", "b"])
    with adapters.rows(model, torch.tensor([1, 0, -1])):
        found = model(x)
    assert relative(found, torch.stack(expected)) < 1e-13


def test_circulant_blocks_by_their_entries() -> None:
    kernel = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator())
    matrix = CirculantBlocks(kernel)
    dense = torch.empty(10, 15, dtype=torch.float64)
    for row in range(10):
        for column in range(15):
            (i, p), (j, q) = divmod(row, 5), divmod(column, 5)
            dense[row, column] = kernel[i, j, (q - p) % 5]
    assert relative(matrix.to_dense(), dense) < 1e-15
    assert relative(matrix.mT.to_dense(), dense.mT) < 1e-15
    x = torch.randn(4, 15, dtype=torch.float64, generator=generator())
    assert relative(matrix.linear(x), x @ dense.mT) < 1e-14
    assert torch.autograd.gradcheck(lambda k, y: CirculantBlocks(k).linear(y), (kernel.requires_grad_(), x))


@pytest.mark.parametrize("terms", range(1, 9))
def test_series_of_the_cayley_transform(terms: int) -> None:
    """Terms of ``(I + Q)(I - Q)^-1 = I + 2 Q + 2 Q^2 + ...``, the last one once; never said to be orthogonal."""
    method = NeumannOFT(3, terms=terms)
    entries = 0.1 * torch.randn(2, 3, dtype=torch.float64, generator=generator())
    blocks = method.blocks(entries)
    low = torch.zeros(2, 3, 3, dtype=torch.float64)
    low[:, [1, 2, 2], [0, 0, 1]] = entries
    q, eye = low - low.mT, torch.eye(3, dtype=torch.float64)
    exact = torch.linalg.solve(eye - q, eye + q)
    size = float(torch.linalg.matrix_norm(q, 2).max())
    power = {1: 1, 2: 2, 3: 3, 4: 3}.get(terms, terms - 1)  # of the last, halved, term
    assert float(torch.linalg.matrix_norm(blocks - exact, 2).max()) <= 2 * size**power / (1 - size)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoKr((2,)), "shape must be the two sizes"),
        (lambda: LoKr((2, 2), rank=2), "two full factors have no rank"),
        (lambda: LoKr((2, 2), first="low"), "rank must be an integer"),
        (lambda: LoKr((2, 2), second="cp"), "second must be 'full', 'low' or 'tucker'"),
        (lambda: LoHa(0), "rank must be an integer"),
        (lambda: C3A(0), "block must be an integer of at least 1"),
        (lambda: NeumannOFT(4, terms=0), "terms must be an integer from 1 to 64"),
        (lambda: OutputBOFT(4, 65), "factors above 64 fit no layer"),
        (lambda: OutputBOFT(4, scale=1), "scale must be True or False"),
    ],
)
def test_illegal_parameters(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", [C3A(3), LoKr((3, 3)), NeumannOFT(3), OutputBOFT(3), Reflections(9, True)])
def test_sizes_that_do_not_fit(method: Any) -> None:
    with pytest.raises(ValueError, match="'0'"):
        adapters.attach(make_model("square"), method, targets=["0"])
