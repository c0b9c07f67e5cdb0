"""Weights that stay orthogonal, and dense layers replaced by structured ones."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import structmat as sm
from structmat.nn.orthogonal import KINDS

F64 = torch.float64
SHAPES = [(1, 1), (6, 6), (8, 5), (5, 8), (1, 4), (4, 1)]


def _layer(m: int, n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(n, m, dtype=dtype)


def _error(weight: torch.Tensor) -> float:
    m, n = weight.shape[-2:]
    wide = weight.detach().to(torch.complex128 if weight.is_complex() else F64)
    gram = wide.mH @ wide if m >= n else wide @ wide.mH
    return float(torch.linalg.matrix_norm(gram - torch.eye(min(m, n), dtype=wide.dtype)).max()) / min(m, n) ** 0.5


def _limit(dtype: torch.dtype, n: int) -> float:
    return 8 * torch.finfo(dtype).eps * (1 + n**0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex128])
def test_orthogonal_from_the_start_and_at_every_scale(kind: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    layer = sm.nn.orthogonal(_layer(*shape, dtype=dtype), kind=kind)
    assert layer.weight.shape == shape
    assert _error(layer.weight) <= _limit(dtype, min(shape))
    for scale in (1e-3, 1.0, 1e3):
        with torch.no_grad():
            for p in layer.weight_frame.parameters():
                p.copy_(torch.randn_like(p) * scale)
        assert _error(layer.weight) <= _limit(dtype, min(shape)), scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [F64, torch.complex128])
def test_an_orthogonal_weight_stays_as_it_is(kind: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    layer = _layer(*shape, dtype=dtype)
    tall = torch.linalg.qr(torch.randn(max(shape), min(shape), dtype=dtype))[0]
    with torch.no_grad():
        layer.weight.copy_(tall if shape[0] >= shape[1] else tall.mH)
    before = layer.weight.detach().clone()
    after = sm.nn.orthogonal(layer, kind=kind).weight
    torch.testing.assert_close(after.detach(), before, rtol=0, atol=1e-13)
    layer.weight = before.roll(1, 0).clone()
    torch.testing.assert_close(layer.weight.detach(), before.roll(1, 0), rtol=0, atol=1e-13)
    start = nn.Linear(shape[1], shape[0], dtype=dtype)
    with torch.no_grad():
        start.weight.copy_(torch.eye(*shape))
    torch.testing.assert_close(sm.nn.orthogonal(start, kind=kind).weight.detach(), torch.eye(*shape, dtype=dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_training_with_weight_decay_learns_and_stays_orthogonal(kind: str) -> None:
    """Torch's own parametrisation is exactly zero after two such steps."""
    target = torch.linalg.qr(torch.randn(6, 4, dtype=F64, generator=torch.Generator().manual_seed(1)))[0]
    layer = sm.nn.orthogonal(_layer(6, 4, F64), kind=kind)
    optimizer = torch.optim.AdamW(layer.weight_frame.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (layer.weight - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert _error(layer.weight) <= _limit(F64, 4)
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "butterfly"])
def test_every_start_can_move_every_way(kind: str) -> None:
    """From the identity, where a reflection is not needed and its vector would be zero, all directions are open."""
    layer = nn.Linear(5, 5, dtype=F64)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(5))
    sm.nn.orthogonal(layer, kind=kind)
    parameters = dict(layer.weight_frame.named_parameters())

    def weight(held: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(layer.weight_frame, held)

    jacobian = torch.func.jacrev(weight)(parameters)
    columns = torch.cat([j.reshape(25, -1) for j in jacobian.values()], -1)
    assert int(torch.linalg.matrix_rank(columns)) == 10, "the dimension of the rotations of 5 axes"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    layer = sm.nn.orthogonal(_layer(6, 6), kind=kind).to(dtype)
    assert layer.weight.dtype == dtype
    assert _error(layer.weight) <= 2 * torch.finfo(dtype).eps, "the rounding of the weight alone"
    layer(torch.ones(2, 6, dtype=dtype)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_copy_save_and_state_dict(kind: str) -> None:
    layer = sm.nn.orthogonal(_layer(4, 3), kind=kind)
    with torch.no_grad():
        for p in layer.weight_frame.parameters():
            p.add_(0.1)
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(again.weight, layer.weight)
        assert type(again) is type(layer)
        assert isinstance(again, nn.Linear)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False).weight, layer.weight)
    fresh = sm.nn.orthogonal(_layer(4, 3, seed=5), kind=kind)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.weight, layer.weight)


def test_removing_leaves_the_weight() -> None:
    layer = sm.nn.orthogonal(_layer(4, 3))
    weight = layer.weight.detach().clone()
    assert sm.nn.remove_orthogonal(layer) is layer
    assert type(layer) is nn.Linear
    assert torch.equal(layer.weight, weight)
    assert [name for name, _ in layer.named_parameters()] == ["bias", "weight"]


def test_two_weights_of_one_module_and_batches() -> None:
    cell = nn.RNNCell(3, 4)
    sm.nn.orthogonal(sm.nn.orthogonal(cell, "weight_hh"), "weight_ih", kind="cayley")
    assert _error(cell.weight_hh) < 1e-6
    assert _error(cell.weight_ih) < 1e-6
    assert cell(torch.ones(2, 3)).shape == (2, 4)
    assert torch.equal(pickle.loads(pickle.dumps(cell)).weight_hh, cell.weight_hh)
    sm.nn.remove_orthogonal(cell, "weight_hh")
    assert isinstance(cell.weight_hh, nn.Parameter)
    assert _error(cell.weight_ih) < 1e-6
    convolution = sm.nn.orthogonal(nn.Conv1d(4, 6, 3, dtype=F64))
    gram = convolution.weight.mT @ convolution.weight
    torch.testing.assert_close(gram, torch.eye(3, dtype=F64).expand(6, 3, 3))


def test_gradients_transforms_and_compilation() -> None:
    layer = sm.nn.orthogonal(_layer(4, 4, F64), kind="cayley")
    x = torch.randn(2, 4, dtype=F64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_bad_requests_change_nothing() -> None:
    layer = _layer(3, 3)
    for wrong, message in (
        (lambda: sm.nn.orthogonal(layer, kind="exact"), "legal kinds are"),
        (lambda: sm.nn.orthogonal(layer, "bias"), "a matrix is needed"),
        (lambda: sm.nn.orthogonal(layer, "kernel"), "no parameter 'kernel'"),
        (lambda: sm.nn.remove_orthogonal(layer), "is not orthogonal"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            wrong()
    assert type(layer) is nn.Linear
    sm.nn.orthogonal(layer)
    with pytest.raises(sm.StructureError, match="orthogonal already"):
        sm.nn.orthogonal(layer)
    with pytest.raises(sm.ShapeError, match="the new value"):
        layer.weight = torch.eye(2)


# -- replacing dense layers -----------------------------------------------------------------------------------------


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 6, bias=False))


def test_one_layer_becomes_the_nearest_structure() -> None:
    layer = nn.Linear(5, 4)
    new = sm.nn.Linear.from_dense(layer, sm.Toeplitz)
    assert torch.equal(new.matrix.to_dense(), sm.Toeplitz.nearest(layer.weight.detach()).to_dense())
    assert torch.equal(new.bias, layer.bias)
    assert new.bias is not layer.bias
    low = sm.nn.Linear.from_dense(layer, lambda w: sm.LowRank(w[:, :2], torch.eye(5)[:, :2]))
    assert isinstance(low.matrix, sm.LowRank)
    with pytest.raises(sm.StructureError, match="has no nearest"):
        sm.nn.Linear.from_dense(layer, sm.Identity)
    with pytest.raises(sm.ShapeError, match="of the weight's shape"):
        sm.nn.Linear.from_dense(layer, lambda w: sm.Identity(3))


def test_a_model_is_replaced_with_a_table() -> None:
    model = _model()
    weight = model[0].weight.detach()
    report = sm.nn.Linear.replace(model, r"0|3", sm.Circulant)
    assert [row.name for row in report.rows] == ["0", "3"]
    assert report.rows[0].before == 72
    assert report.rows[0].after == 16
    assert (report.before, report.after) == (72 + 36, 16 + 6)
    exact = float((weight - sm.Circulant.nearest(weight).to_dense()).norm() / weight.norm())
    assert abs(report.rows[0].error - exact) < 1e-6
    assert "108" in str(report)
    assert isinstance(model[2], nn.Linear)
    model(torch.ones(1, 8)).sum().backward()


def test_a_failing_replacement_leaves_the_model() -> None:
    model = _model()
    layers = list(model)
    with pytest.raises(ValueError, match=r"matches no torch\.nn\.Linear; names are 0, 2, 3"):
        sm.nn.Linear.replace(model, "head", sm.Toeplitz)
    with pytest.raises(sm.ShapeError):
        sm.nn.Linear.replace(model, r"\d", sm.Circulant)
    assert all(a is b for a, b in zip(layers, model, strict=True))


def test_a_tied_layer_is_replaced_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    report = sm.nn.Linear.replace(model, ".*", sm.Toeplitz)
    assert len(report.rows) == 1
    assert model[0] is model[2]
