"""What tools/smoke_wheel.py runs inside the empty environment; the argument is its site-packages folder."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import torch

import structmat as sm

site = Path(sys.argv[1])
package = Path(sm.__file__).parent
assert package == site / "structmat", f"structmat came from {package}, not from the wheel in {site}"
assert not package.is_symlink()
assert (package / "py.typed").is_file(), "py.typed is missing: type checkers would ignore the annotations"
assert importlib.metadata.version("structmat") == sm.__version__

for name in ("structmat.testing", "structmat.adapters", "safetensors", "hypothesis", "transformers"):
    assert name not in sys.modules, f"import structmat imported {name}"
for name in ("safetensors", "hypothesis", "transformers", "peft"):
    assert importlib.util.find_spec(name) is None, f"{name} is here, so this environment is not empty"

torch.manual_seed(0)
n = 64
x = torch.randn(n, 3, dtype=torch.float64)
column = 0.5 ** torch.arange(n, dtype=torch.float64)
A = sm.toeplitz(column)
B = sm.HouseholderProduct(torch.randn(4, n, dtype=torch.float64))
for M in (A, B, A @ B, A + sm.Identity(n), sm.circulant(column)):
    dense = M.to_dense()
    torch.testing.assert_close(M @ x, dense @ x)
    torch.testing.assert_close(M.mT @ x, dense.mT @ x)
torch.testing.assert_close(A @ A.solve(x), x)
assert float(sm.checks.orthogonality_error(B)) < 1e-13

from structmat import adapters  # noqa: E402  (after the check that the import above did not bring it)

model = torch.nn.Sequential(torch.nn.Linear(16, 8))
x = torch.randn(5, 16)
y = model(x)
adapters.attach(model, adapters.HRA(rank=4), targets="all-linear")
torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)
try:
    adapters.save(model, "somewhere")
except ImportError as error:
    message = str(error)
else:
    raise SystemExit("adapters.save needs safetensors, which is not here, and did not say so")
assert "structmat[adapters]" in message, message
assert not Path("somewhere").exists(), "a refused save left a folder behind"
print(f"structmat {sm.__version__} works from its wheel, in {site}")
