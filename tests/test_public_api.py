"""The public names and signatures equal tests/public_api.txt; `make api` writes it anew after an intended change."""

from __future__ import annotations

import difflib
import enum
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import structmat

SNAPSHOT = Path(__file__).with_name("public_api.txt")
# How the house is built, not what it offers: types are public as structmat.<Type>, rules go in through dispatch.
INTERNAL = {"types", "kernels", "algebra", "lazy", "matrix", "construct"}

OPTIONAL = ["adapters", "peft"]  # cannot be imported where peft is not installed


def public_modules() -> list[str]:
    """Return ``structmat`` first, then its public modules, and those of its public packages, in alphabetical order."""
    names = []
    for found in pkgutil.walk_packages(structmat.__path__, "structmat."):
        parts = found.name.split(".")[1:]
        if not any(part.startswith("_") for part in parts) and parts[0] not in INTERNAL and parts[:2] != OPTIONAL:
            names.append(found.name)
    # A package whose __init__ says what is public speaks for its files.
    speaking = [name for name in names if getattr(importlib.import_module(name), "__all__", None)]
    quiet = {name for name in names if any(name.startswith(f"{package}.") for package in speaking)}
    shown = quiet - {"structmat.testing.strategies"}  # reached by its own name in DESIGN's public surface
    return ["structmat", *sorted(set(names) - shown)]


def names_of(module: ModuleType) -> list[str]:
    """Return what a module offers: its ``__all__``, or else the public names that it defines itself."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    return sorted(name for name in own if not name.startswith("_"))


def default_of(value: object) -> str:
    """Write a default without addresses or anything else that differs from run to run."""
    if isinstance(value, enum.Enum) or type(value).__module__ == "torch":
        return str(value)
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, bool | int | float | complex | str | bytes | tuple | frozenset | type(None)):
        return repr(value)
    return f"<{type(value).__qualname__}>"


def signature_of(function: Any) -> str:
    """Write names, kinds and defaults; annotations are mypy's business, and Pythons print them differently."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return "(...)"
    parameters = [
        p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else _Written(default_of(p.default)))
        for p in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


class _Written:
    """A default whose repr is the given text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def member_of(cls: type, name: str) -> str | None:
    """Write one public member of a class, or None if it is not ours (inherited from torch, the standard library)."""
    for base in cls.__mro__:
        if name in vars(base):
            if not base.__module__.startswith("structmat"):
                return None
            value = vars(base)[name]
            if isinstance(value, classmethod | staticmethod):
                kind = "classmethod" if isinstance(value, classmethod) else "staticmethod"
                return f"{kind} {name}{signature_of(value.__func__)}"
            if inspect.isfunction(value):
                return f"{name}{signature_of(value)}"
            return f"property {name}" if isinstance(value, property) else name
    return None


def lines_of_class(cls: type) -> Iterator[str]:
    """Write the members of a class, except those that it inherits unchanged from a public class of ours."""
    bases = [base for base in cls.__mro__[1:] if getattr(structmat, base.__name__, None) is base]
    if issubclass(cls, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in cls)
        return
    for name in sorted(dir(cls)):
        written = None if name.startswith("_") else member_of(cls, name)
        if written and not any(hasattr(base, name) and member_of(base, name) == written for base in bases):
            yield f"    {written}"


def describe(modules: list[str]) -> str:
    """Write the public API: one line a name, one indented line a member; a name seen before as an alias."""
    lines: list[str] = []
    seen: dict[int, str] = {}
    for module_name in modules:
        module = importlib.import_module(module_name)
        lines += ["", f"[{module_name}]"]
        for name in names_of(module):
            value = getattr(module, name)
            full = f"{module_name}.{name}"
            described = inspect.isclass(value) or callable(value)
            if described and id(value) in seen:
                lines.append(f"{name} is {seen[id(value)]}")
            elif inspect.ismodule(value):
                lines.append(f"module {name}")
            elif inspect.isclass(value):
                hidden = [
                    base
                    for base in value.__bases__
                    if "._" in base.__module__ and base.__module__.startswith("structmat")
                ]
                bases = ", ".join(base.__name__ for base in value.__bases__ if base not in (object, *hidden))
                makes = "" if issubclass(value, enum.Enum | BaseException) else signature_of(value)
                lines += [f"class {name}{makes}{f' < {bases}' if bases else ''}", *lines_of_class(value)]
            else:
                lines.append(f"{name}{signature_of(value)}" if callable(value) else f"{name}: {type(value).__name__}")
            if described:
                seen[id(value)] = full
    return "\n".join(lines).strip() + "\n"


def test_the_public_api_is_the_one_recorded() -> None:
    recorded = SNAPSHOT.read_text() if SNAPSHOT.is_file() else ""
    found = describe(public_modules())
    difference = difflib.unified_diff(
        recorded.splitlines(), found.splitlines(), SNAPSHOT.name, "structmat", lineterm=""
    )
    assert found == recorded, "the public API changed; if that is meant, run `make api`\n" + "\n".join(difference)


def test_every_public_name_says_what_it_is() -> None:
    silent = []
    for module_name in public_modules():
        module = importlib.import_module(module_name)
        if not module.__doc__:
            silent.append(module_name)
        for name in names_of(module):
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isroutine(value)) and not (value.__doc__ or "").strip():
                silent.append(f"{module_name}.{name}")
    assert not silent, f"no docstring: {silent}"


def test_what_all_promises_exists() -> None:
    missing = [
        f"{module_name}.{name}"
        for module_name in public_modules()
        for name in names_of(importlib.import_module(module_name))
        if not hasattr(importlib.import_module(module_name), name)
    ]
    assert not missing


def test_a_changed_signature_changes_the_snapshot() -> None:
    """The snapshot sees a new default, a renamed parameter and a new method; it does not see annotations."""

    def before(a: int, *, tol: float = 1.0) -> int:
        return a

    def annotated(a: float, *, tol: object = 1.0) -> None: ...

    def other_default(a: int, *, tol: float = 2.0) -> int:
        return a

    def positional(a: int, tol: float = 1.0) -> int:
        return a

    assert signature_of(before) == "(a, *, tol=1.0)" == signature_of(annotated)
    assert len({signature_of(before), signature_of(other_default), signature_of(positional)}) == 3


if __name__ == "__main__":
    SNAPSHOT.write_text(describe(public_modules()))
    sys.stdout.write(f"wrote {SNAPSHOT.name}: {len(SNAPSHOT.read_text().splitlines())} lines\n")
