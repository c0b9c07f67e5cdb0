"""Bad sizes, dtypes and devices: each fault raises its own error, with the objects and sizes in the message, before
anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import structmat as sm

F64 = torch.float64
T = sm.Toeplitz(torch.arange(1.0, 10.0, dtype=F64), 3)  # 7 x 3
S = sm.SymmetricToeplitz(torch.tensor([4.0, 1.0, 0.5], dtype=F64))
Q = sm.HouseholderProduct(torch.ones(1, 3, dtype=F64))
BATCH = sm.Circulant(torch.ones(2, 3, dtype=F64))

SHAPES: list[tuple[str, Callable[[], Any], str]] = [
    (
        "matrix @ vector",
        lambda: T @ torch.ones(5, dtype=F64),
        r"Toeplitz\(shape=\(7, 3\), dtype=float64\) @ x: x has 5 entries, Toeplitz has 3 columns",
    ),
    (
        "matrix @ matrix",
        lambda: T @ torch.ones(5, 2, dtype=F64),
        r"Toeplitz\(shape=\(7, 3\), dtype=float64\) @ x: x has 5 rows, Toeplitz has 3 columns",
    ),
    (
        "matrix on the right",
        lambda: torch.ones(2, 3, dtype=F64) @ T,
        r"x @ Toeplitz\(shape=\(7, 3\).*\): x has 3 columns, Toeplitz has 7 rows",
    ),
    ("scalar", lambda: T @ torch.tensor(1.0, dtype=F64), r"x is a scalar; scale with A \* x"),
    ("batches", lambda: BATCH @ torch.ones(3, 3, 2, dtype=F64), r"batch shapes \(2,\) and \(3,\) do not broadcast"),
    (
        "two matrices",
        lambda: T @ T,
        r"Toeplitz\(shape=\(7, 3\).* @ Toeplitz.*: the left has 3 columns, the right has 7 rows",
    ),
    ("sum", lambda: T + S, r"sizes \(7, 3\) and \(3, 3\) differ"),
    (
        "sum with a vector",
        lambda: S + torch.ones(3, dtype=F64),
        r"the tensor has shape \(3,\), a matrix needs \(\*batch, m, n\)",
    ),
    ("entrywise", lambda: T * S, r"sizes \(7, 3\) and \(3, 3\) differ"),
    (
        "batches of two",
        lambda: BATCH @ sm.Circulant(torch.ones(3, 3, dtype=F64)),
        r"batch shapes \(2,\) and \(3,\) do not broadcast",
    ),
    (
        "scale",
        lambda: S * torch.ones(3, dtype=F64),
        r"a scale has shape \(\) or \(\*batch, 1, 1\); use Diagonal\(entries\) @ A",
    ),
    (
        "solve",
        lambda: S.solve(torch.ones(4, dtype=F64)),
        r"SymmetricToeplitz\(.*\).solve\(b\): b has shape \(4,\), the matrix has 3 rows",
    ),
    (
        "rectangular solve",
        lambda: T.solve(torch.ones(7, dtype=F64)),
        r"Toeplitz\(.*\).solve: the matrix is 7 x 3, solve needs a square one; see pinv, lstsq",
    ),
    ("rectangular inverse", lambda: T.inv(), r"the matrix is 7 x 3, inv needs a square one"),
    ("rectangular slogdet", lambda: T.slogdet(), r"the matrix is 7 x 3, slogdet needs a square one"),
    ("rectangular det", lambda: T.det(), r"the matrix is 7 x 3, det needs a square one"),
    ("rectangular trace", lambda: T.trace(), r"the matrix is 7 x 3, trace needs a square one"),
    ("rectangular eigvals", lambda: T.eigvals(), r"the matrix is 7 x 3, eigvals needs a square one"),
    ("rectangular factor", lambda: T.factor(), r"the matrix is 7 x 3, factor needs a square one"),
    (
        "Toeplitz columns",
        lambda: sm.Toeplitz(torch.ones(4), 5),
        r"4 diagonals \(m \+ n - 1\) do not allow columns=5; legal are 1 to 4",
    ),
    ("Toeplitz columns bool", lambda: sm.Toeplitz(torch.ones(4), True), r"do not allow columns=True"),
    ("Toeplitz no columns", lambda: sm.Toeplitz(torch.ones(4), 0), r"do not allow columns=0"),
    ("Toeplitz of no diagonals", lambda: sm.Toeplitz(torch.ones(0), 1), r"do not allow columns=1; legal are 0 to 0"),
    (
        "low-rank factors",
        lambda: sm.LowRank(torch.ones(3, 2), torch.ones(3, 1)),
        r"LowRank: left has 2 columns \(shape \(3, 2\)\), right has 1",
    ),
    (
        "phases",
        lambda: sm.HouseholderProduct(torch.ones(2, 3), torch.ones(3)),
        r"3 phases \(shape \(3,\)\) for 2 vectors \(shape \(2, 3\)\)",
    ),
    (
        "dense vector",
        lambda: sm.Dense(torch.ones(3)),
        r"Dense: entries must have at least 2 dimensions, got shape \(3,\)",
    ),
    (
        "circulant scalar",
        lambda: sm.Circulant(torch.tensor(1.0)),
        r"Circulant: column must have at least 1 dimension, got shape \(\)",
    ),
    ("product parts", lambda: sm.Product((S, T)), r"Product: .* has 3 columns, .* after it has 7 rows"),
    ("sum parts", lambda: sm.Sum((S, T)), r"Sum: the sizes of .* and .* differ"),
    (
        "linear layer of a batch",
        lambda: sm.nn.Linear(BATCH),
        r"nn.Linear\(Circulant.*\): one matrix is needed, not a batch",
    ),
    (
        "preconditioner",
        lambda: sm.SymmetricToeplitz(torch.ones(3, dtype=F64)).solve(
            torch.ones(3, dtype=F64), method="cg", preconditioner=T
        ),
        r"the preconditioner must be a Matrix of the same size, got Toeplitz",
    ),
]


@pytest.mark.parametrize(("act", "message"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES])
def test_wrong_sizes(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(sm.ShapeError, match=message):
        act()


INT = torch.tensor([1, 2, 3])
DTYPES: list[tuple[str, Callable[[], Any], str]] = [
    (
        "precision",
        lambda: S @ torch.ones(3),
        r"SymmetricToeplitz.* @ x: dtypes float64 and float32 differ in precision; convert one with .to\(dtype\)",
    ),
    (
        "half meets single",
        lambda: S.float() @ torch.ones(3, dtype=torch.bfloat16),
        r"dtypes float32 and bfloat16 differ in precision",
    ),
    (
        "complex of another precision",
        lambda: S @ torch.ones(3, dtype=torch.complex64),
        r"dtypes float64 and complex64 differ in precision",
    ),
    ("two matrices", lambda: S + S.float(), r"dtypes float64 and float32 differ"),
    ("integer operand", lambda: S @ INT, r"x has integer dtype int64; convert it first: x.to\(torch.float64\)"),
    ("boolean operand", lambda: INT.bool() @ S, r"x has integer dtype bool"),
    ("integer right-hand side", lambda: S.solve(INT), r"x has integer dtype int64"),
    (
        "integer entries",
        lambda: sm.Circulant(INT),
        r"Circulant: column must be floating point or complex, got torch.int64; convert .* column.to\(torch.float64\)",
    ),
    (
        "integer diagonals",
        lambda: sm.Toeplitz(INT, 2),
        r"Toeplitz: diagonals must be floating point or complex, got torch.int64",
    ),
    (
        "integer tensor to toeplitz",
        lambda: sm.toeplitz(INT),
        r"c is an integer tensor \(torch.int64\); convert it first: c.to\(torch.float64\)",
    ),
    ("words to toeplitz", lambda: sm.toeplitz(["a"]), r"c must hold numbers, got an array of dtype"),
    (
        "factors of two dtypes",
        lambda: sm.LowRank(torch.ones(3, 1), torch.ones(3, 1, dtype=F64)),
        r"LowRank: right is torch.float64, the other entries are torch.float32",
    ),
    (
        "phases of another precision",
        lambda: sm.HouseholderProduct(torch.ones(1, 3), torch.ones(1, dtype=F64)),
        r"phases is torch.float64",
    ),
    (
        "integer phases",
        lambda: sm.HouseholderProduct(torch.ones(1, 3), torch.ones(1, dtype=torch.int64)),
        r"phases must be floating point or complex",
    ),
    ("sum with integers", lambda: S + torch.ones(3, 3, dtype=torch.int64), r"x has integer dtype int64"),
    ("integer scale", lambda: S * torch.tensor(2), r"\* tensor: dtypes float64 and int64 differ"),
    ("stack", lambda: sm.stack([S, S.float()]), r"differ in dtype; convert one"),
]


@pytest.mark.parametrize(("act", "message"), [s[1:] for s in DTYPES], ids=[s[0] for s in DTYPES])
def test_wrong_dtypes(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(sm.DtypeError, match=message):
        act()


META = torch.ones(3, dtype=F64, device="meta")
DEVICES: list[tuple[str, Callable[[], Any], str]] = [
    (
        "operand",
        lambda: S @ META,
        r"SymmetricToeplitz.* @ x: operands are on cpu and meta; move one with .to\(device\)",
    ),
    ("two matrices", lambda: S + sm.SymmetricToeplitz(META), r"operands are on cpu and meta"),
    ("right-hand side", lambda: S.solve(META), r"operands are on cpu and meta"),
    (
        "fields",
        lambda: sm.LowRank(torch.ones(3, 1, dtype=F64), META[:, None]),
        r"LowRank: right is on meta, the other entries on cpu",
    ),
    ("scale", lambda: S * META[0], r"operands are on cpu and meta"),
]


@pytest.mark.parametrize(("act", "message"), [s[1:] for s in DEVICES], ids=[s[0] for s in DEVICES])
def test_wrong_devices(act: Callable[[], Any], message: str) -> None:
    """The meta device stands for any other one."""
    with pytest.raises(sm.DeviceError, match=message):
        act()
