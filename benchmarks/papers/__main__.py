"""``python -m benchmarks.papers --data DIR [--quick] [--rows ...] [--rates ...]``: SST-2 with every method.

Each row is trained at every rate from the first seed; the rate with the best dev accuracy is then run from the other
seeds, and the test accuracies of all seeds at that rate are reported. Every finished run is written to the record at
once, and a run that the record has is not repeated, so an interrupted program goes on where it was.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.papers import rows as table_rows
from benchmarks.papers.table import lines, markdown, plot
from benchmarks.papers.text import Text, encoder, sst2
from benchmarks.papers.train import Settings, run

RESULTS = Path(__file__).resolve().parents[1] / "results" / "papers"


class Record:
    """The runs so far, on disk after each."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.about = about
        self.runs: list[dict[str, Any]] = []
        if path.exists():
            known = json.loads(path.read_text())
            if known["settings"] != about["settings"]:
                raise ValueError(f"{path} was made with {known['settings']}, not {about['settings']}; name another")
            self.runs = known["runs"]

    def has(self, row: str, rate: float, seed: int) -> bool:
        return any((r["row"], r["rate"], r["seed"]) == (row, rate, seed) for r in self.runs)

    def add(self, one: dict[str, Any]) -> None:
        self.runs.append(one)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.about | {"runs": self.runs}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        wanted = table_rows.chosen(options.rows)
        how = Settings(steps=12) if options.quick else Settings()
        pretrained, tokenizer = encoder()
        texts = sst2(options.data, tokenizer, *((200, 128) if options.quick else (2000,)))
        name = "sst2-quick.json" if options.quick else "sst2.json"
        record = Record(options.output or RESULTS / name, _about(how, texts))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def once(row: table_rows.Row, rate: float, seed: int) -> None:
        if not record.has(row.name, rate, seed):
            one = run(pretrained, texts, row, rate, seed, how)
            record.add(one)
            print(f"{row.title:16s} rate {rate:g} seed {seed}: dev {one['dev']:.1f} test {one['test']:.1f}", flush=True)

    first, *others = options.seeds
    for row in wanted:
        for rate in (*options.rates, *row.more_rates):
            once(row, rate, first)
    for seed in others:
        for row in wanted:
            once(row, next(one.rate for one in lines(record.runs, options.rates) if one.row == row), seed)
    found = lines(record.runs, options.rates)
    print("\n" + markdown(found) + f"\n\nwritten to {record.path}")
    if options.plot:
        plot(found, options.plot)
    return 0


def _about(how: Settings, texts: dict[str, Text]) -> dict[str, Any]:
    sizes = {part: len(text.ids) for part, text in texts.items()}
    settings = {"steps": how.steps, "batch": how.batch, "bfloat16": how.half, "sentences": sizes}
    return {"schema": 1, "machine": machine.describe(), "settings": settings}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers", description="the methods on SST-2")
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2/train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--quick", action="store_true", help="a few steps: whether it works, not what it says")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="some rows of the table")
    parser.add_argument("--rates", nargs="+", type=float, default=list(table_rows.RATES), help="the same for every row")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=list(table_rows.SEEDS), help="the first tries all rates"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--output", type=Path, help="the record (default benchmarks/results/papers/sst2.json)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw accuracy over trained numbers")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
