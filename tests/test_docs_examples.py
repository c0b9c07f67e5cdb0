"""The examples that the documentation executes: each has a page that runs it; the runner keeps, repeats, and stops."""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
DEMO = {"adapt_text_classifier"}  # it trains for minutes; `make demo` runs it
PROGRAMS = sorted(path for path in EXAMPLES.glob("*.py") if path.stem not in DEMO)


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return docs/_ext/run_example.py as a module."""
    pytest.importorskip("sphinx", reason="needs the package 'sphinx'")
    spec = importlib.util.spec_from_file_location("run_example", ROOT / "docs" / "_ext" / "run_example.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_example", module)
    spec.loader.exec_module(module)
    return module


def test_there_are_examples() -> None:
    assert PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_every_example_has_a_page_that_runs_and_shows_it(program: Path) -> None:
    page = program.with_suffix(".md").read_text()
    assert "```{run-example} " + program.stem in page
    assert "```{literalinclude} " + program.name in page


PROGRAM = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path)
out = parser.parse_args().out
count = pathlib.Path(__file__).with_suffix(".count")
count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
(out / "a_plot.png").write_bytes(b"picture")
print("run", count.read_text())
"""


def test_a_result_is_kept_until_the_program_changes(extension: ModuleType, tmp_path: Path) -> None:
    program, folder = tmp_path / "small.py", tmp_path / "kept"
    program.write_text(PROGRAM)
    assert extension.run(program, folder, ROOT) == "run 1\n"
    assert extension.run(program, folder, ROOT) == "run 1\n"  # out of the folder
    assert (folder / "a_plot.png").read_bytes() == b"picture"
    program.write_text(PROGRAM + "print('more')\n")
    assert extension.run(program, folder, ROOT) == "run 2\nmore\n"


def test_two_builds_at_once(extension: ModuleType, tmp_path: Path) -> None:
    """Each runs in a folder of its own; whoever is last leaves a whole result, and nothing else is left."""
    program, folder = tmp_path / "small.py", tmp_path / "examples" / "kept"
    program.write_text(PROGRAM + "import time; time.sleep(0.3)\n")
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda _: extension.run(program, folder, ROOT), range(2)))
    assert all(text.startswith("run") for text in texts)
    assert sorted(p.name for p in folder.iterdir()) == ["a_plot.png", "key", "printed.txt"]
    assert [p.name for p in folder.parent.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit('no such thing')", "ended with code 1\nno such thing"),
        ("pass", "printed nothing"),
    ],
)
def test_a_program_that_fails_or_is_silent_stops_the_build(
    extension: ModuleType, tmp_path: Path, text: str, message: str
) -> None:
    from sphinx.errors import ExtensionError

    program = tmp_path / "small.py"
    program.write_text(text)
    for _ in range(2):  # and leaves nothing that a second build would take for a result
        with pytest.raises(ExtensionError, match=message):
            extension.run(program, tmp_path / "kept", ROOT)


def test_a_missing_program_is_named(extension: ModuleType, tmp_path: Path) -> None:
    from sphinx.errors import ExtensionError

    with pytest.raises(ExtensionError, match=r"there is no absent\.py"):
        extension.run(tmp_path / "absent.py", tmp_path / "kept", ROOT)


def test_the_sunspots_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("statsmodels", reason="needs the package 'statsmodels'")
    import sunspots_autoregression as example

    years, x = example.series()
    assert len(years) == 309
    r = example.autocovariances(x - x.mean(), 4)
    wanted = [float((x - x.mean())[k:] @ (x - x.mean())[: len(x) - k]) / len(x) for k in range(5)]
    assert r.tolist() == pytest.approx(wanted, rel=1e-10)
    example.main(["--out", str(tmp_path)])
    assert (tmp_path / "sunspots.png").stat().st_size > 10_000
