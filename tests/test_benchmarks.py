"""The benchmarks' own machinery: the registry, what counts as right, and the record. Nothing here reads a clock."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import scipy.linalg
import torch

from benchmarks import machine, report, run
from benchmarks.case import Case, Contender, Figure, Problem, fewest, overhead, speed
from benchmarks.cases import CASES, select
from benchmarks.cases.adapter_convs import hra_problem, lora_problem
from benchmarks.cases.adapter_layers import Attached, flora_problem
from benchmarks.cases.adapter_stack import METHODS, stacked_problem
from benchmarks.cases.adapters import cap, frozen_layer, ours_on, reference
from benchmarks.cases.boft import Arithmetic
from benchmarks.cases.solves import backward_error, kms_solution
from benchmarks.papers import rows as papers_rows
from benchmarks.papers import table
from benchmarks.verify import Fault, verify

GATED = {
    "adapters/boft d=1024 b=32 m=1 rows=16",
    "adapters/boft d=1024 b=32 m=1 rows=256",
    "adapters/boft d=4096 b=32 m=1 rows=16",
    "adapters/boft d=1024 b=32 m=2 rows=256",
    "adapters/boft d=1024 b=32 m=2 rows=2048",
    "adapters/boft d=1024 b=2 m=10 rows=256",
    "adapters/flora linear d=4096 r=16 rows=16",
    "adapters/flora linear d=4096 r=16 rows=2048",
    "adapters/flora conv 256 3x3 batch=8",
    "adapters/lora conv 256 3x3 14x14",
    "adapters/lora conv 256 3x3 14x14 over folded",
    "adapters/hra conv 256 3x3 14x14",
    "adapters/minilm qv 16x32 HRA r=8",
    "adapters/minilm qv 16x32 BOFT b=8 m=2",
    "adapters/minilm qv 16x32 toeplitz",
    "adapters/minilm qv 16x32 circulant",
    "adapters/minilm qv 16x32 kronecker",
    "adapters/minilm qv 2x32 HRA r=8",
    "adapters/minilm qv 2x32 BOFT b=8 m=2",
    "adapters/minilm qv 2x32 toeplitz",
    "adapters/minilm qv 2x32 circulant",
    "adapters/minilm qv 2x32 kronecker",
    "adapters/minilm all 16x32 HRA r=8",
    "adapters/minilm all 16x32 BOFT b=8 m=2",
    "adapters/minilm all 16x32 toeplitz",
    "adapters/minilm all 16x32 circulant",
    "adapters/minilm all 16x32 kronecker",
    "adapters/convolutions FLoRA r=8",
    "adapters/minilm memory all HRA r=8",
    "adapters/minilm memory all BOFT b=8 m=2",
    "adapters/stack of 1000 LoRA r=8 d=256",
    "adapters/stack of 1000 LoRA r=8 d=1024",
    "adapters/stack of 1000 HRA r=8 d=256",
    "adapters/stack of 1000 HRA r=8 d=1024",
    "boft/peft d=1024 b=32 m=1 rows=16",
    "boft/peft d=1024 b=32 m=1 rows=256",
    "boft/arithmetic d=1024 b=32 m=2 rows=256",
    "boft/arithmetic d=1024 b=2 m=10 rows=256",
    "boft/memory d=4096 b=8 m=4",
    "butterfly/apply n=1024 rows=256",
    "butterfly/apply n=1024 rows=2048",
    "cayley/solve b=8 d=4096",
    "cayley/solve b=16 d=4096",
    "cayley/solve b=32 d=4096",
    "cayley/solve b=64 d=4096",
    "hra/layer d=1024 r=32 rows=256",
    "hra/layer d=1024 r=32 rows=2048",
    "hra/layer d=4096 r=32 rows=16",
    "hra/overhead d=4096 r=32 rows=2048",
    "hra/memory d=1024 r=128",
    "toeplitz/symmetric n=4096 columns=64",
    "toeplitz/symmetric n=4096 columns=1",
    "circulant n=4096 rows=64",
    "circulant n=4096 rows=1",
    "circulant n=1000000",
    "toeplitz n=1000000",
    "solve/spd KMS 0.99 n=4096",
    "solve/spd KMS 0.99 n=16384",
    "solve/64 columns KMS 0.99 n=1024",
    "solve/64 columns Gaussian n=1024",
    "solve/64 columns random n=1024",
    "solve/64 columns KMS 0.99 n=4096",
    "solve/64 columns Gaussian n=4096",
    "solve/64 columns random n=4096",
    "solve/nearly singular minor n=1024",
    "solve/nearly singular minor n=4096",
    "solve/1000 systems n=8 scipy",
    "solve/1000 systems n=8 torch",
    "solve/1000 systems n=32 scipy",
    "solve/1000 systems n=32 torch",
    "solve/1000 systems n=128 scipy",
    "solve/1000 systems n=128 torch",
    "dispatch/dense@dense 5x5",
    "dispatch/lookup and wrapping",
    "displacement n=1024 r=16 rows=256",
    "displacement n=4096 r=1 rows=2048",
    "toeplitz/inverse applied n=4096 rows=1",
    "toeplitz/inverse applied n=4096 rows=64",
    "householder/loop d=1024 r=32 rows=256",
    "householder/FastH++ d=1024 r=32 rows=256",
    "householder/flops d=768 r=32 rows=256",
    "householder/flops d=1024 r=32 rows=256",
    "householder/flops d=1024 r=32 rows=2048",
    "householder/flops d=1024 r=128 rows=256",
    "householder/flops d=1024 r=128 rows=2048",
    "householder/square matrix_exp d=1024 rows=256",
    "householder/square cayley d=1024 rows=256",
    "tucker/form 256x256x3x3",
    "tucker/form 512x512x3x3",
    "tucker/decompose 256x256x9 randomised",
    "tucker/linear d=4096 r=16 rows=256",
    "tucker/conv layer 256 3x3 batch=8",
    "checks/claims householder r=8 n=1000000",
    "checks/claims circulant n=1000000",
    "checks/claims product n=1000000",
    "checks/claims butterfly n=1048576",
    "kronecker/linear_operator 64x64 columns=1",
    "kronecker/cola 64x64 columns=1",
    "kronecker/linear_operator 64x64 columns=64",
    "kronecker/cola 64x64 columns=64",
    "kronecker/linear_operator 16x16x16 columns=16",
    "kronecker/cola 16x16x16 columns=16",
}


def test_every_promised_number_has_a_case_with_a_must() -> None:
    assert {case.name for case in CASES if case.figure.must is not None} == GATED
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.what and case.name == case.name.strip() for case in CASES)


def test_select_by_part_of_the_name_and_names_the_cases_otherwise() -> None:
    assert [case.name for case in select("hra/memory")] == ["hra/memory d=1024 r=128"]
    assert select(None) == CASES
    with pytest.raises(ValueError, match=r"no case has 'nothing like it'(.|\n)*solve/spd"):
        select("nothing like it")


def doubled(slip: float = 0.0, peer_slip: float = 0.0) -> Problem:
    x = torch.arange(1.0, 5.0)
    contenders = {
        "ours": Contender(lambda: (2 * x + slip,)),
        "peer": Contender(lambda: (2 * x + peer_slip,), "torch"),
        "base": Contender(lambda: (x,), read=None),
    }
    return Problem(contenders, ("y",), lambda: (2 * x.double(),), (1e-6,), lambda: {"fact": 1.0})


def test_verify_accepts_what_is_right_and_leaves_the_base_alone() -> None:
    errors = verify(doubled())
    assert errors.by_contender == {"ours": {"y": 0.0}, "peer": {"y": 0.0}}
    assert errors.worst("ours") == 0.0
    assert errors.worst("base") is None


@pytest.mark.parametrize(("slip", "peer_slip", "who"), [(1e-3, 0.0, "ours"), (0.0, 1.0, "peer")])
def test_verify_refuses_what_is_wrong(slip: float, peer_slip: float, who: str) -> None:
    with pytest.raises(Fault, match=rf"{who}: y is off by .* the limit is"):
        verify(doubled(slip, peer_slip))


def test_verify_refuses_another_shape_and_another_number_of_outputs() -> None:
    good = doubled()
    shorter = Contender(lambda: (torch.ones(3),))
    more = Contender(lambda: (torch.ones(4), torch.ones(4)))
    with pytest.raises(Fault, match=r"peer: y has shape \(3,\), the reference \(4,\)"):
        verify(Problem({**good.contenders, "peer": shorter}, good.names, good.reference, good.limits))
    with pytest.raises(Fault, match="peer: 2 outputs, the reference has 1"):
        verify(Problem({**good.contenders, "peer": more}, good.names, good.reference, good.limits))


def test_a_wrong_result_is_reported_and_not_timed() -> None:
    case = Case("t/wrong", "a wrong sum", lambda: doubled(1.0), speed(must=1))
    result = run.measure_case(case, quick=True)
    assert result.status.startswith("wrong: ours: y is off by")
    assert result.failed
    assert not result.wall


def test_an_absent_peer_is_named() -> None:
    case = Case("t/absent", "a peer no one has", doubled, speed(must=1), peers=("no_such_package_of_anyone",))
    result = run.measure_case(case, quick=True)
    assert result.status.startswith("absent: no_such_package_of_anyone")
    assert not result.failed
    assert "no_such_package_of_anyone" in report.table([result])


def test_figures_and_limits_that_depend_on_the_same_round() -> None:
    times = {"ours": 2.0, "peer": 12.0, "base": 1.5}
    assert speed().value(times) == 6.0
    assert overhead().value(times) == pytest.approx(4 / 3)
    assert cap(0.75)(times) == pytest.approx(6.0)
    assert fewest(lambda t: 4.5, cap(0.75))(times) == 4.5
    assert speed(must=6).meets(6.0, 6.0)
    assert not overhead(must=1.1).meets(1.2, 1.1)
    assert overhead(must=1.1).meets(1.05, 1.1)


def test_the_median_round_is_judged() -> None:
    case = Case("t/median", "three rounds", doubled, Figure("x", lambda t: t["peer"] / t["ours"], cap(0.5), cap(0.9)))
    wall = [{"ours": 1.0, "peer": p, "base": 0.5} for p in (4.0, 100.0, 6.0)]
    result = run._judged(report.Result(case.name, case.what, "measured", "peer", "x"), case, wall, wall)
    assert (result.value, result.spread, result.rounds) == (6.0, (4.0, 100.0), 3)
    assert (result.must, result.met) == (6.0, True)
    assert result.aim == pytest.approx(10.8)
    assert result.aim_met is False


def test_a_run_writes_a_table_and_a_record(tmp_path: Path) -> None:
    case = Case("t/two ways", "twice a vector", doubled, speed(must=1e-9, aim=1e9), peers=("torch",))
    result = run.measure_case(case, quick=True)
    assert result.status == "measured"
    assert result.met is True
    assert result.aim_met is False
    assert result.rounds >= 3
    assert set(result.wall) == {"ours", "peer", "base"}
    text = report.table([result])
    assert "t/two ways" in text
    assert "yes, not the aim" in text
    assert "fact 1" in text
    report.write(tmp_path / "r.json", machine.describe(), [result])
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["schema"] == 1
    assert {"date", "cpu", "cores", "threads", "python", "versions", "malloc", "load", "commit"} <= set(
        record["machine"]
    )
    assert record["machine"]["versions"]["torch"].startswith("2.")
    (row,) = record["results"]
    assert row["value"] == result.value
    assert row["errors"]["ours"]["y"] == 0.0
    assert {"must", "aim", "met", "aim_met", "wall", "cpu", "facts", "spread", "rounds", "busy"} <= set(row)


def test_stored_records_hold_what_they_must() -> None:
    for path in run.RESULTS.glob("*.json"):
        record = json.loads(path.read_text())
        assert record["schema"] == 1
        assert record["machine"]["cpu"]
        assert record["machine"]["threads"] >= 1
        assert {row["name"] for row in record["results"]} <= {case.name for case in CASES}


def test_the_command_line_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    assert "hra/overhead" in capsys.readouterr().out
    assert run.main(["--only", "nothing like it"]) == 2
    assert "no case has" in capsys.readouterr().err


def test_the_adapter_reference_agrees_with_our_layer_on_a_small_one() -> None:
    layer = frozen_layer(12)
    vectors, x, g = torch.randn(4, 12), torch.randn(7, 12).requires_grad_(), torch.randn(7, 12)
    model, parameter = ours_on(layer, vectors)
    y = model(x)
    mine = (y, *torch.autograd.grad(y, (x, parameter), g))
    for a, b in zip(mine, reference(layer, vectors, x.detach(), g), strict=True):
        assert float((a.detach().double() - b).norm() / b.norm()) <= 100 * torch.finfo(torch.float32).eps


def test_the_attached_boft_and_flora_compute_what_their_peers_do() -> None:
    layer = frozen_layer(16)
    skew = 0.3 * torch.randn(2, 4, 6)
    x = torch.randn(5, 16)
    ours, theirs = Attached(layer, skew), Arithmetic(layer, skew)
    assert ours.rotation.shape == skew.shape and ours.scale.shape == (16,)
    eps = torch.finfo(torch.float32).eps
    assert float((ours(x) - theirs(x)).norm() / theirs(x).norm()) <= 100 * eps
    verify(flora_problem(torch.nn.Linear(12, 8), (2, 2), torch.randn(5, 12), torch.randn(5, 8)))
    images = torch.randn(2, 4, 5, 5), torch.randn(2, 6, 5, 5)
    verify(flora_problem(torch.nn.Conv2d(4, 6, 3, padding=1), (2, 3, 2, 2), *images))


@pytest.mark.parametrize("made", [lora_problem, hra_problem])
def test_the_adapted_convolutions_compute_what_their_peers_do(made: Any) -> None:
    pytest.importorskip("peft")
    layer = torch.nn.Conv2d(6, 5, 3, padding=1).requires_grad_(False)
    x, g = torch.randn(2, 6, 7, 4).requires_grad_(), torch.randn(2, 5, 7, 4)
    problem = made(layer, 2, x, g)
    verify(problem)
    for contender in problem.contenders.values():
        assert contender.read is None or len(contender.read(contender.call())) == len(problem.names)


@pytest.mark.parametrize("name", METHODS)
def test_stacked_rows_are_right_in_the_case_that_times_them(name: str) -> None:
    verify(stacked_problem(METHODS[name][0], 64, many=6, batch=4, tokens=3))


RUN = {"numbers": 100, "test": 80.0, "dev": 80.0, "dev_loss": 0.5, "seed": 2, "rate": 2e-3}


def test_the_papers_table_chooses_rates_on_dev_and_judges_the_means() -> None:
    runs = [
        RUN | {"row": "head", "numbers": 0, "test": 75.0},
        RUN | {"row": "lora8", "test": 81.0},
        RUN | {"row": "lora8", "rate": 4e-3, "dev": 82.0, "test": 80.0},
        RUN | {"row": "lora8", "rate": 4e-3, "seed": 3, "dev": 60.0, "test": 82.0},
        RUN | {"row": "hra8", "numbers": 50, "test": 79.0},
        RUN | {"row": "hra8", "numbers": 50, "rate": 4e-3, "dev_loss": 0.4, "test": 80.1},
        RUN | {"row": "circulant", "numbers": 7, "test": 78.0},
    ]
    found = {line.row.name: line for line in table.lines(runs)}
    assert (found["lora8"].rate, found["lora8"].tests, found["lora8"].mean) == (4e-3, (80.0, 82.0), 81.0)
    assert found["lora8"].error == pytest.approx(1.0)
    assert found["hra8"].rate == 4e-3 and found["hra8"].faults == ()  # of equal accuracies the lower loss
    assert found["circulant"].faults == ("3.0 below LoRA r=8", "only 3.0 above the head", "0.070 of LoRA's numbers")
    assert "| HRA r=8 | 50 | 0.5 | 0.004 | 80.1 | 80.1 | met so far |" in table.markdown(list(found.values()))
    with pytest.raises(ValueError, match="no row nobody; there are: head, lora8"):
        papers_rows.chosen(["nobody"])


def test_the_exact_kms_solution_and_the_measured_backward_error() -> None:
    n, rho = 40, 0.9
    column = rho ** numpy.arange(n)
    b = numpy.random.default_rng(0).standard_normal(n)
    x = kms_solution(rho, b).astype(float)
    eps = numpy.finfo(float).eps
    condition = ((1 + rho) / (1 - rho)) ** 2
    right = numpy.linalg.solve(scipy.linalg.toeplitz(column), b)
    assert numpy.linalg.norm(x - right) <= n * condition * eps * numpy.linalg.norm(right)
    assert backward_error(column, column, x, b) <= 10 * eps  # x is exact but for its own rounding
    assert backward_error(column, column, 1.5 * x, b) > 1e-3  # a wrong one is seen
    row = numpy.concatenate((column[:1], numpy.zeros(n - 1)))
    lower = scipy.linalg.solve_triangular(scipy.linalg.toeplitz(column, row), b, lower=True)
    assert backward_error(column, row, lower, b) <= n * eps
