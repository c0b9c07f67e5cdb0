"""``python -m benchmarks.gpu.smoke``: the library and the adapters on a device, each result against the CPU in float64.

Structured matrices of every family in float32; adapters in bfloat16 with gradients, merged and compiled; on a GPU the
operations with kernels on demand. Prints ``ok: name`` or ``FAILED: name: why`` and exits 1 if anything failed.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator

import torch
from torch import nn

import structmat as sm
from benchmarks.gpu.clock import message
from structmat import adapters, backend

__all__ = ["main"]

Check = tuple[str, Callable[[], None]]


def near(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """``||found - wanted|| <= tolerance ||wanted||``; NaN fails."""
    a, b = found.detach().double().cpu(), wanted.detach().double().cpu()
    error = float((a - b).norm() / b.norm())
    if not error <= tolerance:
        raise AssertionError(f"relative error {error:.2e}, allowed {tolerance:.0e}")


def matrices(n: int) -> dict[str, sm.Matrix]:
    """One of each family, float64."""
    torch.manual_seed(0)
    r = torch.randn
    wide = {"dtype": torch.float64}
    return {
        "circulant": sm.Circulant(r(n, **wide)),
        "toeplitz": sm.Toeplitz(r(2 * n - 1, **wide), n),
        "hankel": sm.Hankel(r(2 * n - 1, **wide), n),
        "low displacement rank": sm.LowDisplacementRank(r(n, 2, **wide), r(n, 2, **wide)),
        "householder": sm.HouseholderProduct(r(8, n, **wide)),
        "butterfly": sm.OrthogonalButterfly(r(2, n // 8, 28, **wide) / 8),
        "block-diagonal": sm.BlockDiagonal(r(n // 16, 16, 16, **wide)),
        "kronecker": sm.kron(sm.Dense(r(8, 8, **wide)), sm.Dense(r(n // 8, n // 8, **wide))),
        "low rank": sm.LowRank(r(n, 4, **wide), r(n, 4, **wide)),
    }


def products(device: torch.device) -> Iterator[Check]:
    """Products and gradients of every family on the device, in float32."""
    n = 256
    x = torch.randn(40, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for name, a in matrices(n).items():

        def check(a: sm.Matrix = a) -> None:
            here = a.to(device=device, dtype=torch.float32)
            near(here.linear(x.float().to(device)), a.linear(x), 1e-5)
            near(here.to_dense(), a.to_dense(), 1e-5)

        yield f"{name}: product and entries", check

    def solve() -> None:
        t = sm.Toeplitz(torch.cat((torch.randn(n - 1), torch.tensor([3.0 * n]), torch.randn(n - 1))).double(), n)
        b = torch.randn(n, 2, dtype=torch.float64)
        near(t.to(device=device).solve(b.to(device)), torch.linalg.solve(t.to_dense(), b), 1e-9)

    yield "toeplitz: solve", solve


METHODS: dict[str, Callable[[], object]] = {
    "HRA": lambda: adapters.HRA(16),
    "BOFT": lambda: adapters.BOFT(8, 3),
    "OFT": lambda: adapters.OFT(16),
    "LoRA": lambda: adapters.LoRA(8),
    "FLoRA": lambda: adapters.FLoRA((8, 8)),
}
KERNELS = ("HRA", "BOFT", "OFT")  # what kernels serve whole, so that "triton" may be demanded


def _network(method: Callable[[], object]) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256))
    adapters.attach(model, method(), targets="all-linear")  # type: ignore[arg-type]
    with torch.no_grad():
        for p in adapters.trainable_parameters(model):
            p.add_(torch.randn_like(p), alpha=0.02)
    return model


def layers(device: torch.device, modes: tuple[str, ...]) -> Iterator[Check]:
    """Two adapted layers: output and gradients in float32 and bfloat16, merging, torch.compile, a step of training."""
    x = torch.randn(2048, 256, generator=torch.Generator().manual_seed(2))
    for name, method in METHODS.items():
        served = [mode for mode in modes if mode != "triton" or name in KERNELS]
        exact = _network(method).double()
        y = exact(x.double())
        grads = torch.autograd.grad(y.square().mean(), adapters.trainable_parameters(exact))
        for mode in served:
            for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):

                def check(exact=exact, y=y, grads=grads, mode=mode, dtype=dtype, tolerance=tolerance) -> None:  # type: ignore[no-untyped-def]
                    model = copy.deepcopy(exact).float().to(device=device, dtype=dtype)
                    with backend.use_backend(mode):
                        found = model(x.to(device=device, dtype=dtype))
                        near(found, y, tolerance)
                        leaves = adapters.trainable_parameters(model)
                        for a, b in zip(torch.autograd.grad(found.float().square().mean(), leaves), grads, strict=True):
                            near(a, b, 4 * tolerance)

                yield f"{name}, {mode}, {str(dtype)[6:]}: output and gradients", check

        def merged(exact=exact, y=y) -> None:  # type: ignore[no-untyped-def]
            model = copy.deepcopy(exact).float().to(device)
            adapters.merge(model)
            near(model(x.to(device)), y, 1e-4)
            adapters.unmerge(model)
            near(model(x.to(device)), y, 1e-4)

        yield f"{name}: merge and unmerge", merged


def compiled(device: torch.device, modes: tuple[str, ...], engine: str) -> Iterator[Check]:
    """One graph, forward and backward, with kernels on demand and without."""
    x = torch.randn(512, 256, generator=torch.Generator().manual_seed(2))
    for name in ("HRA", "BOFT"):
        for mode in modes:

            def check(name: str = name, mode: str = mode) -> None:
                torch._dynamo.reset()
                model = _network(METHODS[name]).to(device)
                leaves = adapters.trainable_parameters(model)
                with backend.use_backend("reference"):
                    wanted = model(x.to(device))
                    wanted_grads = torch.autograd.grad(wanted.square().mean(), leaves)
                with backend.use_backend(mode):
                    found = torch.compile(model, fullgraph=True, backend=engine)(x.to(device))
                    near(found, wanted, 1e-4)
                    for a, b in zip(torch.autograd.grad(found.square().mean(), leaves), wanted_grads, strict=True):
                        near(a, b, 1e-3)

            yield f"{name}, {mode}: torch.compile(fullgraph=True)", check


def main(given: list[str] | None = None) -> int:
    """Run all; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.smoke", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--modes", nargs="*", default=None, help="of use_backend; auto, and triton on a GPU")
    chosen = parser.parse_args(given)
    device = torch.device(chosen.device)
    modes = tuple(chosen.modes or (("auto", "triton") if device.type == "cuda" else ("auto",)))
    engine = "inductor" if device.type == "cuda" else "aot_eager"
    torch.backends.cuda.matmul.allow_tf32 = False
    bad = 0
    for name, check in [*products(device), *layers(device, modes), *compiled(device, modes, engine)]:
        try:
            check()
            print(f"ok: {name}", flush=True)
        except Exception as error:
            bad += 1
            print(f"FAILED: {name}: {message(error)}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
