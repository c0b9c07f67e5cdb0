"""Settings of every test run: hypothesis profiles, torch's threads and seed, and how a GPU test is skipped."""

from __future__ import annotations

import os
import random
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck

# The tests share the cores with each other (pytest-xdist): one thread each is faster than many that wait.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# No deadline in any profile: the first FFT of a size, or a compilation, takes longer than later ones; no fault of ours.
_common = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
hypothesis.settings.register_profile("dev", max_examples=12, derandomize=True, **_common)
hypothesis.settings.register_profile("ci", max_examples=200, **_common)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

SEED = int(os.environ.get("STRUCTMAT_TEST_SEED", "0"))


def pytest_report_header() -> str:
    """Name what a failure may depend on."""
    profile = os.environ.get("HYPOTHESIS_PROFILE", "dev")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    torch_line = f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {gpu}"
    return f"{torch_line}; hypothesis profile {profile!r}; seed {SEED}"


@pytest.fixture(autouse=True)
def _fixed_state() -> Iterator[None]:
    """Start every test from one seed and one default dtype, and fail the test that leaves another default behind."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    random.seed(SEED)
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    left = (torch.get_default_dtype(), torch.is_grad_enabled())
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    assert left == (dtype, grad), f"the test left (default dtype, grad enabled) = {left}, it found {(dtype, grad)}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Import every test module from one seed: what it draws at import does not depend on what came before it."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    random.seed(SEED)
    yield


@pytest.fixture
def generator() -> torch.Generator:
    """Return a seeded generator, for tests that draw their own tensors."""
    return torch.Generator().manual_seed(SEED)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Print, with every failure, the seed that repeats it."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call" and report.failed:
        report.sections.append(("seed", f"torch, numpy and random start from {SEED}: STRUCTMAT_TEST_SEED={SEED}"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run: the two reasons here are among those that tools/check_skips.py accepts."""
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    compiler = headers and any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if item.get_closest_marker("inductor") and not compiler:
            item.add_marker(pytest.mark.skip(reason="needs the package 'g++' or 'python3-dev'"))
