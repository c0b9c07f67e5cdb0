"""Where a program can be broken in one place: the mutants of a file, made from its syntax tree, its layout kept.

Operators: ``sign`` (plus and minus), ``conj`` (a conjugate left out), ``transpose`` (``mT`` for ``mH`` and back),
``index`` (off by one in an index, a length or a bound), ``claim`` (a property kept that should go, a rank bound
one too small, a question about a claim answered with yes), ``swap`` (operands or arguments exchanged), ``term`` (a
term, a factor or a condition left out).

Not touched, because no test of values can or should notice: docstrings, annotations, strings, ``__all__``, ``raise``
and ``assert`` statements, ``__repr__`` and what only feeds it, counts of flops and bytes that ``explain`` shows, rules
that choose the faster of two exact algorithms (`COST_RULES`), and comparisons with a named threshold (`n <= LARGEST`).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SCOPE = ("structmat/functional", "structmat/types", "structmat/claims.py", "structmat/algebra")
# With the weight of each in a draw: the rarer its places, the more.
OPERATORS = {"sign": 3, "conj": 12, "transpose": 6, "index": 1, "claim": 15, "swap": 1.5, "term": 1.5}
# Functions that only estimate or describe: wrong numbers there change no result.
COST_RULES = re.compile(
    r"__repr__|_statics|_reason|plan|work|\w*flops|\w*_cost|\w*bytes|\w*_pays|side_by_side|cheapest_order|_?(constant_)?path"
    r"|\w*_seconds|_table|conv_plan|tree_order|block_size"
)
THRESHOLD = re.compile(r"_?[A-Z][A-Z0-9_]+$")
CLAIMS = re.compile(r"Claim|claims|properties|_KEPT|_ORTHOGONAL|_TRIANGULAR|_DIAGONAL|frozenset|keep\b")
# Calls whose first two arguments mean the same when exchanged, or are no operands.
UNORDERED = re.compile(
    r"(min|max|maximum|minimum|promote_types|result_type|broadcast_shapes|broadcast_tensors|isinstance|issubclass|getattr"
    r"|hasattr|zip|rule|cast|NamedTuple|Plan|allclose|equal|gcd|lcm|hypot|dense_limit|call|lookup|super|divides|need"
    r"|_same|check_pair)$"
)
MUTABLE_CALLS = re.compile(r"(range|arange|roll|pad|narrow|diagonal|tril|triu|eye|zeros|new_zeros|linspace|unsqueeze)$")
SIGNS: dict[type, str] = {ast.Add: " - ", ast.Sub: " + "}
ORDERED: dict[type, str] = {
    ast.MatMult: " @ ",
    ast.Sub: " - ",
    ast.Div: " / ",
    ast.FloorDiv: " // ",
    ast.Mod: " % ",
    ast.Pow: " ** ",
}
BOUNDS: dict[type, str] = {ast.Lt: " <= ", ast.LtE: " < ", ast.Gt: " >= ", ast.GtE: " > "}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: the bytes ``start:end`` of a file become ``new``. ``function`` is its qualified name."""

    file: str
    function: str
    operator: str
    line: int
    column: int
    start: int
    end: int
    old: str
    new: str
    same: int = 0  # how many changes of the same text stand before it in its function

    @property
    def id(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}+{self.end - self.start}"
        return f"{place}:{self.operator}:{self.new}".replace("\n", " ").replace(" ", "")

    @property
    def key(self) -> str:
        """What names this mutant as long as its function keeps the text that changes: no line numbers in it."""
        old, new = (re.sub(r"\s+", " ", text) for text in (self.old, self.new))
        which = f" ({self.same + 1})" if self.same else ""
        return f"{self.file} {self.function}: {self.operator}: {old} -> {new}{which}"

    def apply(self, source: str) -> str:
        raw = source.encode()
        return (raw[: self.start] + self.new.encode() + raw[self.end :]).decode()


class _Finder:
    """Walks one file and collects its mutants."""

    def __init__(self, source: str, file: str) -> None:
        self.raw, self.file = source.encode(), file
        self.starts = [0]
        for line in self.raw.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Mutant] = []
        self.names: list[str] = []
        self.tree = ast.parse(source)

    # -- text ---------------------------------------------------------------------------------------------------------

    def span(self, node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def plain(self, node: ast.expr) -> str:
        start, end = self.span(node)
        return self.raw[start:end].decode()

    def text(self, node: ast.expr) -> str:
        """The source of an expression, in parentheses unless it binds tightest."""
        atoms = ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.Constant | ast.Tuple | ast.List | ast.Set
        source = self.plain(node)
        whole = isinstance(node, atoms) and not (isinstance(node, ast.Tuple) and not source.startswith("("))
        return source if whole else f"({source})"

    def add(self, operator: str, node: ast.expr, new: str) -> None:
        self.replace(operator, node, self.span(node), new)

    def replace(self, operator: str, node: ast.AST, span: tuple[int, int], new: str) -> None:
        old, function = self.raw[slice(*span)].decode(), ".".join(self.names) or "<module>"
        if old != new:
            place = node.lineno, node.col_offset  # type: ignore[attr-defined]
            self.found.append(Mutant(self.file, function, operator, *place, *span, old, new))

    # -- the walk -----------------------------------------------------------------------------------------------------

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if COST_RULES.fullmatch(node.name):
                return
            self.names.append(node.name)
            for child in node.body:  # neither decorators, bases nor annotations
                self.visit(child)
            if isinstance(node, ast.FunctionDef):
                for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                    self.visit(default)
            self.names.pop()
            return
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.visit(node.value)
            return
        if isinstance(node, ast.Assign) and not self.names:  # thresholds, tables of names, aliases of types
            return
        if isinstance(node, ast.expr):
            self.expression(node)
        if isinstance(node, ast.AugAssign):
            self.augmented(node)
        if isinstance(node, ast.If) and self.file.endswith("claims.py"):
            self.add("claim", node.test, "True")
        if isinstance(node, ast.Call) and self.name_of(node.func).endswith(("Plan", "cast", "TypeVar")):
            return
        for child in ast.iter_child_nodes(node):
            self.visit(child)

    def name_of(self, node: ast.expr) -> str:
        return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""

    def expression(self, node: ast.expr) -> None:
        if isinstance(node, ast.BinOp):
            self.binary(node)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            if not isinstance(node.operand, ast.Constant):
                self.add("sign", node, self.text(node.operand))
        elif isinstance(node, ast.BoolOp):
            self.boolean(node)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            self.comparison(node)
        elif isinstance(node, ast.Call):
            self.call(node)
        elif isinstance(node, ast.Attribute) and node.attr in ("mT", "mH"):
            self.add("transpose", node, f"{self.text(node.value)}.{'mH' if node.attr == 'mT' else 'mT'}")
        elif isinstance(node, ast.Subscript):
            for part in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
                self.position(part)
        elif isinstance(node, ast.IfExp) and CLAIMS.search(self.plain(node.body)):
            self.add("claim", node, self.text(node.body))

    def augmented(self, node: ast.AugAssign) -> None:
        span = self.span(node.target)[1], self.span(node.value)[0]
        flipped = {" += ": " -= ", " -= ": " += "}.get(self.raw[slice(*span)].decode())
        if flipped is not None:
            self.replace("sign", node, span, flipped)

    def binary(self, node: ast.BinOp) -> None:
        left, right, kind = self.text(node.left), self.text(node.right), type(node.op)
        sequences = ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp
        if any(isinstance(side, sequences) for side in (node.left, node.right)) or '"' in left[:2] + right[:2]:
            return
        about_claims = CLAIMS.search(left) or CLAIMS.search(right)
        if about_claims and kind in (ast.BitAnd, ast.Sub):
            self.add("claim", node, left)
            return
        if kind in SIGNS:
            self.add("sign", node, left + SIGNS[kind] + right)
        if kind in ORDERED and left != right:
            self.add("swap", node, right + ORDERED[kind] + left)
        one = isinstance(node.right, ast.Constant) and node.right.value == 1
        if kind in (ast.Add, ast.Sub) and one:  # n - 1 -> n
            self.add("index", node, left)
        elif kind in (ast.Add, ast.Sub, ast.Mult, ast.Div):
            self.add("term", node, left)
            if kind in (ast.Add, ast.Mult):
                self.add("term", node, right)

    def boolean(self, node: ast.BoolOp) -> None:
        word = " and " if isinstance(node.op, ast.And) else " or "
        for gone in range(len(node.values)):
            if THRESHOLD.search(self.plain(node.values[gone])):
                continue
            kept = [self.text(value) for k, value in enumerate(node.values) if k != gone]
            self.add("term", node, f"({word.join(kept)})")

    def comparison(self, node: ast.Compare) -> None:
        left, right = node.left, node.comparators[0]
        if isinstance(node.ops[0], ast.In) and re.match(r"_?C(laim)?\.[A-Z]", self.plain(left)):
            self.add("claim", node, "True")
        named = any(THRESHOLD.match(self.name_of(side)) for side in (left, right))
        if type(node.ops[0]) in BOUNDS and not named:
            self.add("index", node, self.text(left) + BOUNDS[type(node.ops[0])] + self.text(right))

    def call(self, node: ast.Call) -> None:
        name, arguments = self.name_of(node.func), node.args
        if isinstance(node.func, ast.Attribute) and name == "conj" and not arguments:
            self.add("conj", node, self.text(node.func.value))
        elif name in ("conj", "_conj", "conjugate") and len(arguments) == 1:
            self.add("conj", node, self.text(arguments[0]))
        if name == "Claims" and len(arguments) > 1 and isinstance(arguments[1], ast.Name | ast.BinOp | ast.Call):
            self.add("claim", arguments[1], f"{self.text(arguments[1])} - 1")
        if MUTABLE_CALLS.match(name) and arguments:
            self.position(arguments[0])
            if len(arguments) > 1:
                self.position(arguments[1])
        pair = [self.plain(argument) for argument in arguments[:2] if not isinstance(argument, ast.Starred)]
        operands = [a for a in arguments[:2] if isinstance(a, ast.Name | ast.Attribute | ast.Subscript | ast.Call)]
        if len(pair) == 2 and len(operands) == 2 and pair[0] != pair[1] and not UNORDERED.search(name):
            (start, first_end), (second_start, end) = self.span(arguments[0]), self.span(arguments[1])
            if not set("()") & set(self.raw[first_end:second_start].decode()):
                self.replace("swap", arguments[0], (start, end), f"{pair[1]}, {pair[0]}")

    def position(self, node: ast.expr) -> None:
        """An index, a length or a bound of a slice: one more, and one less."""
        if isinstance(node, ast.Slice):
            for bound in (node.lower, node.upper):
                if bound is not None:
                    self.position(bound)
            return
        number = self.number(node)
        if number is not None:
            for new in (number - 1, number + 1):
                self.add("index", node, str(new))
        elif isinstance(node, ast.Name | ast.BinOp | ast.Attribute) and not CLAIMS.search(self.plain(node)):
            for sign in ("-", "+"):
                self.add("index", node, f"{self.text(node)} {sign} 1")

    def number(self, node: ast.expr) -> int | None:
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        inner = node.operand if negative else node  # type: ignore[attr-defined]
        if not isinstance(inner, ast.Constant) or type(inner.value) is not int:
            return None
        return -inner.value if negative else inner.value


def mutants_of(source: str, file: str) -> list[Mutant]:
    """Every mutant of one file, in the order of the text; `is_program` says which are programs."""
    finder = _Finder(source, file)
    finder.visit(finder.tree)
    ordered = sorted(dict.fromkeys(finder.found), key=lambda m: (m.start, m.end, m.operator, m.new))
    seen = Counter[str]()
    numbered = []
    for mutant in ordered:
        numbered.append(dataclasses.replace(mutant, same=seen[mutant.key]))
        seen[mutant.key] += 1
    return numbered


@functools.cache
def _dump(source: str) -> str:
    return ast.dump(ast.parse(source))


def is_program(mutant: Mutant, source: str) -> bool:
    """Whether the change gives a program, and another one than before."""
    try:
        return ast.dump(ast.parse(mutant.apply(source))) != _dump(source)
    except SyntaxError:  # a starred expression where none may stand, and the like
        return False


def all_mutants(root: Path) -> Iterator[Mutant]:
    """The mutants of every file in `SCOPE` below ``root``, files in alphabetic order."""
    for part in SCOPE:
        place = root / part
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            yield from mutants_of(path.read_text(), path.relative_to(root).as_posix())


def drawn(root: Path, mutants: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """``count`` of them, in the order of the text, at most one a place and operator.

    A weighted draw without replacement: each mutant gets a number from the seed and its key alone, so a change
    elsewhere in the library leaves the others in the draw. Files are met by their numbers of sites; rare operators
    weigh more, so that a conjugate or a claim is not lost among indices.
    P. S. Efraimidis and P. G. Spirakis, Weighted random sampling with a reservoir, 2006.
    """

    def score(mutant: Mutant) -> float:
        digest = hashlib.sha256(f"{seed} {mutant.key}".encode()).hexdigest()
        return float((int(digest[:13], 16) + 0.5) / 16**13) ** (1 / OPERATORS[mutant.operator])

    chosen: list[int] = []
    places: set[tuple[str, int, int, str]] = set()
    for number in sorted(range(len(mutants)), key=lambda k: (-score(mutants[k]), k)):
        mutant = mutants[number]
        place = (mutant.file, mutant.start, mutant.end, mutant.operator)
        if len(chosen) == count:
            break
        if place not in places and is_program(mutant, (root / mutant.file).read_text()):
            places.add(place)
            chosen.append(number)
    return [mutants[number] for number in sorted(chosen)]
