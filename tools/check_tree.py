"""Check what git tracks: no path or host of one machine, no large or overlong file, no long function in the package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINES = 350
FUNCTION_LINES = 80  # the aim is 60; docstrings are not counted
BYTES = 500_000
TEXT = {".py", ".md", ".toml", ".txt", ".sh", ".json", ".yml", ".yaml", ".cfg", ".rst", ".tsv", ""}
# A home, a mount or a scratch folder of some machine; joined from pieces, so that this file does not match itself.
FOLDERS = ["ho" + "me/[a-z]", "Us" + "ers/[A-Za-z]", "ro" + "ot/", "wo" + "rk/", "op" + "t/", "m" + "nt/", "t" + "mp/"]
PATHS = re.compile(r"(?<![\w.)}\]~*-])/(?:" + "|".join(FOLDERS) + ")")
HOSTS = re.compile("pypi" + r"\.org|pythonhosted" + r"\.org|file:" + "//")
EXEMPT_FROM_SIZE = {"LICENSE", "constraints.txt", "tests/public_api.txt", "CHANGELOG.md"}


def tracked() -> list[Path]:
    """List the files that git tracks, or would if added, and that exist."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def long_functions(source: str) -> list[tuple[str, int, int]]:
    """List ``(name, line, lines)`` of the functions longer than FUNCTION_LINES, docstrings not counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            first = node.body[0]
            has_doc = ast.get_docstring(node) is not None and first.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if has_doc else 0)  # type: ignore[operator]
            if lines > FUNCTION_LINES:
                found.append((node.name, node.lineno, lines))
    return found


def faults_of(name: str, text: str) -> list[str]:
    """Say what is wrong with one text file, named by its path below the root."""
    faults = []
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in ((PATHS, "a path of one machine"), (HOSTS, "a package registry's host")):
            if match := pattern.search(line):
                faults.append(f"{name}:{number}: names {what}: {match[0]}")
    lines = text.count("\n")
    if name.endswith((".py", ".sh")) and lines > LINES and name not in EXEMPT_FROM_SIZE:
        faults.append(f"{name}: {lines} lines, at most {LINES}: split it, one idea a file")
    if name.startswith("structmat/") and name.endswith(".py"):
        faults += [
            f"{name}:{line}: {function} has {length} lines, at most {FUNCTION_LINES}"
            for function, line, length in long_functions(text)
        ]
    return faults


def main() -> int:
    """Print the faults; return the exit code."""
    faults: list[str] = []
    files = tracked()
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if path.stat().st_size > BYTES:
            faults.append(f"{name}: {path.stat().st_size} bytes, at most {BYTES}")
        elif path.suffix in TEXT and name not in {"LICENSE"}:
            faults += faults_of(name, path.read_text())
    print("\n".join([*faults, f"{len(files)} files, {len(faults)} faults"]))
    return 1 if faults or not files else 0


if __name__ == "__main__":
    sys.exit(main())
