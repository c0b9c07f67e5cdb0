"""One table of rules for verbs with several structured arguments: ``(verb, type, type) -> function``.

``@rule("matmul", Circulant, Circulant)`` enters a function. ``lookup`` finds the nearest rule: a rule fits if every
argument is an instance of the rule's type; of two fitting rules the one that is nearer in every argument (by the
position in the method resolution order) wins; if neither is, the call raises ``AmbiguousRuleError`` and never
guesses. Results of rules are closed forms: nothing is truncated or approximated.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from structmat.errors import AmbiguousRuleError, StructureError

__all__ = ["Rule", "call", "lookup", "rule", "rules"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Rule:
    """One entry of the table, as ``rules()`` lists it."""

    verb: str
    types: tuple[type, ...]
    function: Callable[..., Any]

    def __str__(self) -> str:
        names = ", ".join(t.__name__ for t in self.types)
        first = (self.function.__doc__ or "").strip().splitlines()
        return f"{self.verb}({names})" + (f": {first[0]}" if first else "")


_table: dict[str, dict[tuple[type, ...], Callable[..., Any]]] = {}
_found: dict[tuple[Any, ...], Callable[..., Any] | None] = {}


def rule(verb: str, *types: type) -> Callable[[F], F]:
    """Enter the decorated function as the rule for ``verb`` at ``types``; a second rule at one place is an error."""

    def enter(function: F) -> F:
        entries = _table.setdefault(verb, {})
        if types in entries:
            names = ", ".join(t.__name__ for t in types)
            raise ValueError(f"a rule for {verb}({names}) is there already: {entries[types].__qualname__}")
        entries[types] = function
        _found.clear()
        return function

    return enter


def rules(verb: str | None = None) -> tuple[Rule, ...]:
    """All rules, or those of one verb, in the order they were entered."""
    chosen = _table if verb is None else {verb: _table.get(verb, {})}
    return tuple(Rule(v, types, function) for v, entries in chosen.items() for types, function in entries.items())


def lookup(verb: str, *types: type) -> Callable[..., Any] | None:
    """The nearest rule for these argument types, or None."""
    key = (verb, *types)
    if key not in _found:
        _found[key] = _search(verb, types)
    return _found[key]


def call(verb: str, *arguments: Any) -> Any:
    """Apply the nearest rule to the arguments; without one, ``StructureError`` names the arguments and the way out."""
    function = lookup(verb, *map(type, arguments))
    if function is None:
        shown = ", ".join(repr(a) for a in arguments)
        known = ", ".join(sorted(_table)) or "none"
        raise StructureError(
            f"{verb}({shown}): no rule; use .to_dense(), or enter one with structmat.dispatch.rule({verb!r}, ...). "
            f"Verbs with rules: {known}"
        )
    return function(*arguments)


def _search(verb: str, types: tuple[type, ...]) -> Callable[..., Any] | None:
    fitting = [
        (tuple(t.__mro__.index(r) for t, r in zip(types, rule_types, strict=True)), function, rule_types)
        for rule_types, function in _table.get(verb, {}).items()
        if len(rule_types) == len(types) and all(issubclass(t, r) for t, r in zip(types, rule_types, strict=True))
    ]
    best = [a for a in fitting if not any(_nearer(b[0], a[0]) for b in fitting)]
    if len(best) > 1:
        names = ", ".join(t.__name__ for t in types)
        places = "; ".join(f"{verb}({', '.join(t.__name__ for t in b[2])})" for b in best)
        raise AmbiguousRuleError(
            f"{verb}({names}): these rules fit equally well: {places}. Enter one for the pair itself"
        )
    return best[0][1] if best else None


def _nearer(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return a != b and all(i <= j for i, j in zip(a, b, strict=True))
