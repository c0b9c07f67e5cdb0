"""The user's own text: a UTF-8 file of tab-separated lines with the columns ``text`` and ``label``.

One line is one example; quotes are ordinary characters; other columns are allowed and ignored; empty lines are
skipped. A fault is reported as ``FILE:LINE:COLUMN: what is wrong``, both counted from 1, the column in characters.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from .data import SIDES, DataError, Example, Split, deduplicate, key

__all__ = ["FEWEST", "read_tsv", "split_rows", "tsv_split"]

FEWEST = 20  # rows a label needs, so that a stratified 65/10/25 split has some of it on every side
MOST_LABELS = 1000  # more distinct labels than this means that the column holds something else
_REQUIRED = ("text", "label")


def fault(path: Path, line: int, column: int, what: str) -> DataError:
    """A ``DataError`` that editors can jump to."""
    return DataError(f"{path}:{line}:{column}: {what}")


def decode(path: Path) -> str:
    """The file as text, or a fault at the first byte that is not UTF-8 or is NUL."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", errors="replace")) + 1
        raise fault(path, before.count(b"\n") + 1, column, f"byte 0x{raw[error.start]:02x} is not UTF-8") from error
    if "\0" in text:
        before_nul = text[: text.index("\0")]
        column = len(before_nul) - (before_nul.rfind("\n") + 1) + 1
        raise fault(path, before_nul.count("\n") + 1, column, "a NUL character: is this a text file?")
    return text


def header(path: Path, line: str) -> list[str]:
    """The column names of the first line, checked."""
    names = [name.strip().casefold() for name in line.split("\t")]
    for name in _REQUIRED:
        if names.count(name) != 1:
            count = "no" if name not in names else "more than one"
            shown = ", ".join(repr(n) for n in names[:8])
            raise fault(
                path, 1, 1, f"{count} column {name!r} in the header, which has {shown}; expected 'text<TAB>label'"
            )
    return names


def read_tsv(path: Path) -> list[tuple[str, str]]:
    """``(text, label)`` of every line below the header; the first fault raises ``DataError`` with line and column."""
    lines = decode(path).split("\n")
    if not lines[0].strip():
        raise fault(path, 1, 1, "the header is missing; expected 'text<TAB>label'")
    names = header(path, lines[0].rstrip("\r"))
    rows = []
    for number, raw in enumerate(lines[1:], start=2):
        line = raw.rstrip("\r")
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) < len(names):
            raise fault(path, number, len(line) + 1, f"{len(fields)} of {len(names)} fields: a tab is missing")
        if len(fields) > len(names):
            column = len("\t".join(fields[: len(names)])) + 1
            raise fault(path, number, column, f"{len(fields)} fields, the header has {len(names)}: a tab too many")
        values = {}
        for name in _REQUIRED:
            place = names.index(name)
            values[name] = " ".join(fields[place].split())
            if not values[name]:
                column = sum(len(field) + 1 for field in fields[:place]) + 1
                raise fault(path, number, column, f"the {name} is empty")
        rows.append((values["text"], values["label"]))
    return rows


def split_rows(rows: list[tuple[str, str]], origin: str) -> Split:
    """Deduplicate, then deal every label's rows onto train, dev and test (65, 10, 25 %) by a hash of the text."""
    names = sorted({label for _, label in rows})
    if len(names) < 2:
        raise DataError(f"{origin}: {len(names)} label(s) in {len(rows)} rows; at least 2 different labels are needed")
    if len(names) > MOST_LABELS:
        raise DataError(
            f"{origin}: {len(names)} different labels in {len(rows)} rows; at most {MOST_LABELS} are allowed"
        )
    place = {name: index for index, name in enumerate(names)}
    unique = deduplicate(Example(text, place[label], "row") for text, label in rows)
    counts = Counter(example.label for example in unique)
    for name, index in place.items():
        if counts[index] < FEWEST:
            raise DataError(
                f"{origin}: label {name!r} has {counts[index]} different rows; at least {FEWEST} are needed"
            )
    sides: dict[str, list[Example]] = {name: [] for name in SIDES}
    for label in range(len(names)):
        ordered = sorted((e for e in unique if e.label == label), key=lambda e: key(e.text))
        test, dev = round(len(ordered) * 0.25), round(len(ordered) * 0.10)
        sides["test"] += ordered[:test]
        sides["dev"] += ordered[test : test + dev]
        sides["train"] += ordered[test + dev :]
    mixed = {name: sorted(group, key=lambda e: key("order of " + e.text)) for name, group in sides.items()}
    return Split(mixed["train"], mixed["dev"], mixed["test"], tuple(names), origin)


def tsv_split(path: Path) -> Split:
    """Read ``path`` and split its rows."""
    return split_rows(read_tsv(path), str(path))
