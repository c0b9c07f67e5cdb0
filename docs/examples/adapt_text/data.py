"""The demo's own text: real docstring sentences out of installed packages, split by file and balanced.

The task: does a sentence document a class (label 0) or a function or method (label 1)? The sentences are the first
sentences of public docstrings in packages that the demo needs anyway, so nothing is downloaded. Sources are parsed
with ``ast`` and never executed. Every choice (side of a file, sentences kept when a label is in excess) follows a
hash of the text, so that the split depends on nothing but the installed versions.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "LABELS",
    "PACKAGES",
    "DataError",
    "Example",
    "Split",
    "balance",
    "deduplicate",
    "docstring_split",
    "extract",
    "first_sentence",
    "installed",
    "side",
]

PACKAGES = ("torch", "scipy", "sklearn", "sympy", "networkx", "transformers")
LABELS = ("class", "function")
SHORTEST, LONGEST = 25, 200
SIDES = ("train", "dev", "test")
# The words that would give the answer away, with their plurals.
GIVEAWAY = re.compile(r"\b(class(es)?|functions?|methods?)\b", re.IGNORECASE)
# "name (`int`, *optional*): ..." and "Args: ...": lists of arguments, not sentences.
NO_SENTENCE = re.compile(r"^\w+ \([`*]|^\w+:")
# Folders that hold tests or code of other projects rather than the package's public interface.
SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "benchmarks", "examples", "externals", "_vendor", "vendor"})


class DataError(ValueError):
    """The text cannot be used; the message says where and why."""


@dataclass(frozen=True)
class Example:
    """One sentence, the index of its label, and the file it came from (the unit that a split never divides)."""

    text: str
    label: int
    source: str

    @property
    def package(self) -> str:
        """First part of ``source``: the group inside which labels are balanced."""
        return self.source.split("/", 1)[0]


@dataclass(frozen=True)
class Split:
    """Text for training, for choosing learning rates (``dev``), and held out until the end (``test``)."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    labels: tuple[str, ...]
    origin: str

    def majority(self) -> float:
        """Accuracy on ``test`` of always answering its most frequent label."""
        counts = [sum(example.label == label for example in self.test) for label in range(len(self.labels))]
        return max(counts) / len(self.test)

    def describe(self) -> str:
        """One line for people."""
        sizes = f"{len(self.train)} sentences to train on, {len(self.dev)} for dev, {len(self.test)} held out"
        return f"{self.origin}: {sizes}"


def key(text: str) -> int:
    """A number of 64 bits that depends on ``text`` alone (``hash`` changes from one process to the next)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def side(source: str, dev: float = 0.10, test: float = 0.25) -> str:
    """The side of the split on which everything from ``source`` lies: ``"train"``, ``"dev"`` or ``"test"``."""
    place = key("side of " + source) / 2**64
    if place < test:
        return "test"
    return "dev" if place < test + dev else "train"


def first_sentence(docstring: str) -> str:
    """First sentence of the first paragraph: white space collapsed, cut at ``.``, ``!`` or ``?`` before a space."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    return re.split(r"(?<=[.!?])\s", " ".join(paragraph.split()), maxsplit=1)[0]


def documented(body: Iterable[ast.stmt]) -> Iterator[tuple[int, str]]:
    """Label and docstring of every public class, function and method in ``body``; inside a function all is private."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        is_class = isinstance(node, ast.ClassDef)
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield (0 if is_class else 1), docstring
        if is_class:
            yield from documented(node.body)


def extract(code: str, source: str) -> list[Example]:
    """Usable first sentences of the public docstrings in the Python text ``code``; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes are not the reader's concern
            body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError):
        return []
    found = ((first_sentence(docstring), label) for label, docstring in documented(body))
    return [
        Example(text, label, source)
        for text, label in found
        if SHORTEST <= len(text) <= LONGEST and text.isprintable() and not GIVEAWAY.search(text)
        if not NO_SENTENCE.match(text)
    ]


def deduplicate(examples: Iterable[Example]) -> list[Example]:
    """Keep a sentence once (first come; case ignored); drop it wholly where it carries two labels."""
    seen: dict[str, Example] = {}
    torn: set[str] = set()
    for example in examples:
        folded = example.text.casefold()
        if seen.setdefault(folded, example).label != example.label:
            torn.add(folded)
    return [example for folded, example in seen.items() if folded not in torn]


def balance(examples: Sequence[Example], limit: int | None = None) -> list[Example]:
    """As many of each label within every package, at most ``limit`` in all; sorted by a hash of the text.

    Balancing inside packages keeps a package's style from giving the label away: sympy documents mostly functions.
    """
    groups: dict[str, dict[int, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for example in sorted(examples, key=lambda e: key(e.text)):
        groups[example.package][example.label].append(example)
    pairs = [
        pair
        for by_label in groups.values()
        if len(by_label) == len(LABELS)
        for pair in zip(*by_label.values(), strict=False)
    ]
    pairs.sort(key=lambda pair: key(pair[0].text))
    if limit is not None:
        pairs = pairs[: limit // len(LABELS)]
    return sorted((example for pair in pairs for example in pair), key=lambda e: key(e.text))


def installed(packages: Sequence[str] = PACKAGES) -> dict[str, Path]:
    """Folder of each package, found without importing it; ``DataError`` names those that are missing."""
    folders, missing = {}, []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            missing.append(package)
        else:
            folders[package] = Path(spec.origin).parent
    if missing:
        raise DataError(
            f"the demo's text needs the packages {', '.join(missing)}: "
            "pip install 'structmat[demo]', or give --data FILE.tsv"
        )
    return folders


def sources(package: str, folder: Path) -> list[tuple[str, Path]]:
    """Name (``package/path``) and path of a package's Python files, in sorted order, private folders left out."""
    found = []
    for path in folder.rglob("*.py"):
        inside = path.relative_to(folder)
        if not SKIPPED_FOLDERS.intersection(inside.parts[:-1]):
            found.append((f"{package}/{inside.as_posix()}", path))
    return sorted(found)


def docstring_split(
    folders: Mapping[str, Path] | None = None,
    limits: Mapping[str, int | None] | None = None,
    watch: Callable[[Sequence[tuple[str, Path]]], Iterable[tuple[str, Path]]] = iter,
) -> Split:
    """Read every file, deduplicate, split by file, balance.

    Args:
        folders: name and folder of each package; None: those of ``PACKAGES``.
        limits: most sentences on a side; a side not named is not limited.
        watch: wraps the list of files, for a progress bar.
    Raises: DataError if a package is missing or a side comes out empty.
    """
    folders = installed() if folders is None else folders
    files = [entry for package, folder in folders.items() for entry in sources(package, folder)]
    examples: list[Example] = []
    for name, path in watch(files):
        examples += extract(path.read_text(encoding="utf-8", errors="ignore"), name)
    sides: dict[str, list[Example]] = {name: [] for name in SIDES}
    for example in deduplicate(examples):
        sides[side(example.source)].append(example)
    chosen = {name: balance(group, (limits or {}).get(name)) for name, group in sides.items()}
    for name, group in chosen.items():
        if not group:
            raise DataError(f"no sentence is left for {name!r} out of {len(files)} files of {', '.join(folders)}")
    return Split(chosen["train"], chosen["dev"], chosen["test"], LABELS, f"docstrings of {', '.join(folders)}")
