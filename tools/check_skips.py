"""Read pytest's JUnit report and fail if a test was skipped for another reason than a missing GPU or optional package.

Usage: python tools/check_skips.py REPORT.xml. An expected failure counts as a skip for another reason; a report without
tests fails too.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

# `pytest.importorskip` writes "could not import 'peft': ..."; the marker gpu writes "needs a GPU" (tests/conftest.py).
ALLOWED = re.compile(r"needs a GPU|could not import '[\w.]+'|needs the package '[\w.+-]+'")


def read(report: str) -> tuple[int, list[tuple[str, str]]]:
    """Return how many tests a report holds and ``(test, reason)`` of each one that was skipped."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    skipped = [
        (f"{case.get('classname', '')}::{case.get('name', '')}", reason_of(node))
        for case in cases
        for node in case.iter("skipped")
    ]
    return len(cases), skipped


def reason_of(node: ElementTree.Element) -> str:
    """Return why a test did not run; that of an expected failure is marked as such."""
    reason = node.get("message") or node.text or "no reason given"
    return f"expected to fail: {reason}" if node.get("type") == "pytest.xfail" else reason


def main(path: str) -> int:
    """Print the skips with their reasons; return the exit code."""
    file = Path(path)
    if not file.is_file():
        print(f"{path}: no such report; `make test` writes it")
        return 1
    count, skipped = read(file.read_text())
    hidden = [(test, reason) for test, reason in skipped if not ALLOWED.match(reason)]
    print(
        f"{count} tests, {len(skipped)} skipped, {len(hidden)} of them for another reason than a missing GPU or package"
    )
    for test, reason in hidden:
        print(f"  {test}: {reason}")
    return 1 if hidden or not count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "out/check/tests.xml"))
