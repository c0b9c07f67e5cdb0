"""Adapt a real pretrained transformer with structured matrices on real text, and compare: ``make demo``.

From one frozen start, seven ways to teach MiniLM-L6 to tell whether a docstring's first sentence documents a class or
a function: head only, LoRA (the control), HRA (a product of Householder reflections on the input side), BOFT (an
orthogonal butterfly there), and SURM with a circulant, a Toeplitz and a low displacement rank update. Then a small
convolutional network that knows the digits 0 to 4 learns 5 to 9 with FLoRA. Prints two tables, writes a plot, a JSON
file and the saved adapters below ``out/``. See docs/guides/demo.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

try:
    import torch
    from adapt_text import data, digits, methods, model, report, train, tsv, verify
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise SystemExit(f"error: the demo needs the package {error.name!r}: pip install 'structmat[demo]'") from error

# Held-out text enough for a standard error of 1 point; the rest of what is found is trained on.
LIMITS = {"dev": 800, "test": 1600}


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    legal = [*(row.name for row in methods.ROWS), methods.DIGITS]
    parser.add_argument(
        "--steps", type=positive, default=150, help="training steps of every method (default %(default)s)"
    )
    parser.add_argument("--batch-size", type=positive, default=32, help="sentences in a step (default %(default)s)")
    parser.add_argument(
        "--methods", nargs="+", default=legal, metavar="NAME", help=f"rows of the tables: {' '.join(legal)}"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="draws head, adapters, order and dropout (default %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument(
        "--model",
        default=model.DEFAULT_MODEL,
        metavar="DIR_OR_NAME",
        help="a Hugging Face encoder (default %(default)s)",
    )
    parser.add_argument(
        "--targets",
        default=model.TARGETS,
        metavar="REGEX",
        help="layers to adapt (default: query and value projections)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE.tsv", help="your own text: tab-separated columns text and label"
    )
    parser.add_argument(
        "--tune", action="store_true", help="first run the whole grid of learning rates, choose on the dev side"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for results (default %(default)s)")
    return parser.parse_args(argv)


def the_device(name: str) -> torch.device:
    """The device called ``name``, checked before anything is read."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: not available here ({str(error).splitlines()[0]})") from error
    return device


def use_all_cores() -> None:
    """Torch starts one thread a physical core: perhaps one where two are there. OMP_NUM_THREADS still decides."""
    if "OMP_NUM_THREADS" not in os.environ:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(min(available, 8))


def read_text(path: Path | None) -> data.Split:
    """The user's file, or the docstrings of the installed packages."""
    if path is not None:
        return tsv.tsv_split(path)
    return data.docstring_split(limits=LIMITS, watch=lambda files: tqdm(files, desc="reading docstrings", unit="file"))


def tune(rows: Sequence[methods.Row], bench: verify.Bench) -> list[methods.Row]:
    """Train every row at every rate of the grid; keep the best on the dev side (of equals the lower)."""
    chosen = []
    for row in rows:
        scores = []
        for rate in methods.GRID:
            tried = replace(row, rate=rate)
            classifier = bench.start(tried)
            try:
                train.fit(classifier, tried, bench.train, bench.settings)
                logits = train.predict(classifier, bench.dev, bench.settings, "dev")
                scores.append(train.accuracy(logits, bench.dev.labels))
            except FloatingPointError:
                scores.append(0.0)  # this rate diverges, which is an answer
        best = max(range(len(scores)), key=lambda i: scores[i])
        shown = "  ".join(f"{rate:g}: {100 * score:.1f} %" for rate, score in zip(methods.GRID, scores, strict=True))
        print(f"{row.title}: dev {shown}  -> {methods.GRID[best]:g}", flush=True)
        chosen.append(replace(row, rate=methods.GRID[best]))
    return chosen


@dataclass
class Found:
    """What the two parts of a run found, and what is said about the first."""

    rows: list[report.Result] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    digits: list[digits.DigitsResult] = field(default_factory=list)


def adapt_text(rows: Sequence[methods.Row], options: argparse.Namespace, device: torch.device, found: Found) -> None:
    """The first part: the transformer, one row after the other."""
    split = read_text(options.data)
    print(split.describe(), f"(always the same answer: {100 * split.majority():.1f} %)", flush=True)
    encoder = model.load_encoder(options.model)
    settings = train.Settings(options.steps, options.batch_size, options.seed, options.targets, device)
    bench = verify.Bench.build(encoder, split, settings)
    if options.tune:
        rows = tune(rows, bench)
    found.rows = [bench.measure(row, options.out / "adapters" / row.name) for row in rows]
    sizes = {"train": len(split.train), "dev": len(split.dev), "test": len(split.test)}
    found.about = {
        "text": {"origin": split.origin, "labels": split.labels, **sizes},
        "head_rate": methods.HEAD_RATE,
        "grid": methods.GRID,
    }
    title = f"{encoder.name}, {options.steps} steps of {options.batch_size}, seed {options.seed}"
    report.plot(options.out / "accuracy_vs_parameters.png", found.rows, title)
    print("\n" + report.table(found.rows) + "\n")
    head = found.rows[0].head_parameters
    print(f"parameters: all that is trained, the head's {head} included; accuracy: on {len(split.test)} held-out texts")
    print("orth. error: ||Q^T Q - I||_F / sqrt(n) of the trained rotation; merge diff: largest difference of a logit")
    print("every adapter was saved, loaded into a fresh model, and gave the same predictions", flush=True)


def adapt_digits(options: argparse.Namespace, found: Found) -> None:
    """The second part: the convolutional network, on the CPU."""
    pretrained = digits.pretrain(options.seed)
    watched = tqdm(digits.ROWS, desc="digits", unit="row")
    found.digits = [
        digits.measure(row, pretrained, options.out / "adapters" / row.name, options.seed) for row in watched
    ]
    print("\n" + digits.table(found.digits) + "\n")
    print("a network that knew the digits 0 to 4; before: with the fresh last layer that every row trains too")
    print("merged, loaded and detached networks gave the predictions that they must", flush=True)


def run(options: argparse.Namespace) -> None:
    """Everything between the command line and the tables."""
    begin = time.perf_counter()
    rows, device = methods.choose(options.methods), the_device(options.device)
    use_all_cores()
    torch.use_deterministic_algorithms(True, warn_only=True)
    options.out.mkdir(parents=True, exist_ok=True)
    found = Found()
    if rows:
        adapt_text(rows, options, device, found)
    if methods.DIGITS in options.methods:
        adapt_digits(options, found)
    command = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    seconds = time.perf_counter() - begin
    about = {"command": command, **found.about, "machine": report.machine(device), "seconds_in_all": seconds}
    report.write_json(options.out / "results.json", found.rows, about, found.digits)
    print(f"\ntables, plot and adapters: {options.out}/; {seconds:.0f} s in all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; a mistake in what the user gave ends with one line on stderr and status 2."""
    options = arguments(argv)
    try:
        run(options)
    except (ImportError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
