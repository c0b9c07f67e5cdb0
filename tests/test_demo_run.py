"""The demo's rows from start to end on a toy encoder: trained, saved, loaded, merged, reported. No download.

The part on digits runs as it is, for fewer epochs.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from adapt_text import digits, methods, model, report, train, verify
from adapt_text.data import Example, Split
from torch import Tensor, nn

WIDTH = 16


class Attention(nn.Module):
    """Query and value projections under the names that the demo looks for."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.query(x)) * self.value(x)


class ToyEncoder(nn.Module):
    """An embedding and two layers, with the interface of a Hugging Face encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=WIDTH)
        self.embedding = nn.Embedding(128, WIDTH)
        self.layers = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        return SimpleNamespace(last_hidden_state=x)


class ToyTokenizer:
    """One token a character."""

    pad_token_id = 0

    def __call__(self, texts: list[str], truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        assert truncation
        return {"input_ids": [[ord(c) for c in text][:max_length] for text in texts]}


@pytest.fixture
def bench() -> verify.Bench:
    torch.manual_seed(0)
    encoder = model.Encoder(ToyEncoder().eval(), ToyTokenizer(), "toy")
    examples = [Example("aeiou"[i % 5] * (3 + i % 7) + "bcd"[i % 3], i % 2, "p/m.py") for i in range(60)]
    split = Split(examples[:40], examples[40:50], examples[50:], ("even", "odd"), "toy")
    settings = train.Settings(3, 8, 0, model.TARGETS, torch.device("cpu"))
    return verify.Bench.build(encoder, split, settings)


@pytest.mark.parametrize("row", methods.ROWS, ids=lambda row: row.name)
def test_every_row_runs_to_the_end_and_repeats(bench: verify.Bench, row: methods.Row, tmp_path: Path) -> None:
    first = bench.measure(row, tmp_path / "first")
    again = bench.measure(row, tmp_path / "again")
    assert replace(first, seconds_per_step=0.0) == replace(again, seconds_per_step=0.0)
    assert first.reload_difference == 0.0
    assert first.head_parameters == 2 * WIDTH + 2
    per_layer = {"head": 0, "lora": 2 * 8 * WIDTH, "hra": 8 * WIDTH, "boft": 2 * WIDTH * 7 // 2 + WIDTH}
    per_layer |= {"circulant": WIDTH, "toeplitz": 2 * WIDTH - 1, "ldr": 2 * WIDTH}
    expected = {name: 4 * count for name, count in per_layer.items()}
    assert first.adapter_parameters == expected[row.name]
    assert first.saved_bytes >= 4 * first.parameters
    assert (first.orthogonality_error is not None) == (row.name in ("hra", "boft"))
    assert (first.merge_difference is not None) == (row.name != "head")
    if first.orthogonality_error is not None:
        assert first.orthogonality_error <= 8 * torch.finfo(torch.float32).eps * (1 + 8**0.5)  # 8 reflectors, 2 factors
    if first.merge_difference is not None:
        assert first.merge_difference <= 1e-5 * max(1.0, first.largest_logit)


def test_training_moves_adapter_and_head_and_leaves_the_encoder_alone(bench: verify.Bench) -> None:
    row = methods.choose(["lora"])[0]
    before = {name: p.clone() for name, p in bench.start(row).named_parameters()}
    classifier = bench.start(row)
    train.fit(classifier, row, bench.train, bench.settings)
    moved = {name for name, p in classifier.named_parameters() if not torch.equal(p, before[name])}
    trainable = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert moved == trainable
    assert {"head.weight", "head.bias"} < trainable
    assert not any(name.startswith("encoder.embedding") for name in trainable)


def test_every_row_starts_from_the_same_answers(bench: verify.Bench) -> None:
    logits = [train.predict(bench.start(row), bench.test, bench.settings, "start") for row in methods.ROWS]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=0, atol=64 * torch.finfo(torch.float32).eps)


def test_changed_answers_are_reported() -> None:
    trained = torch.tensor([[1.0, 0.0], [0.5, 0.5 - 1e-6]])
    tie = torch.tensor([[1.0, 0.0], [0.5, 0.5 + 1e-6]])
    assert verify.difference(trained, tie, "merged") == pytest.approx(2e-6, rel=0.1)
    with pytest.raises(verify.Mismatch, match="loaded: 1 of 2 predictions changed"):
        verify.same_predictions(trained, tie, "loaded")
    with pytest.raises(verify.Mismatch, match=r"merged: a logit differs by 1\.0e\+00; the largest logit is 1\.0"):
        verify.difference(trained, trained.flip(1), "merged")
    with pytest.raises(verify.Mismatch, match="differs by nan"):
        verify.difference(trained, trained * torch.nan, "merged")


def test_batches_visit_every_row_once_an_epoch_and_repeat_for_a_seed() -> None:
    rows = train.Rows([[1] * (1 + i % 9) for i in range(50)], [0] * 50, 0)
    stream, same, other = (train.batches(rows, 8, seed) for seed in (1, 1, 2))
    epoch = [next(stream) for _ in range(7)]
    assert sorted(i for batch in epoch for i in batch) == list(range(50))
    assert [next(same) for _ in range(7)] == epoch
    assert [next(other) for _ in range(7)] != epoch


def test_one_rate_of_the_grid_serves_every_row() -> None:
    assert [row.name for row in methods.ROWS] == ["head", "lora", "hra", "boft", "circulant", "toeplitz", "ldr"]
    assert len(set(methods.GRID)) == len(methods.GRID) >= 3
    assert {row.rate for row in methods.ROWS} == {methods.RATE}
    assert methods.RATE in methods.GRID


def test_the_second_part_is_called_by_a_name_of_its_own() -> None:
    assert methods.choose([methods.DIGITS]) == []
    assert [row.name for row in methods.choose([methods.DIGITS, "hra"])] == ["hra"]


def test_unknown_rows_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match="--methods: 'dora' is none of head, lora, hra, boft, circulant, toeplitz, ldr, flora"
    ):
        methods.choose(["lora", "dora"])


def test_a_run_that_diverges_is_named(bench: verify.Bench) -> None:
    row = methods.choose(["head"])[0]
    classifier = bench.start(row)
    nn.init.constant_(classifier.head.weight, 3e38)  # logits overflow, their difference is not a number
    with pytest.raises(FloatingPointError, match=r"head only: the loss is NaN at step 1; a lower rate than 0\.\d+ is"):
        train.fit(classifier, row, bench.train, bench.settings)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="optional package transformers is not installed")
    with pytest.raises(ValueError, match=r"--model .*: no Hugging Face encoder can be loaded"):
        model.load_encoder(str(tmp_path))


def test_report_is_aligned_and_complete(tmp_path: Path) -> None:
    plain = report.Result("head", "head only", 3e-3, 0, 770, 0.78, 0.1, None, None, 0.0, 5.0, 4000)
    turned = report.Result("hra", "HRA r=8", 3e-3, 36864, 770, 0.8412, 0.2, 1.25e-7, 3e-6, 0.0, 5.0, 150000)
    lines = report.table([plain, turned]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == [
        *("HRA r=8", "37,634", "84.1 %", "0.200", "1.2e-07", "3.0e-06"),
    ]
    report.write_json(tmp_path / "r.json", [plain, turned], {"grid": methods.GRID})
    stored = json.loads((tmp_path / "r.json").read_text())
    assert stored["results"][1]["parameters"] == 37634
    assert stored["results"][0]["merge_difference"] is None
    report.plot(tmp_path / "p.png", [plain, turned], "two rows")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_digits_are_split_in_halves_without_overlap() -> None:
    pytest.importorskip("sklearn", reason="optional package sklearn is not installed")
    old, new = digits.pictures(range(5)), digits.pictures(range(5, 10))
    for part in (old, new):
        assert part.train.shape[1:] == part.test.shape[1:] == (1, 8, 8)
        assert part.train_labels.unique().tolist() == part.test_labels.unique().tolist() == [0, 1, 2, 3, 4]
        counts = part.train_labels.bincount() - part.test_labels.bincount()
        assert ((counts == 0) | (counts == 1)).all()
    assert sum(len(part.train) + len(part.test) for part in (old, new)) == 1797


def test_every_row_on_digits_runs_to_the_end_and_repeats(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="optional package sklearn is not installed")
    pretrained = digits.pretrain(epochs=2)
    results = [digits.measure(row, pretrained, tmp_path / row.name, epochs=2) for row in digits.ROWS]
    flora = next(row for row in digits.ROWS if row.name == "digits_flora")
    assert digits.measure(flora, pretrained, tmp_path / "again", epochs=2) == results[digits.ROWS.index(flora)]
    head, lora, tucker, whole = results
    assert head.parameters == 32 * 5 + 5
    # conv2 (32 of 16) and conv3 (32 of 32), kernels of 3 x 3
    assert lora.parameters - head.parameters == 4 * (32 + 9 * 16) + 4 * (32 + 9 * 32)
    assert tucker.parameters - head.parameters == 2 * (8 * 8 * 9 + 9 + 9) + 8 * (32 + 16) + 8 * (32 + 32)
    assert whole.parameters == sum(p.numel() for p in pretrained.parameters())
    assert len({result.before for result in results}) == 1  # every adapter starts as the identity
    for result in (lora, tucker):
        assert result.merge_difference is not None and result.merge_difference <= 1e-4
        assert result.old_digits == digits.accuracy(
            digits.logits(pretrained, digits.pictures(range(5))), digits.pictures(range(5))
        )
    assert len({len(line) for line in digits.table(results).splitlines()}) == 1
    report.write_json(tmp_path / "r.json", [], {}, results)
    assert json.loads((tmp_path / "r.json").read_text())["digits"][2]["after"] == tucker.after
