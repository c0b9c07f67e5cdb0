"""The rows of the tables of rules, read from the running code and from `tests/pairs.txt`; no Sphinx in here."""

from __future__ import annotations

from pathlib import Path

from structmat import dispatch

PAIRS = Path(__file__).resolve().parents[2] / "tests" / "pairs.txt"


def rules() -> list[tuple[str, str, str]]:
    """Return verb, types and the first sentence of each rule, sorted."""
    rows = []
    for rule in dispatch.rules():
        said = " ".join((rule.function.__doc__ or "").strip().split("\n\n")[0].split())
        rows.append((rule.verb, ", ".join(t.__name__ for t in rule.types), said))
    return sorted(rows)


def pairs(verb: str) -> list[tuple[str, str]]:
    """Return for each left type its partners by what they give: `Circulant -> Circulant; Dense -> Dense`."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in PAIRS.read_text().splitlines():
        head, rest = line.split(": ")
        name, left, right = head.split(" ")
        if name == verb:
            result = " or ".join(part.split(" (")[0] for part in rest.split("; "))
            found.setdefault(left, {}).setdefault(result, []).append(right)
    return [
        (left, "; ".join(f"{', '.join(rights)} → {result}" for result, rights in sorted(results.items())))
        for left, results in sorted(found.items())
    ]
