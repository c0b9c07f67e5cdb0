"""The curve of the superfast Toeplitz solver: time and error by order, beside Levinson's recursion and PCG.

    python -m benchmarks.superfast [--powers 12 14 16 18] [--output FILE]

One right-hand side in float64, one thread; ``superfast`` is everything from the entries to the refined solution. Times
are processor times of this one thread, which other programs disturb less than elapsed ones.
Levinson is ``scipy.linalg.solve_toeplitz``, PCG our own with Strang's circulant (then T. Chan's) where T is definite.
The backward error is computed for all alike with products by FFT in float64 (itself good to a few eps); the forward
error is against the x that b was made from, or against the exact solution where there is a formula (KMS).

The greatest order is timed once for Levinson, on one family: its work depends on the order alone, so the other
families get four times the time of half the order, marked ``~``, without an error.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import scipy.linalg
import torch

import structmat as sm
from benchmarks import machine
from benchmarks.cases.solves import kms_solution
from structmat.functional import superfast
from structmat.functional.toeplitz_system import System

_EPS = float(numpy.finfo(numpy.float64).eps)
_TIMED = "random"  # the family on which Levinson is timed at the greatest order
_RHO = 0.99
_RESULTS = Path(__file__).resolve().parent / "results" / "curves"


def families(n: int) -> dict[str, tuple[Any, Any, bool]]:
    """Column, row, and whether the matrix is positive definite."""
    k = numpy.arange(n, dtype=numpy.float64)
    draw = numpy.random.default_rng(5)
    kms = _RHO**k
    gauss = numpy.exp(-((k / 10) ** 2) / 2) + 1e-6 * (k == 0)
    power = (1 + k) ** -1.1 - 3.0 * (k == 0)
    column, row = draw.standard_normal((2, n))
    row[0] = column[0]
    return {
        "KMS 0.99": (kms, kms, True),
        "Gaussian + 1e-6": (gauss, gauss, True),
        "random": (column, row, False),
        "(1+k)^-1.1 - 3 I": (power, power, False),
    }


def _row(name: str, method: str, n: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {"family": name, "method": method, "n": n, "seconds": seconds} | more


def _best(call: Callable[[], Any], times: int) -> tuple[float, Any]:
    """The least of several times, and what the call returned."""
    least, result = math.inf, None
    for _ in range(times):
        start = time.process_time()
        result = call()
        least = min(least, time.process_time() - start)
    return least, result


class _Problem:
    """One matrix with a right-hand side whose solution is known."""

    def __init__(self, name: str, n: int) -> None:
        self.name, self.n = name, n
        self.column, self.row, self.definite = families(n)[name]
        self.t = torch.from_numpy(numpy.concatenate((self.row[:0:-1], self.column)))
        self.system = System(self.t[None])
        x = numpy.random.default_rng(6).standard_normal(n)
        if name.startswith("KMS"):
            self.b = torch.from_numpy(x)
            self.x = torch.from_numpy(kms_solution(_RHO, x).astype(numpy.float64))
        else:
            self.x = torch.from_numpy(x)
            self.b = self.system.multiply(self.x[None, None])[0, 0]

    def errors(self, x: torch.Tensor) -> dict[str, float]:
        eta = self.system.eta(x[None, None], self.b[None, None])
        return {"eta": float(eta), "forward": float((x - self.x).norm() / self.x.norm())}


def _superfast(p: _Problem, times: int) -> list[dict[str, Any]]:
    def solve() -> torch.Tensor:
        return superfast.factor(p.t).solve_rows(p.b[None])[0]

    seconds, x = _best(solve, times)
    rows = [_row(p.name, "superfast", p.n, seconds, **p.errors(x))]
    seconds, f = _best(lambda: superfast.factor(p.t, determinant=True), 1)
    sign, logabs = f.slogdet()
    more = {"sign": float(sign), "logabsdet": float(logabs), "measured error": float(f.found.error)}
    if p.name.startswith("KMS"):
        more["error"] = abs(float(logabs) - (p.n - 1) * math.log1p(-(_RHO**2)))
    return [*rows, _row(p.name, "superfast, with determinant", p.n, seconds, **more)]


def _levinson(p: _Problem, times: int) -> dict[str, Any]:
    b = p.b.numpy()
    try:
        seconds, x = _best(lambda: scipy.linalg.solve_toeplitz((p.column, p.row), b), times)
    except numpy.linalg.LinAlgError as error:
        return _row(p.name, "Levinson", p.n, math.nan, failed=str(error))
    return _row(p.name, "Levinson", p.n, seconds, **p.errors(torch.from_numpy(x)))


def _pcg(p: _Problem, times: int) -> dict[str, Any]:
    a = sm.toeplitz(p.column).assume(sm.Claim.POSITIVE_DEFINITE)
    try:
        seconds, x = _best(lambda: a.solve(p.b, method="cg"), times)
    except sm.SolveError as error:
        return _row(p.name, "PCG", p.n, math.nan, failed=str(error))
    return _row(p.name, "PCG", p.n, seconds, **p.errors(x))


def measure(powers: list[int]) -> list[dict[str, Any]]:
    """All rows, from the smallest order to the greatest; each is printed as it comes."""
    rows: list[dict[str, Any]] = []
    halves: dict[str, float] = {}
    for power in sorted(powers):
        n, greatest = 2**power, power == max(powers) and power > 16
        for name in families(2):
            p = _Problem(name, n)
            found = _superfast(p, 3 if power < 18 else 2)
            if greatest and name != _TIMED:
                if name not in halves:
                    halves[name] = _levinson(_Problem(name, n // 2), 1)["seconds"]
                found.append(_row(name, "Levinson", n, 4 * halves[name], extrapolated=True))
            else:
                found.append(_levinson(p, 3 if power < 16 else 1))
            if p.definite:
                found.append(_pcg(p, 3))
            for row in found:
                print(_line(row), flush=True)
            rows += found
    return rows


def _line(row: dict[str, Any]) -> str:
    mark = "~" if row.get("extrapolated") else " "
    numbers = "  ".join(f"{k} {row[k]:.1e}" for k in ("eta", "forward", "measured error", "error") if k in row)
    tail = numbers or row.get("failed", "")
    return f"{row['n']:>7} {row['family']:<18} {row['method']:<28}{mark}{row['seconds']:8.3f} s  {tail}"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each family and order."""
    heads = ["family", "n", "superfast", "eta/eps", "Levinson", "eta/eps", "PCG", "eta/eps", "Levinson / superfast"]
    lines = [heads, ["---"] * len(heads)]
    for name in families(2):
        for n in sorted({row["n"] for row in rows}):
            cells = [name, f"{n:,}"]
            here = {row["method"]: row for row in rows if row["family"] == name and row["n"] == n}
            for method in ("superfast", "Levinson", "PCG"):
                row = here.get(method)
                if row is None or "failed" in row:
                    cells += ["does not apply" if row is None else "fails", ""]
                    continue
                mark = "~" if row.get("extrapolated") else ""
                cells += [f"{mark}{row['seconds']:.3g} s", f"{row['eta'] / _EPS:.2g}" if "eta" in row else ""]
            ratio = here["Levinson"]["seconds"] / here["superfast"]["seconds"]
            lines.append([*cells, f"{ratio:.1f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str]) -> int:
    machine.restart("benchmarks.superfast", arguments, threads=1, malloc=True)
    about = machine.describe()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.superfast", description=__doc__)
    parser.add_argument("--powers", type=int, nargs="+", default=[12, 14, 16, 18], help="orders as powers of two")
    parser.add_argument("--output", type=Path, default=_RESULTS / f"superfast-{about['date'][:10]}.json")
    options = parser.parse_args(arguments)
    rows = measure(options.powers)
    print("\n" + table(rows))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"schema": 1, "machine": about, "results": rows}, indent=1) + "\n")
    print(f"\nwritten to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
