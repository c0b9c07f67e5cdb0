"""The kernels without a GPU: the lane under Triton's interpreter in its own process, and who is chosen when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import structmat as sm
from benchmarks import aot
from structmat import backend
from structmat.kernels import configs, stored

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("share", ["0/2", "1/2"])
def test_the_lane_under_the_interpreter(share: str) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "STRUCTMAT_SHARD": share}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key != "STRUCTMAT_KERNELS"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True
    )


def test_the_environment_sets_the_mode() -> None:
    program = (
        "import torch, structmat as sm\n"
        "try: print(sm.HouseholderProduct(torch.ones(2, 8)).linear(torch.ones(8)).shape)\n"
        "except sm.BackendError as e: print(e)"
    )
    assert "[8]" in run(program, STRUCTMAT_KERNELS="off").stdout
    assert "Triton kernels run on CUDA devices, not on cpu" in run(program, STRUCTMAT_KERNELS="force").stdout
    assert "legal values are auto, off, force" in run(program, STRUCTMAT_KERNELS="on").stderr


def test_no_kernel_is_loaded_unless_it_serves() -> None:
    program = (
        "import sys, torch, structmat as sm\n"
        "sm.HouseholderProduct(torch.ones(2, 8)).linear(torch.ones(8))\n"
        "print([m for m in sys.modules if m.startswith('structmat.kernels')])"
    )
    assert run(program).stdout.strip() == "[]"


CUDA = torch.device("cuda", 0)
SHAPES = ((2048, 8, 8),)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device of compute capability 9.0, and triton, as far as the choice can see."""
    monkeypatch.setattr(backend, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())


def store(folder: Path, measured: dict[str, dict[str, str]], name: str = "sm90.json") -> Path:
    (folder / name).write_text(json.dumps({"measured": measured}))
    return folder


CAYLEY = {"cayley_forward": "cayley_forward-fp32-8-w1-s1", "cayley_backward": "cayley_backward-fp32-8-BN8-w1-s1"}


@pytest.mark.usefixtures("hopper")
def test_auto_needs_a_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    choice = backend.choose("cayley", CUDA, torch.float32, SHAPES)
    assert choice == ("reference", "no measurement of cayley for these sizes is stored for sm_90")
    assert not list(stored.TUNED.glob("*.json")), "a stored measurement changes the default: say so in docs/kernels.md"
    monkeypatch.setattr(stored, "TUNED", store(tmp_path, {"cayley/float32/8/8/2048": CAYLEY}))
    assert backend.choose("cayley", CUDA, torch.float32, SHAPES) == ("triton", "measured to be faster on sm_90")
    for shapes in (((4096, 8, 8),), ((2048, 7, 7),), ((-1, 8, 8),)):  # -1: a number of rows that is a symbol
        assert backend.choose("cayley", CUDA, torch.float32, shapes)[0] == "reference"
    assert backend.choose("cayley", CUDA, torch.float64, SHAPES)[0] == "reference"
    with backend.use_backend("reference"):
        assert backend.choose("cayley", CUDA, torch.float32, SHAPES)[0] == "reference"


@pytest.mark.usefixtures("hopper")
def test_a_measurement_for_every_number_of_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stored, "TUNED", store(tmp_path, {"cayley/float32/8/8/*": CAYLEY}))
    for rows in (-1, 1, 5000):
        assert backend.choose("cayley", CUDA, torch.float32, ((rows, 8, 8),))[0] == "triton"


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("name", ["cayley_forward-fp32-8-w2-s1", "cayley_forward-fp32-16-w1-s1", ""])
def test_a_measurement_of_what_is_not_in_the_table_says_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = {"cayley/float32/8/8/2048": {**CAYLEY, "cayley_forward": name}}
    monkeypatch.setattr(stored, "TUNED", store(tmp_path, measured))
    assert backend.choose("cayley", CUDA, torch.float32, SHAPES)[0] == "reference"


def test_the_configuration_measured_is_the_one_launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = configs.Config("blockdiag_forward", "half", 16, (("BM", 32),), 8, 3)
    configs.lines.cache_clear()
    monkeypatch.setattr(configs, "TABLE", (*configs.TABLE, other))
    shapes = ((100, 32), (2, 16, 16), (1,))
    first = stored.configurations("block_diagonal", "bfloat16", shapes, (9, 0))
    names = {kernel: config.name for kernel, config in first.items()}
    assert names["blockdiag_forward"] != other.name
    measured = {"block_diagonal/bfloat16/16/32/128": {**names, "blockdiag_forward": other.name}}
    monkeypatch.setattr(stored, "TUNED", store(tmp_path, measured))
    found = stored.configurations("block_diagonal", "bfloat16", shapes, (9, 0))
    assert found["blockdiag_forward"] == other and found["blockdiag_backward"] == first["blockdiag_backward"]
    assert stored.configurations("block_diagonal", "bfloat16", shapes, (9, 1)) == first
    configs.lines.cache_clear()


@pytest.mark.usefixtures("hopper")
def test_what_a_device_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Configurations that failed ahead of time for sm_80 or sm_86 are left out there, and nowhere else."""
    (tmp_path / "refused.json").write_text(json.dumps({"80": [], "86": [CAYLEY["cayley_backward"]]}))
    monkeypatch.setattr(stored, "REFUSED", tmp_path / "refused.json")
    for capability, served in (((8, 0), True), ((8, 6), False), ((8, 9), False), ((9, 0), True), ((12, 0), False)):
        monkeypatch.setattr(backend, "_capability", lambda device, found=capability: found)
        with backend.use_backend("triton"):
            if served:
                assert backend.choose("cayley", CUDA, torch.float32, SHAPES)[0] == "triton"
            else:
                with pytest.raises(sm.BackendError, match=f"compute capability {capability[0]}.{capability[1]}"):
                    backend.choose("cayley", CUDA, torch.float32, SHAPES)


@pytest.mark.parametrize(
    ("op", "dtype", "shapes", "capability", "reason"),
    [
        ("fft_product", torch.float32, ((3,),), (9, 0), "holds no Triton kernel for fft_product"),
        ("cayley", torch.bfloat16, SHAPES, (9, 0), "take float32, not bfloat16"),
        ("cayley", torch.float64, SHAPES, (9, 0), "not float64"),
        ("cayley", torch.float32, ((2, 128, 128),), (9, 0), "no configuration for size 128"),
        ("cayley", torch.float32, ((0, 8, 8),), (9, 0), "nothing to compute"),
        ("cayley", torch.float32, SHAPES, (7, 5), "compute capability 8.0"),
        ("block_diagonal", torch.float32, ((9, 512), (2, 256, 256)), (9, 0), "no configuration for size 256"),
    ],
)
def test_reasons(
    op: str, dtype: torch.dtype, shapes: configs.Shapes, capability: tuple[int, int], reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(backend, "_capability", lambda device: capability)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    assert reason in backend.choose(op, CUDA, dtype, shapes)[1]
    with backend.use_backend("triton"), pytest.raises(sm.BackendError, match=reason):
        backend.choose(op, CUDA, dtype, shapes)


def test_every_line_has_a_name_of_its_own_and_every_size_is_served() -> None:
    names = [c.name for c in configs.TABLE]
    assert len(set(names)) == len(names)
    for op, kernels in configs.OPERATIONS.items():
        for dtype in ("float32", "bfloat16"):
            served = [n for n in range(2, 70) if all(configs.lines(kernel, dtype, n) for kernel in kernels)]
            assert served == list(range(2, served[-1] + 1)) and served[-1] >= 32, op


def test_the_compiled_configurations_are_those_of_the_table() -> None:
    """``python -m benchmarks.aot`` wrote the report for this table: without a fault for sm_90, and with the list of
    what other devices are not given."""
    lines = json.loads((ROOT / "benchmarks" / "aot.json").read_text())["lines"]
    for capability in (90, 80):
        assert {line["config"] for line in lines if line["sm"] == capability} == {c.name for c in configs.TABLE}
    assert not [line for line in lines if line["faults"] and line["sm"] == 90]
    assert json.loads(stored.REFUSED.read_text()) == aot.refused(lines)
    assert not stored.refused((9, 0)) and not stored.refused(None)
    assert stored.refused((8, 0)) <= stored.refused((8, 6)) == stored.refused((8, 9)) == stored.refused((12, 0))
    for kernel in {c.kernel for c in configs.TABLE}:
        assert any(c.name not in stored.refused((8, 6)) for c in configs.TABLE if c.kernel == kernel), kernel


def test_explain_says_why_no_kernel_runs() -> None:
    """The operation and the sizes that were asked about, and the reason; on demand, the error of the call itself."""
    a, x = sm.HouseholderProduct(torch.ones(3, 16)), torch.ones(4, 16)
    plan = backend.explain(a, x)
    assert plan.implementation == "reference" and plan.operations == (("householder_product", ((4, 16), (3, 16))),)
    assert plan.why == "no Triton kernel for householder_product is stored for cpu"
    merged = backend.explain(sm.OrthogonalButterfly(torch.ones(2, 4, 6)), torch.ones(2048, 16))
    assert merged.operations == (("block_diagonal", ((2048, 16), (2, 8, 8), (1,))),)
    with backend.use_backend("reference"):
        assert backend.explain(a, x).why == 'asked for by use_backend("reference")'
    with backend.use_backend("triton"), pytest.raises(sm.BackendError, match="householder_product"):
        backend.explain(a, x)
