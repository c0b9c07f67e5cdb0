"""The workshop itself: one version, pins that cover the extras, and checks that see what they look for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import structmat
from structmat._optional import need

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str) -> ModuleType:
    """Load a file of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonical(line.split("==")[0]): line.split("==")[1] for line in lines if line and not line.startswith("#")}


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert "version" not in project
    assert re.fullmatch(r"0\.\d+\.\d+", structmat.__version__)


def test_every_requirement_of_every_extra_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {canonical(re.split(r"[\[<>=!~; ]", line)[0]) for line in wanted} - {"structmat"}
    assert len(names) > 15
    assert names <= set(pins())


def test_constraints_pin_exactly_and_name_no_place() -> None:
    text = (ROOT / "constraints.txt").read_text()
    for line in text.splitlines():
        assert re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), line
    assert not re.search(r"https?:|@|--", text)
    assert pins()["torch"] == "2.13.0"


def test_the_extras_are_the_promised_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {"testing", "adapters", "demo", "bench", "docs", "dev", "examples", "progress", "peft", "triton"}
    assert set(project["optional-dependencies"]) == promised
    assert {re.split(r"[<>=]", line)[0] for line in project["dependencies"]} == {
        "torch",
        "numpy",
        "scipy",
        "opt_einsum",
    }


def test_structmat_alone_imports_no_optional_package() -> None:
    program = (
        "import sys, structmat\n"
        "parts = 'structmat.testing structmat.adapters hypothesis pytest safetensors transformers peft'.split()\n"
        "print([name for name in parts if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_need_prints_the_pip_line() -> None:
    with pytest.raises(ImportError, match=r"pip install 'structmat\[demo\]'"):
        need("no_such_package_of_anyone", "demo")
    assert need("math", "demo").pi > 3


def test_the_installed_metadata_agree_if_there_are_any() -> None:
    """A plain clone on the path has no metadata; an installation must carry the same version."""
    versions = {d.version for d in importlib.metadata.distributions(path=sys.path) if d.metadata["Name"] == "structmat"}
    assert versions <= {structmat.__version__}


REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two"><skipped type="{}" message="{}"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("kind", "reason", "code"),
    [
        ("pytest.skip", "needs a GPU", 0),
        ("pytest.skip", "could not import 'peft': No module named 'peft'", 0),
        ("pytest.skip", "needs the package 'g++'", 0),
        ("pytest.skip", "too slow", 1),
        ("pytest.skip", "flaky on some machines", 1),
        ("pytest.xfail", "needs a GPU", 1),
        ("pytest.skip", "", 1),
    ],
)
def test_skips_for_another_reason_are_refused(
    kind: str, reason: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(REPORT.format(kind, reason))
    assert tool("check_skips").main(str(report)) == code
    assert ("tests.a::two" in capsys.readouterr().out) == bool(code)


def test_a_report_without_tests_or_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.xml").write_text("<testsuites/>")
    assert tool("check_skips").main(str(tmp_path / "empty.xml")) == 1
    assert tool("check_skips").main(str(tmp_path / "missing.xml")) == 1


def test_paths_of_a_machine_are_seen() -> None:
    check = tool("check_tree")
    bad = ["/ho" + "me/ann/structmat", '"/ro' + 'ot/.cache"', "see /wo" + "rk/spec", "file:" + "///wheels"]
    for line in bad:
        assert check.faults_of("docs/a.md", line + "\n"), line
    good = [
        "a/b/wo" + "rk/c",
        "https://example.org/home/ann",
        "/usr/bin/env bash",
        "PYTHON=/path/to/python3.12",
        "x / tmp",
    ]
    for line in good:
        assert not check.faults_of("docs/a.md", line + "\n"), line


def test_long_files_and_functions_are_seen() -> None:
    check = tool("check_tree")
    assert check.faults_of("structmat/a.py", "x = 1\n" * 400)
    body = "def f():\n" + "    x = 1\n" * 100
    assert check.faults_of("structmat/a.py", body)
    assert not check.faults_of("tests/a.py", body)
    assert not check.faults_of("structmat/a.py", 'def f():\n    """' + "words\n    " * 100 + '"""\n    return 1\n')
