"""Build the wheel and try it in an empty environment that holds only what the wheel declares that it needs.

The build reads a copy of the files that git would commit, so no ignored file and no stale build folder slips in. The
new
environment shares the installed third-party packages by links: exactly the closure of the wheel's own requirements,
without extras, so a forgotten requirement is an ImportError here. The source tree is not reachable from there.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from check_tree import ROOT, tracked
from packaging.requirements import Requirement

PROGRAM = Path(__file__).with_name("smoke_program.py")


def build(scratch: Path) -> Path:
    """Return the wheel built from a copy of the tracked files."""
    source = scratch / "source"
    for path in tracked():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(scratch),
        str(source),
    ]
    subprocess.run(command, check=True)
    (wheel,) = scratch.glob("*.whl")
    return wheel


def requirements(wheel: Path) -> set[str]:
    """Return the names of all distributions that the wheel needs, and those need in turn, as installed here."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    waiting = [(line.split(":", 1)[1].strip(), frozenset[str]()) for line in lines if line.startswith("Requires-Dist:")]
    closure: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        text, extras = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        key = (requirement.name.lower(), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            closure.add(requirement.name)
            waiting += [(line, key[1]) for line in metadata.distribution(requirement.name).requires or []]
    return closure


def link(names: set[str], target: Path) -> None:
    """Link the top-level files and folders of the named distributions into the folder ``target``."""
    for name in names:
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            place = target / top
            if not place.exists():
                place.symlink_to(Path(str(distribution.locate_file(top))).resolve())


def main() -> int:
    """Build, install, try; return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        wheel = build(scratch)
        print(f"{wheel.name}: {wheel.stat().st_size // 1024} KiB")
        environment = scratch / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        python = environment / "bin" / "python"
        command = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            str(wheel),
        ]
        subprocess.run(command, check=True)
        (site,) = (environment / "lib").glob("python3*/site-packages")
        names = requirements(wheel)
        link(names, site)
        print(f"linked: {', '.join(sorted(names))}")
        program = shutil.copy2(PROGRAM, scratch / PROGRAM.name)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return subprocess.run([str(python), "-I", program, str(site)], cwd=scratch, env=clean).returncode


if __name__ == "__main__":
    sys.exit(main())
