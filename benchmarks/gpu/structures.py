"""Kernels of one structure each, against the copy rate, torch.linalg.solve and torch.compile of the composed form."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.row import Bound, Context, Result, Row, at_least, at_most
from structmat import backend
from structmat.functional import operators
from structmat.functional.householder import normalised, rotate_rows
from structmat.functional.orthogonal import cayley

__all__ = ["ROWS"]

KEPT = at_least(1.15)  # a kernel stays if it beats torch.compile of the composed form by this on a documented shape


def over(seconds: dict[str, float], ours: str, *others: str) -> float | None:
    """The least of the others' seconds over ours; None where one is missing."""
    found = [seconds[name] for name in others if name in seconds]
    return min(found) / seconds[ours] if ours in seconds and found else None


def _reference(function: Callable[..., Any]) -> Callable[..., Any]:
    def plain(*given: Any) -> Any:
        with backend.use_backend("reference"):
            return function(*given)

    return plain


def _compared(c: Context, name: str, seconds: dict[str, float], errors: dict[str, str], *others: str) -> Result:
    value = over(seconds, "kernel, launched", *others)
    return Result(f"{name}: over torch.compile", value, "x", None, KEPT, seconds, errors)


def _timed(c: Context, runs: dict[str, Callable[[int], Any]]) -> tuple[dict[str, float], dict[str, str]]:
    """The kernel as replays of a graph, which a fraction of the copy rate is about: these passes take no longer than
    the launches from Python before them. Launched one by one it is compared with what else is launched so."""
    return c.times({**runs, "kernel, launched": runs["kernel"]}, graph=("kernel",))


def cayley_row(count: int, b: int, c: Context) -> list[Result]:
    """R of skew matrices in float32, forward; and the gradient."""
    count = c.size(count, 4)

    def make(seed: int) -> torch.Tensor:
        lower = c.randn(count, b, b, dtype=torch.float32, seed=seed)
        return (lower - lower.mT) / b**0.5

    inputs = c.sets(make)
    c.require("cayley", inputs[0], tuple(inputs[0].shape))
    eye = torch.eye(b, device=c.device)
    compiled = c.compiled(cayley)
    of = lambda k: inputs[k % len(inputs)]  # noqa: E731
    runs: dict[str, Callable[[int], Any]] = {
        "kernel": lambda k: operators.cayley(of(k)),
        "kernel, launched": lambda k: operators.cayley(of(k)),
        "composed": lambda k: _reference(cayley)(of(k)),
        "compiled": lambda k: _reference(compiled)(of(k)),
        "linalg.solve": lambda k: torch.linalg.solve(eye + of(k), eye - of(k)),
    }
    seconds, errors = c.times(runs, graph=("kernel",))
    name, moved = f"Cayley {count} x {b} x {b}", 3.0 * inputs[0].nbytes
    ours, note = seconds.get("kernel"), c.launched()
    value = None if ours is None else 1e6 * ours
    kept = [_inverse(c, inputs[0])]
    g = c.randn(count, b, b, dtype=torch.float32, seed=99)
    back, failed = c.times({"kernel": lambda k: operators.cayley_gradient(of(k), kept[0], g)}, graph=("kernel",))
    return [
        Result(name, value, "us", at_most(15), None, seconds, errors, moved, c.fraction(moved, ours), note),
        Result(
            f"{name}: over linalg.solve", over(seconds, "kernel, launched", "linalg.solve"), "x", at_least(4), note=note
        ),
        Result(f"{name}: over torch.compile", over(seconds, "kernel, launched", "compiled"), "x", None, KEPT),
        Result(f"{name}: gradient", _microseconds(back, "kernel"), "us", seconds=back, errors=failed, moved=moved),
    ]


def _inverse(c: Context, k: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = operators.cayley(k)[1]
    return found


def _microseconds(seconds: dict[str, float], name: str) -> float | None:
    return 1e6 * seconds[name] if name in seconds else None


def _blocks(c: Context, g: int, lanes: int) -> tuple[list[Any], torch.Tensor, float]:
    n, d = c.size(16384, 64), c.size(4096, 2 * g)
    inputs = c.sets(lambda seed: (c.randn(n, d, seed=seed), c.randn(n, d, seed=seed + 50)))
    w = c.randn(d // g, g, g, dtype=torch.float32) / g**0.5
    op = "block_diagonal" if lanes == 1 else "block_diagonal_strided"
    c.require(op, inputs[0][0], tuple(inputs[0][0].shape), tuple(w.shape), (lanes,))
    return inputs, w, float(inputs[0][0].nbytes)


def _lane(c: Context, g: int) -> int:
    return c.size(4096, 2 * g) // g


def blocks_forward(g: int, strided: bool, must: Bound | None, aim: Bound | None, c: Context) -> list[Result]:
    """Rows through ``d / g`` blocks of order g, in bfloat16."""
    lanes = _lane(c, g) if strided else 1
    inputs, w, pass_bytes = _blocks(c, g, lanes)
    half = w.to(torch.bfloat16)
    product = lambda x, w: operators.block_product(x, w, lanes)  # noqa: E731
    compiled = c.compiled(product)
    of = lambda k: inputs[k % len(inputs)][0]  # noqa: E731
    runs: dict[str, Callable[[int], Any]] = {
        "kernel": lambda k: operators.block_diagonal(of(k), w, lanes),
        "einsum": lambda k: product(of(k), half),
        "compiled": lambda k: compiled(of(k), half),
    }
    seconds, errors = _timed(c, runs)
    moved = 2 * pass_bytes + w.nbytes
    name = f"block-diagonal g={g}{' strided' if strided else ''}"
    fraction = c.fraction(moved, seconds.get("kernel"))
    return [
        Result(name, fraction, "of the copy rate", must, aim, seconds, errors, moved, fraction, c.launched()),
        _compared(c, name, seconds, errors, "compiled", "einsum"),
    ]


def blocks_backward(g: int, strided: bool, must: Bound | None, c: Context) -> list[Result]:
    """Both gradients, three passes over the rows."""
    lanes = _lane(c, g) if strided else 1
    inputs, w, pass_bytes = _blocks(c, g, lanes)
    half = w.to(torch.bfloat16)

    def product(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> Any:
        return torch.func.vjp(lambda a, b: operators.block_product(a, b, lanes), x, w)[1](y)

    compiled = c.compiled(product)
    of = lambda k: inputs[k % len(inputs)]  # noqa: E731
    runs: dict[str, Callable[[int], Any]] = {
        "kernel": lambda k: operators.block_diagonal_gradient(*of(k), w, lanes),
        "einsum": lambda k: product(*of(k), half),
        "compiled": lambda k: compiled(*of(k), half),
    }
    seconds, errors = _timed(c, runs)
    moved = 3 * pass_bytes + 2 * w.nbytes
    name = f"block-diagonal g={g}{' strided' if strided else ''}, backward"
    fraction = c.fraction(moved, seconds.get("kernel"))
    return [
        Result(name, fraction, "of the copy rate", must, None, seconds, errors, moved, fraction, c.launched()),
        _compared(c, name, seconds, errors, "compiled", "einsum"),
    ]


def reflections(r: int, must: Bound | None, c: Context) -> list[Result]:
    """Products of r reflections, forward (two passes) and backward (four), in bfloat16."""
    n, d = c.size(16384, 64), c.size(4096, 64)
    inputs = c.sets(lambda seed: (c.randn(n, d, seed=seed), c.randn(n, d, seed=seed + 50)))
    v = normalised(c.randn(r, d, dtype=torch.float32))
    c.require("householder_product", inputs[0][0], (n, d), (r, d))
    half = v.to(torch.bfloat16)
    compiled = c.compiled(rotate_rows)
    of = lambda k: inputs[k % len(inputs)][0]  # noqa: E731

    def pulled(x: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> Any:
        return torch.func.vjp(rotate_rows, x, v)[1](g)

    pulled_compiled = c.compiled(pulled)
    forward: dict[str, Callable[[int], Any]] = {
        "kernel": lambda k: operators.householder(of(k), v),
        "composed": lambda k: _reference(rotate_rows)(of(k), half),
        "compiled": lambda k: _reference(compiled)(of(k), half),
    }
    _, w, t = operators.householder(of(0), v)
    backward: dict[str, Callable[[int], Any]] = {
        "kernel": lambda k: operators.householder_gradient(
            inputs[k % len(inputs)][0], v, t, w, inputs[k % len(inputs)][1], True
        ),
        "compiled": lambda k: _reference(pulled_compiled)(inputs[k % len(inputs)][0], half, inputs[k % len(inputs)][1]),
    }
    found = []
    for name, runs, passes in (("forward", forward, 2), ("backward", backward, 4)):
        seconds, errors = _timed(c, runs)
        moved = float(passes * inputs[0][0].nbytes)
        fraction = c.fraction(moved, seconds.get("kernel"))
        title = f"Householder r={r}, {name}"
        note = c.launched()
        found.append(Result(title, fraction, "of the copy rate", must, None, seconds, errors, moved, fraction, note))
        if name == "forward":
            found.append(_compared(c, title, seconds, errors, "compiled", "composed"))
    return found


def factor(r: int, c: Context) -> list[Result]:
    """T of r vectors: one Gram matrix and one inverse."""
    d = c.size(4096, 64)
    inputs = c.sets(lambda seed: c.randn(r, d, seed=seed))
    if c.dry:
        runs: dict[str, Callable[[int], Any]] = {"kernel": lambda k: operators.wy_matrix(inputs[0].float())}
    else:
        kernels = backend.launchers("householder")
        runs = {"kernel": lambda k: kernels.factor(inputs[k % len(inputs)])}
    seconds, errors = c.times(runs, graph=("kernel",))
    name, value = f"T of {r} reflections, d={d}", _microseconds(seconds, "kernel")
    return [Result(name, value, "us", None, at_most(12), seconds, errors)]


def composed_blocks(c: Context) -> list[Result]:
    """The factors of a butterfly as one block a span: order 8, four factors, from their rotations."""
    import structmat as sm

    d = c.size(4096, 64)
    lower = c.randn(4, d // 8, 28, dtype=torch.float32)
    rotations = operators.cayley(_skew(lower))[0].reshape(4, d // 8, 8, 8)
    a = sm.OrthogonalButterfly(lower)

    def form(k: int) -> Any:
        from structmat.functional.launched_compose import composed

        found = composed(rotations, False)
        if found is None and not c.dry:
            raise RuntimeError("no kernel of compose_blocks serves this")
        return found

    def on_demand(k: int) -> Any:
        with c.kernels():
            return form(k)

    seconds, errors = c.times({"kernel": on_demand, "composed": lambda k: _reference(a.prepare)()}, graph=("kernel",))
    value = _microseconds(seconds, "kernel")
    return [Result("blocks composed b=8 m=4, d=4096", value, "us", None, at_most(20), seconds, errors)]


def _skew(lower: torch.Tensor) -> torch.Tensor:
    from structmat.functional.orthogonal import skew

    return skew(lower, 8).reshape(-1, 8, 8)


def _row(name: str, run: Callable[..., list[Result]], *given: Any, promised: tuple[str, ...] = ()) -> Row:
    return Row(name, functools.partial(run, *given), promised)


ROWS = (
    _row("Cayley 2048 x 8 x 8", cayley_row, 2048, 8, promised=("15 us", "4x linalg.solve")),
    _row("Cayley 512 x 32 x 32", cayley_row, 512, 32, promised=("15 us", "4x linalg.solve")),
    _row("block-diagonal g=64", blocks_forward, 64, False, at_least(0.75), at_least(0.85), promised=("75 %",)),
    _row("block-diagonal g=64, backward", blocks_backward, 64, False, at_least(0.65), promised=("65 %",)),
    _row("Householder r=16", reflections, 16, at_least(0.65), promised=("65 %",)),
    _row("Householder r=32", reflections, 32, at_least(0.65), promised=("65 %",)),
    _row("Householder r=64", reflections, 64, at_least(0.65), promised=("65 %",)),
    _row("block-diagonal g=64 strided", blocks_forward, 64, True, None, at_least(0.60)),
    _row("block-diagonal g=64 strided, backward", blocks_backward, 64, True, None),
    _row("block-diagonal g=16", blocks_forward, 16, False, None, at_least(0.75)),
    _row("block-diagonal g=128", blocks_forward, 128, False, None, at_least(0.75)),
    _row("Householder r=128", reflections, 128, None),
    _row("T of 64 reflections", factor, 64),
    _row("blocks composed", composed_blocks),
)
