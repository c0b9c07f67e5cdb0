"""The demo's text: what is extracted from docstrings, how it is split and balanced, how a bad TSV file is refused."""

from collections import Counter
from pathlib import Path

import pytest
from adapt_text import data, tsv
from adapt_text.data import DataError, Example

MODULE = '''
"""Module docstrings are not used at all here."""

class Public:
    """Hold the coefficients of a polynomial
    in one variable. A second sentence.

    A second paragraph.
    """

    def evaluate(self):
        """Evaluate the polynomial at many points at once."""

        def inner():
            """Nested in a function, hence private to it."""

    def _hidden(self):
        """A private member that nobody should read here."""

    async def later(self):
        """Wait until the coefficients have been computed."""

    class Nested:
        """Remember one root together with its multiplicity."""

class _Private:
    """Hidden from the public and therefore left out."""

    def visible(self):
        """Inside something private, hence private as well."""

def short():
    """Too short."""

def long():
    """%s"""

def giveaway():
    """Apply the given Functions to every single entry."""

def parameter():
    """width (`int`, *optional*): the width of the hidden layer."""

def heading():
    """Args: the list of arguments comes first in here."""

def undocumented():
    pass
''' % ("many words " * 30)


def test_extract_takes_first_sentences_of_what_is_public() -> None:
    found = data.extract(MODULE, "pkg/module.py")
    assert [(e.text, e.label) for e in found] == [
        ("Hold the coefficients of a polynomial in one variable.", 0),
        ("Evaluate the polynomial at many points at once.", 1),
        ("Wait until the coefficients have been computed.", 1),
        ("Remember one root together with its multiplicity.", 0),
    ]
    assert {e.source for e in found} == {"pkg/module.py"}


@pytest.mark.parametrize("code", ["def broken(:", "\0", "x = " + "(" * 500 + ")" * 500])
def test_extract_passes_over_what_does_not_parse(code: str) -> None:
    assert data.extract(code, "pkg/broken.py") == []


def test_extract_reads_and_does_not_run() -> None:
    code = 'raise SystemExit\ndef f():\n    """Stay silent while the file is being read."""\n'
    assert [e.label for e in data.extract(code, "pkg/f.py")] == [1]


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("One. Two.", "One."),
        ("  Spread\n   over lines\n\nnext paragraph", "Spread over lines"),
        ("Version 1.5 is kept whole! Then more", "Version 1.5 is kept whole!"),
        ("No full stop", "No full stop"),
    ],
)
def test_first_sentence(docstring: str, sentence: str) -> None:
    assert data.first_sentence(docstring) == sentence


@pytest.mark.parametrize("word", ["class", "Class", "classes", "function", "FUNCTIONS", "method", "methods"])
def test_words_that_give_the_answer_away_are_dropped(word: str) -> None:
    code = f'def f():\n    """Return the {word} that was registered last."""\n'
    assert data.extract(code, "pkg/f.py") == []
    assert data.GIVEAWAY.search("Return the classification of methodical dysfunction") is None


@pytest.mark.parametrize(("length", "kept"), [(24, 0), (25, 1), (200, 1), (201, 0)])
def test_sentences_of_25_to_200_characters(length: int, kept: int) -> None:
    assert len(data.extract(f'def f():\n    """{"x" * length}"""\n', "pkg/f.py")) == kept


def test_deduplicate_keeps_the_first_and_drops_what_has_two_labels() -> None:
    a, same, torn, other = (
        Example("One", 0, "p/a"),
        Example("one", 0, "p/b"),
        Example("Two", 0, "p/a"),
        Example("two", 1, "p/c"),
    )
    three = Example("Three", 1, "p/c")
    assert data.deduplicate([a, same, torn, other, three]) == [a, three]


def test_balance_is_equal_in_every_package_and_ignores_the_order_given() -> None:
    examples = [Example(f"a{i}", int(i >= 3), "a/x.py") for i in range(10)]
    examples += [Example(f"b{i}", int(i >= 8), "b/y.py") for i in range(10)]
    examples += [Example(f"only functions {i}", 1, "c/z.py") for i in range(5)]
    chosen = data.balance(examples)
    assert Counter((e.package, e.label) for e in chosen) == {("a", 0): 3, ("a", 1): 3, ("b", 0): 2, ("b", 1): 2}
    assert data.balance(examples[::-1]) == chosen
    limited = data.balance(examples, limit=5)
    assert Counter(e.label for e in limited) == {0: 2, 1: 2}
    assert set(limited) <= set(chosen)


def test_side_depends_on_the_name_alone_and_has_the_shares_asked_for() -> None:
    names = [f"pkg/file{i}.py" for i in range(4000)]
    counts = Counter(data.side(name) for name in names)
    # Binomial: standard deviation below sqrt(0.25 * 4000) = 32; six of them.
    assert abs(counts["test"] - 1000) < 192
    assert abs(counts["dev"] - 400) < 192
    assert data.side("torch/nn/functional.py") == data.side("torch/nn/functional.py")


def package(folder: Path, name: str, files: int) -> Path:
    """A package on disk whose files document as many functions as classes, and one that documents functions only."""
    root = folder / name
    (root / "tests").mkdir(parents=True)
    for i in range(files):
        (root / f"m{i}.py").write_text(
            f'class A:\n    """The thing that {name} number {i} stores for later."""\n'
            f'def f():\n    """Compute the answer of {name} number {i} at once."""\n'
            f'def g():\n    """Compute another answer of {name} number {i} too."""\n'
            'def same():\n    """A sentence that stands in each of the files."""\n'
        )
    (root / "tests" / "test_m.py").write_text('def f():\n    """A sentence that only the tests of it contain."""\n')
    (root / "latin.py").write_bytes(b'def f():\n    """Gr\xfc\xdfe an alle, die das hier lesen k\xf6nnen."""\n')
    return root


def test_docstring_split_divides_no_file_and_balances_each_side(tmp_path: Path) -> None:
    folders = {name: package(tmp_path, name, 60) for name in ("alpha", "beta")}
    seen = []
    split = data.docstring_split(folders, {"train": 40}, watch=lambda files: seen.extend(files) or files)
    sides = {"train": split.train, "dev": split.dev, "test": split.test}
    for name, group in sides.items():
        assert {data.side(e.source) for e in group} == {name}
        assert {n: c % 2 for n, c in Counter(e.package for e in group).items()} == {"alpha": 0, "beta": 0}
        assert Counter(e.label for e in group)[0] == len(group) / 2 > 0
    assert len(split.train) == 40
    texts = [e.text for group in sides.values() for e in group]
    assert len(texts) == len(set(texts))
    assert not any("only the tests" in text for text in texts)
    assert sum("each of the files" in text for text in texts) <= 1
    assert len(seen) == 2 * 61
    assert split.labels == ("class", "function")
    assert split.majority() == 0.5
    again = data.docstring_split(dict(reversed(folders.items())), {"train": 40})
    assert again.test == split.test


def test_docstring_split_says_when_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(DataError, match="no sentence is left for 'train' out of 1 files of empty"):
        data.docstring_split({"empty": tmp_path})


def test_missing_packages_are_named_with_the_extra() -> None:
    with pytest.raises(
        DataError, match=r"packages no_such_one, nor_this: pip install 'structmat\[demo\]', or give --data"
    ):
        data.installed(["no_such_one", "json", "nor_this"])


def test_installed_finds_folders_without_importing() -> None:
    assert (data.installed(["json"])["json"] / "decoder.py").is_file()


def write(folder: Path, content: bytes | str) -> Path:
    path = folder / "mine.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_read_tsv_accepts_other_columns_quotes_crlf_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffid\tLabel\tText\r\n1\tgood\t"Quoted" text\r\n\r\n2\tbad\tplain  text \r\n')
    assert tsv.read_tsv(path) == [('"Quoted" text', "good"), ("plain text", "bad")]


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        ("", "1:1", "the header is missing"),
        ("text\tclass\nx\ty\n", "1:1", "no column 'label' in the header, which has 'text', 'class'"),
        ("text\tlabel\ttext\n", "1:1", "more than one column 'text'"),
        ("text\tlabel\nfine\tyes\nno tab here\n", "3:12", "1 of 2 fields: a tab is missing"),
        ("text\tlabel\nfine\tyes\tmore\n", "2:9", "3 fields, the header has 2: a tab too many"),
        ("text\tlabel\nfine\tyes\n\n \tyes\n", "4:1", "the text is empty"),
        ("text\tlabel\nfine\t\n", "2:6", "the label is empty"),
        (b"text\tlabel\nfine\tyes\nd\xc3\xa9j\xe9 vu\tno\n", "3:4", "byte 0xe9 is not UTF-8"),
        ("text\tlabel\nab\0c\tno\n", "2:3", "a NUL character"),
    ],
)
def test_read_tsv_names_line_and_column(tmp_path: Path, content: bytes | str, place: str, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        tsv.read_tsv(path)
    assert str(caught.value).startswith(f"{path}:{place}: {message}")


def test_read_tsv_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tsv: cannot be read: No such file or directory"):
        tsv.read_tsv(tmp_path / "none.tsv")


def test_split_rows_is_stratified_and_disjoint() -> None:
    rows = [(f"text {i}", "yes" if i % 4 else "no") for i in range(400)]
    split = tsv.split_rows([*rows, rows[0], ("torn", "yes"), ("Torn", "no")], "mine")
    assert split.labels == ("no", "yes")
    expected = {"train": (65, 195), "dev": (10, 30), "test": (25, 75)}
    for name, (no, yes) in expected.items():
        assert Counter(e.label for e in getattr(split, name)) == {0: no, 1: yes}
    texts = [e.text for e in (*split.train, *split.dev, *split.test)]
    assert sorted(texts) == sorted(text for text, _ in rows)
    assert split.majority() == 0.75


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x")], r"mine: 1 label\(s\) in 1 rows; at least 2 different labels are needed"),
        (
            [(f"t{i}", "x" if i else "y") for i in range(99)],
            "mine: label 'y' has 1 different rows; at least 20 are needed",
        ),
        ([(f"t{i}", f"l{i}") for i in range(1001)], "1001 different labels in 1001 rows; at most 1000 are allowed"),
    ],
)
def test_split_rows_refuses_what_cannot_be_learnt(rows: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tsv.split_rows(rows, "mine")
