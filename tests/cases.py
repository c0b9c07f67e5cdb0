"""Which examples the tests run over: in profile dev two or three settings of each, in profile ci every dtype and
batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch

from structmat.testing.conformance import Case
from structmat.testing.examples import EXAMPLES, Example
from structmat.testing.reference import magnitude_of

CI = os.environ.get("HYPOTHESIS_PROFILE", "dev") == "ci"
DOUBLE = (torch.float64, torch.complex128)

Setting = tuple[torch.dtype, tuple[int, ...]]


def settings(example: Example, position: int, dtypes: tuple[torch.dtype, ...] | None = None) -> list[Setting]:
    """All pairs of dtype and batch in profile ci; else float64 alone and one that rotates through the others."""
    legal = [d for d in example.dtypes if dtypes is None or d in dtypes]
    every = [(d, b) for d in legal for b in example.batches]
    if CI or len(every) <= 2:
        return every
    return [every[0], every[1 + position % (len(every) - 1)]]


def name_of(example: Example, setting: Setting) -> str:
    """A test id such as ``toeplitz-5x3-complex64-2``."""
    dtype, batch = setting
    shown = "x".join(map(str, batch))
    return f"{example.name}-{str(dtype).removeprefix('torch.')}" + (f"-batch{shown}" if batch else "")


def over_examples(
    keep: Callable[[Example], bool] = lambda e: True, dtypes: tuple[torch.dtype, ...] | None = None
) -> pytest.MarkDecorator:
    """Parametrise a test by ``case`` over the examples that ``keep`` lets through."""
    found = [
        pytest.param((e, s), id=name_of(e, s))
        for position, e in enumerate(EXAMPLES)
        if keep(e)
        for s in settings(e, position, dtypes)
    ]
    assert found, "no example is left, so nothing would be tested"
    return pytest.mark.parametrize("case", found, indirect=True)


def build(example: Example, setting: Setting) -> Case:
    """The matrix of this setting with its dense reference."""
    matrix = example.build(*setting)
    return Case(matrix, example.dense(matrix), magnitude_of(matrix), example.smooth)


def square(example: Example) -> bool:
    """Whether the matrix is square (found by making it)."""
    m, n = example.build().shape[-2:] if torch.float64 in example.dtypes else (0, 1)
    return bool(m == n)


def pairs(names: Iterable[str], examples: Sequence[Example], every: int = 2) -> pytest.MarkDecorator:
    """Parametrise by ``verb`` and ``example``: all pairs in profile ci, else of each verb every second (or third)
    example, shifted from verb to verb, so that each verb and each example appears."""
    chosen = [
        pytest.param(verb, e, id=f"{verb}-{e.name}")
        for i, verb in enumerate(names)
        for j, e in enumerate(examples)
        if CI or (i + j) % every == 0
    ]
    return pytest.mark.parametrize(("verb", "example"), chosen)
