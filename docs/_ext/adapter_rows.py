"""The table of adapter methods, for README and for the documentation: read from the methods, their sizes counted.

`python docs/_ext/adapter_rows.py` writes README's table anew; a test compares it. What a method does is the first
sentence of its docstring; its layers follow from what it makes of a weight and from the list of refused combinations;
its numbers are counted on a layer without storage, and must be those of the formula. Only "use it for" is written here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[2])]

from readable_docstrings import first_sentence  # noqa: E402

from structmat import adapters  # noqa: E402
from structmat.adapters.kinds.checked import KINDS  # noqa: E402
from structmat.adapters.refused import REFUSED, require_legal  # noqa: E402
from structmat.errors import StructureError  # noqa: E402

README = HERE.parents[2] / "README.md"
BEGIN, END = "<!-- begin: written by docs/_ext/adapter_rows.py -->\n", "<!-- end -->\n"
WIDTH = 768
HEADS = ("method", "what it does", "trained numbers, d x d", f"d = {WIDTH}", "layers", "merges", "use it for")
FAMILIES = {
    "Linear": "linear",
    "Conv1D": "linear",
    "Opaque": "quantised",
    "Parameter": "parameters",
    "ParameterT": "parameters",
    "Embedding": "embedding",
    **{f"Conv{k}d": "convolution" for k in (1, 2, 3)},
    **{f"ConvTranspose{k}d": "transposed convolution" for k in (1, 2, 3)},
}


class Row(NamedTuple):
    """A method as it is called, the formula of its numbers on a d x d layer, and what it is good for."""

    call: str
    formula: str
    use: str

    @property
    def method(self) -> Any:
        """The method itself."""
        return eval(f"adapters.{self.call}", {"adapters": adapters})


ROWS = (
    Row("HRA(8)", "r d", "a change that keeps the singular values of W, with half of LoRA's numbers at equal rank"),
    Row("OFT(16)", "d (b - 1) / 2 + d", "rotations inside blocks of the inputs; `constraint` bounds how far they go"),
    Row("BOFT(8, 2)", "m d (b - 1) / 2 + d", "as OFT; each further factor couples blocks twice as far apart"),
    Row("FLoRA(8)", "2 r d + r^2", "convolutions: each axis of the kernel has a factor of its own"),
    Row('SURM("circulant")', "d", "very few numbers, and a change of full rank"),
    Row('SURM("skew")', "d", "as circulant, another set of matrices of as many numbers"),
    Row('SURM("symmetric_toeplitz")', "d", "as Toeplitz, for a change that should be symmetric"),
    Row('SURM("toeplitz")', "2 d - 1", "few numbers on rectangular layers too, one for each diagonal"),
    Row('SURM("kronecker")', "2 d", "few numbers where the features have two axes (heads x width)"),
    Row('SURM("ldr", rank=1)', "2 r d", "structure between Toeplitz and full, by the rank"),
    Row("LoRA(8)", "2 r d", "the control; what other programs can serve (`to_lora` turns any method into it)"),
    Row('Bottleneck("circulant")', "2 d", "the Adapter slot: a nonlinear map behind a layer, its weight untouched"),
)


def target(width: int, kind: str = "Linear", device: str = "meta") -> adapters.Target:
    """A square layer, on a device that stores nothing."""
    return adapters.Target("layer", kind, width, width, (), 1, torch.float32, torch.device(device))


def count(method: Any, width: int) -> int:
    """How many numbers a method trains on a layer."""
    return sum(tensor.numel() for tensor in method.init(target(width), None).trained.values())


def formula(row: Row, width: int) -> float:
    """What the row's formula says: letters beside each other are multiplied, ^ is a power."""
    text = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", row.formula).replace("^", "**")
    method = row.method
    letters = {"d": width, "b": getattr(method, "block", None), "m": getattr(method, "factors", None)}
    letters["r"] = getattr(method, "rank", None) or getattr(method, "ranks", None)
    return float(eval(text, {}, letters))


def layers(method: Any) -> str:
    """The families of layers that a method's change fits, or all but those it does not."""
    update = method.update(method.init(target(16, device="cpu"), None), target(16))
    legal: dict[str, bool] = {}
    for kind in KINDS:
        try:
            require_legal(method, target(16, kind.name), update)
            legal[FAMILIES[kind.name]] = legal.get(FAMILIES[kind.name], True)
        except StructureError:
            legal[FAMILIES[kind.name]] = False
    without = [family for family, fits in legal.items() if not fits]
    if not without:
        return "all"
    fitting = [family for family, fits in legal.items() if fits]
    return ", ".join(fitting) if len(fitting) < len(without) else f"all but {', '.join(without)}"


def merges(method: Any) -> str:
    """Whether the change is one of the weight."""
    update = method.update(method.init(target(16, device="cpu"), None), target(16))
    return "no" if isinstance(update, adapters.Residual) else "yes"


def said(method: Any) -> str:
    """The first sentence of the docstring; of SURM, its line on the structure instead of the list of them."""
    text = first_sentence(type(method))
    if isinstance(method, adapters.SURM):
        whole = " ".join((type(method).__doc__ or "").split())
        line = re.search(rf'"{method.structure}": (.+?)(?:, (?=[A-Za-z] )|;)', whole)  # up to the sizes
        if line is None:
            raise ValueError(f"the docstring of SURM has no line on {method.structure!r}")
        text = text.split(" with D", 1)[0] + ", " + line[1]
    return text.replace("``", "`").rstrip(".")


def rows() -> list[tuple[str, ...]]:
    """The cells of all rows, as plain text with code between backquotes."""
    found = []
    for row in ROWS:
        method = row.method
        numbers = count(method, WIDTH)
        use = (f"`{row.formula}`", f"{numbers:,}", layers(method), merges(method), row.use)
        found.append((f"`{row.call}`", said(method), *use))
    return found


def refused() -> list[tuple[str, str, str]]:
    """Layers, change and reason of each combination that ``attach`` refuses."""
    found: dict[tuple[str, str], list[str]] = {}
    for (kind, change), reason in REFUSED.items():
        found.setdefault((change.__name__, reason), []).append(kind)
    return [
        (", ".join(f"`{kind}`" for kind in kinds), f"`{change}`", reason) for (change, reason), kinds in found.items()
    ]


def markdown() -> str:
    """The table for README."""
    table = [HEADS, tuple("---" for _ in HEADS), *rows()]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in table) + "\n"


def written(text: str) -> str:
    """README with the table of today; ValueError if it has no place for it."""
    before, found, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"README.md lacks the lines {BEGIN!r} and {END!r}")
    return before + BEGIN + markdown() + END + after


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
