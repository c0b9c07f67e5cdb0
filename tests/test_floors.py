"""Imports between the files of structmat only go down the floors; read from the source, importing nothing."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "structmat"

# The height of each part (the first name after `structmat.`): the whole number is its floor, the decimals order the
# parts of one floor. A part imports only what lies strictly lower, and itself.
FLOORS = {
    "_version": 1.0,
    "errors": 1.0,
    "_optional": 1.0,
    "_progress": 1.1,
    "_tracing": 1.0,
    "kernels": 1.0,
    "claims": 2.0,
    "dispatch": 2.0,
    "backend": 2.0,
    "_shell": 2.1,
    "functional": 3.0,
    "_value": 3.1,
    "solving": 3.2,
    "_iterative": 3.25,
    "_least_squares": 3.26,
    "_verbs": 3.3,
    "_indexing": 3.35,
    "matrix": 3.4,
    "_nearest": 3.5,
    "lazy": 4.0,
    "types": 4.1,
    "construct": 4.2,
    "checks": 4.3,
    "algebra": 5.0,
    "linalg_toeplitz": 5.05,
    "linalg_operator": 5.05,
    "linalg_spectra": 5.05,
    "linalg_stochastic": 5.05,
    "linalg": 5.1,
    "identification": 5.1,
    "nn": 5.2,
    "testing": 5.3,
    "adapters": 5.3,
    "__main__": 6.0,
}
# Only these third-party packages may be imported plainly; everything else goes through _optional.need or _OWN_EXTRA.
REQUIRED = {"torch", "numpy", "scipy", "opt_einsum"}
# Parts that cannot exist without their extra, and are imported by name only.
OWN_EXTRA = {"testing": {"hypothesis", "pytest"}, "kernels": {"triton"}}
NOT_BY_DEFAULT = ("testing", "adapters")


def module_of(path: Path) -> tuple[str, ...]:
    """Return the dotted name of a file below the package, without ``structmat`` itself: ``("types", "toeplitz")``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports_of(tree: ast.Module, module: tuple[str, ...], is_package: bool) -> list[tuple[tuple[str, ...], int, bool]]:
    """List ``(dotted name, line, inside a function)`` of each import; relative ones resolved."""
    found: list[tuple[tuple[str, ...], int, bool]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((tuple(alias.name.split(".")), node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                package = ("structmat", *module) if is_package else ("structmat", *module[:-1])
                base = package[: len(package) - node.level + 1] + base
            # `from structmat import types` imports the part `types`, `from structmat.types import X` too.
            found.extend(((*base, alias.name), node.lineno, inside) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(tree, False)
    return found


def faults_of(source: str, module: tuple[str, ...], is_package: bool = False) -> list[str]:
    """Say what is wrong with the imports of one file, given its text and its dotted name below the package."""
    faults = []
    part = module[0] if module else ""
    if part and part not in FLOORS:
        return [f"{part} stands on no floor: add it to FLOORS in tests/test_floors.py"]
    for name, line, inside in imports_of(ast.parse(source), module, is_package):
        where = f"{'.'.join(('structmat', *module))}, line {line}: "
        if name[0] != "structmat":
            allowed = REQUIRED | OWN_EXTRA.get(part, set()) | sys.stdlib_module_names
            if name[0] not in allowed:
                faults.append(f"{where}imports {name[0]}, an optional package, without _optional.need")
            continue
        target = name[1] if len(name) > 1 else ""
        if target not in FLOORS:  # `import structmat`, or a public name: the top of the house, from inside it
            if part:
                faults.append(f"{where}imports {'.'.join(name)} from the top; import it from the file that defines it")
        elif inside and (part, target) != ("backend", "kernels"):
            faults.append(f"{where}imports {'.'.join(name)} inside a function")
        elif not part:
            if target in NOT_BY_DEFAULT:
                faults.append(f"{where}structmat must not import {target}: it is imported by name")
        elif target == "kernels" and part not in {"backend", "kernels"}:
            faults.append(f"{where}only backend may import kernels")
        elif part != target and FLOORS[target] >= FLOORS[part]:
            faults.append(f"{where}imports {target} ({FLOORS[target]}) from {FLOORS[part]}: up or sideways")
    return faults


def files() -> list[Path]:
    """Return every source file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: ".".join(module_of(path)) or "structmat")
def test_imports_go_down(path: Path) -> None:
    assert not faults_of(path.read_text(), module_of(path), path.name == "__init__.py")


def test_types_do_not_import_each_other() -> None:
    """Rules between different types live in algebra; what a family shares is a module of its own, ``<name>_family``."""
    faults = []
    for path in (PACKAGE / "types").rglob("*.py"):
        module = module_of(path)
        if len(module) < 2:  # types/__init__ may gather them all
            continue
        for name, line, _ in imports_of(ast.parse(path.read_text()), module, path.name == "__init__.py"):
            if name[:2] == ("structmat", "types") and name[2:3] != module[1:2] and not name[2].endswith("_family"):
                faults.append(f"{path.name}, line {line}: imports {'.'.join(name[2:])}")
    assert not faults


def test_every_part_of_the_table_has_been_walked() -> None:
    """A sweep over no files would pass anything."""
    parts = {module_of(path)[0] for path in files() if module_of(path)}
    assert {"errors", "claims", "dispatch", "backend", "functional", "matrix"} <= parts


@pytest.mark.parametrize(
    ("source", "module", "part_of_message"),
    [
        ("from structmat.types import Dense", ("matrix",), "up or sideways"),
        ("from . import types", ("matrix",), "up or sideways"),
        ("from .types.toeplitz import Toeplitz", ("claims",), "up or sideways"),
        ("from ..algebra import rules", ("types", "dense"), "up or sideways"),
        ("from structmat import adapters", ("testing", "examples"), "up or sideways"),
        ("def f():\n    from structmat.errors import ShapeError", ("types", "dense"), "inside a function"),
        ("def f():\n    from structmat.kernels import cayley", ("functional", "orthogonal"), "inside a function"),
        ("from structmat import kernels", ("functional", "orthogonal"), "only backend"),
        ("import structmat as sm", ("types", "dense"), "from the top"),
        ("from structmat import Toeplitz", ("adapters", "surm"), "from the top"),
        ("import safetensors", ("adapters", "checkpoint"), "optional package"),
        ("import hypothesis", ("types", "dense"), "optional package"),
        ("from structmat import adapters", (), "imported by name"),
        ("x = 1", ("brand_new",), "stands on no floor"),
    ],
)
def test_the_reader_sees_each_fault(source: str, module: tuple[str, ...], part_of_message: str) -> None:
    faults = faults_of(source, module, is_package=not module)
    assert len(faults) == 1, faults
    assert part_of_message in faults[0]


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from structmat.errors import ShapeError", ("types", "dense")),
        ("from ..matrix import Matrix", ("types", "dense")),
        ("from .dense import x", ("types", "__init__x")),
        ("def f():\n    from structmat.kernels import cayley", ("backend",)),
        ("import hypothesis", ("testing", "strategies")),
        ("import torch, math\nfrom numpy.linalg import norm", ("functional", "fourier")),
    ],
)
def test_the_reader_lets_good_imports_pass(source: str, module: tuple[str, ...]) -> None:
    assert faults_of(source, module) == []
