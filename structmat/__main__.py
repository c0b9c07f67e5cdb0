"""``python -m structmat identify FILE``: which structure the matrices of a .npy or .safetensors file have.

Exit codes: 0, every matrix was identified; 1, a file or a matrix could not be; 2, the command line is wrong.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from structmat import _optional
from structmat.identification import Identification, identify

__all__ = ["main"]


class _Failure(Exception):
    """What is said to the user, in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        found, failed = _identified(arguments)
    except _Failure as error:
        print(f"structmat identify: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps([_document(arguments.file, name, table) for name, table in found], indent=1))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m structmat", description="Structured matrices for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "identify",
        help="which structure the matrices of a file have",
        description="How near every structure is to each matrix (or tensor) of a file, and with how many numbers.",
    )
    command.add_argument("file", type=Path, help="a .npy or .safetensors file")
    command.add_argument("--tensor", metavar="NAME", help="only this tensor of a .safetensors file")
    command.add_argument(
        "--budget",
        type=_budget,
        metavar="N",
        help="the most numbers: whole (5000), or a fraction of the entries (0.25)",
    )
    command.add_argument("--rows", type=_rows, default=12, metavar="N", help="rows to print (default 12; 0 for all)")
    command.add_argument("--plot", type=Path, metavar="OUT.png", help="draw errors and singular values into this file")
    command.add_argument("--json", action="store_true", help="print every row as JSON instead")
    return parser


def _budget(text: str) -> int | float:
    """A whole number or a fraction, as it is written."""
    value = float(text) if any(c in text for c in ".eE") else int(text)
    if not value > 0 or (isinstance(value, float) and value > 1):
        raise argparse.ArgumentTypeError(f"{text} is neither a whole number above 0 nor a fraction up to 1.0")
    return value


def _rows(text: str) -> int | None:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value or None


def _identified(arguments: argparse.Namespace) -> tuple[list[tuple[str | None, Identification]], bool]:
    """The tables, printed as they come unless JSON is wanted; and whether a matrix was refused."""
    found: list[tuple[str | None, Identification]] = []
    failed = False
    for name, entries in _matrices(arguments.file, arguments.tensor):
        try:
            table = identify(entries, arguments.budget)
        except (ValueError, TypeError) as error:
            print(f"structmat identify: {name or arguments.file}: {error}", file=sys.stderr)
            failed = True
            continue
        if not arguments.json:
            print("\n" * bool(found) + (f"{name}: " if name else "") + table.to_text(arguments.rows))
        found.append((name, table))
        if arguments.plot is not None:
            _draw(table, _place(arguments, name))
    if not found and not failed:
        raise _Failure(f"{arguments.file} holds no matrix (no tensor of two axes or more)")
    return found, failed


def _place(arguments: argparse.Namespace, name: str | None) -> Path:
    """The picture's file; with the tensor's name in it where the file may hold several."""
    plot: Path = arguments.plot
    if name is None or arguments.tensor is not None:
        return plot
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return plot.with_name(f"{plot.stem}-{safe}{plot.suffix}")


def _draw(table: Identification, place: Path) -> None:
    try:
        table.plot(place)
    except (ImportError, OSError, ValueError) as error:  # no matplotlib, no such folder, no such format
        raise _Failure(f"no picture {place}: {error}") from error


def _matrices(file: Path, tensor: str | None) -> Iterator[tuple[str | None, Any]]:
    """Name (None for .npy) and entries of each matrix of the file, read one after the other."""
    if not file.is_file():
        raise _Failure(f"{file}: no such file")
    if file.suffix == ".npy":
        if tensor is not None:
            raise _Failure(f"--tensor {tensor}: a .npy file holds one array, without a name")
        yield None, _array(file)
    elif file.suffix == ".safetensors":
        yield from _tensors(file, tensor)
    else:
        raise _Failure(f"{file}: a file of type {file.suffix or 'none'!s} is not read; legal are .npy and .safetensors")


def _array(file: Path) -> Any:
    try:
        return numpy.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _Failure(f"{file}: not a readable .npy file of numbers: {error}") from error


def _tensors(file: Path, wanted: str | None) -> Iterator[tuple[str, Any]]:
    """The tensor of that name, or every floating one of two axes or more."""
    try:
        safetensors = _optional.need("safetensors", "adapters")
    except ImportError as error:
        raise _Failure(str(error)) from error
    try:
        opened = safetensors.safe_open(str(file), framework="pt", device="cpu")
    except (safetensors.SafetensorError, OSError) as error:
        raise _Failure(f"{file}: not a readable .safetensors file: {error}") from error
    with opened as tensors:
        names = list(tensors.keys())
        if wanted is not None and wanted not in names:
            near = difflib.get_close_matches(wanted, names, 3, 0.4) or names[:3]
            raise _Failure(f"{file} holds no tensor {wanted!r}; it holds {len(names)}, among them {', '.join(near)}")
        for name in names if wanted is None else [wanted]:
            entries = tensors.get_tensor(name)
            if wanted is not None or (entries.ndim > 1 and (entries.is_floating_point() or entries.is_complex())):
                yield name, entries


def _document(file: Path, name: str | None, table: Identification) -> dict[str, Any]:
    """One matrix as JSON."""
    return {
        "file": str(file),
        "tensor": name,
        "shape": list(table.shape),
        "dtype": str(table.dtype).removeprefix("torch."),
        "budget": table.budget,
        "rows": table.records(),
    }


if __name__ == "__main__":
    sys.exit(main())
