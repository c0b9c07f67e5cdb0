"""The directive `run-example NAME`: run docs/examples/NAME.py in the build, show what it printed and its pictures.

The program is called as `python NAME.py --out FOLDER` and writes its PNG files into FOLDER. What it leaves is kept
below docs/_build/examples and used again while the program, the library and the versions of what it imports stay the
same. A program that fails, or prints nothing, stops the build.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

SECONDS = 300  # an example aims at less than a minute; slow machines get more
PACKAGES = ("torch", "numpy", "scipy", "matplotlib", "statsmodels", "scikit-learn")


def version_of(package: str) -> str:
    """Return the installed version, or "none"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def key_of(program: Path, root: Path) -> str:
    """Return a hash of all that the result depends on: the program, the library's sources, versions."""
    digest = hashlib.sha256()
    for path in [program, *sorted((root / "structmat").rglob("*.py"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(" ".join([sys.version, *map(version_of, PACKAGES)]).encode())
    return digest.hexdigest()


def run(program: Path, folder: Path, root: Path) -> str:
    """Return what the program printed, out of the folder if it holds the result of this very program and library.

    Raises ExtensionError, with the end of the program's messages, if it fails, takes too long or prints nothing.
    """
    if not program.is_file():
        raise ExtensionError(f"run-example: there is no {program.name} beside the page")
    key, stamp, printed = key_of(program, root), folder / "key", folder / "printed.txt"
    if stamp.is_file() and stamp.read_text() == key and printed.is_file():
        return printed.read_text()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:  # two builds may meet
        fresh = Path(made) / folder.name
        fresh.mkdir()
        text = printed_by(program, fresh, root)
        (fresh / "printed.txt").write_text(text)
        (fresh / "key").write_text(key)
        if folder.exists():
            with contextlib.suppress(FileNotFoundError):  # the other build has moved it away
                folder.rename(Path(made) / "old")
        try:
            fresh.rename(folder)
        except OSError:  # the other build has put its own there
            if not stamp.is_file():
                raise
    return text


def printed_by(program: Path, folder: Path, root: Path) -> str:
    """Run the program, which writes its pictures into the folder; what it printed."""
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "MPLBACKEND": "Agg"}
    environment["OMP_NUM_THREADS"] = "1"  # small matrices: on a busy machine two threads wait for each other
    command = [sys.executable, str(program), "--out", str(folder)]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ExtensionError(f"run-example {program.name}: not done after {SECONDS} s") from error
    if done.returncode != 0 or not done.stdout.strip():
        what = f"ended with code {done.returncode}" if done.returncode else "printed nothing"
        raise ExtensionError(f"run-example {program.name}: {what}\n{done.stderr[-3000:]}")
    return done.stdout


class RunExample(SphinxDirective):
    """The text of one program as a block, then its pictures in the order of their names.

    The option `:text:` or `:pictures:` shows only that half, so that a page can put words between the two.
    """

    required_arguments = 1
    has_content = False
    option_spec: ClassVar[dict[str, Any]] = {"text": directives.flag, "pictures": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Run the program, or read what it left."""
        source = Path(self.env.srcdir)
        program = Path(self.env.doc2path(self.env.docname)).parent / f"{self.arguments[0]}.py"
        self.env.note_dependency(str(program))
        folder = source / "_build" / "examples" / self.arguments[0]
        text = run(program, folder, source.parent)
        whole = not self.options
        found: list[nodes.Node] = []
        if whole or "text" in self.options:
            found.append(nodes.literal_block(text, text, language="text"))
        if whole or "pictures" in self.options:
            for picture in sorted(folder.glob("*.png")):
                uri = "/" + picture.relative_to(source).as_posix()  # from the root of the pages
                found.append(nodes.image(uri=uri, alt=picture.stem.replace("_", " ")))
        return found


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("run-example", RunExample)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
