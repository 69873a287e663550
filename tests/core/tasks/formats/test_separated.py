"""Fields with separators, against the standard library's csv."""

from __future__ import annotations

import csv
import io
import random
import warnings
from typing import Any

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks.formats import separated
from lora_lab.tasks.formats.separated import read_separated
from lora_lab.tasks.table import Column, Table

PIECES = [
    "a",
    "007",
    "NA",
    " ",
    ",",
    ";",
    "\t",
    "|",
    '"',
    "\n",
    "\r\n",
    "é",
    "\u2028",
    "\x0b",
    "\0",
    "",
]


def read(
    text: str,
    suffix: str = ".csv",
    columns: tuple[Column, ...] = (),
    sep: str | None = None,
) -> Table:
    return read_separated(text, "d" + suffix, suffix, columns, sep)


def rows(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*table.columns.values(), strict=True)]


def written(data: list[list[str]], **dialect: object) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, **dialect).writerows([["p", "c", "n"], *data])  # type: ignore[arg-type]
    return buffer.getvalue()


def some_rows(seed: int) -> list[list[str]]:
    rng = random.Random(seed)
    return [["x" + "".join(rng.choices(PIECES, k=4)) for _ in range(3)] for _ in range(8)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("sep", list(",;\t|"))
def test_what_csv_writes_is_read(sep: str, quoting: int, end: str) -> None:
    for seed in range(20):
        data = some_rows(seed)
        text = written(data, delimiter=sep, quoting=quoting, lineterminator=end)
        assert rows(read(text, columns=("p", "c"))) == data
        assert rows(read(text.removesuffix(end), columns=("p", "c"), sep=sep)) == data


@pytest.mark.filterwarnings("ignore:.*blank in front of their quotes")
def test_what_csv_reads_is_read_the_same_and_what_it_refuses_is_refused() -> None:
    pieces = ["a", "b", ",", ",", '"', '""', "\n", "\r\n", " ", "é", "a,b\n"]
    read_by_both = 0
    for seed in range(1500):
        rng = random.Random(seed)
        text = "p,c\n" + "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        try:
            found = list(csv.reader(io.StringIO(text, newline=""), strict=True))
            data = [row for row in found if len(row) > 1 or any(map(str.strip, row))][1:]
        except csv.Error:
            data = []
        if data and all(len(row) == 2 for row in data) and [""] not in found:
            assert rows(read(text, sep=",")) == data, text
            read_by_both += 1
        else:
            with pytest.raises(TaskError):
                read(text, sep=",")
    assert read_by_both > 100


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_quoted_tsv_is_read(quoting: int) -> None:
    for seed in range(20):
        data = some_rows(seed)
        text = written(data, delimiter="\t", quoting=quoting)
        assert rows(read(text, ".tsv")) == data


@pytest.mark.parametrize("text", [
    "a\tb\nHe said \"no\"\tx\n", 'a\tb\n"Left he.\tx\n', 'a\tb\n"A," he said.\tx\n"B"\ty\n',
    'a\tb\n5" wide\t6"\n"\t""\n',
])  # fmt: skip
def test_a_quote_is_a_letter_of_a_tsv_that_is_not_quoted(text: str) -> None:
    """As the GLUE tasks are read: no quoting at all."""
    plain = list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows(read(text, ".tsv")) == plain[1:]


def test_a_tsv_with_a_text_that_stands_in_quotes_says_what_they_are() -> None:
    with pytest.warns(UserWarning, match=r"1 fields stand in quotes.*part of the text"):
        assert rows(read('a\tb\nYes.\tx\n"No."\ty\n', ".tsv")) == [["Yes.", "x"], ['"No."', "y"]]


def test_values_are_as_they_are_written() -> None:
    text = "a,b\n 1.10 ,true\n007,NA\n2024-01-01T10:00:00+02:00,\n1e5,nan\n"
    assert rows(read(text)) == list(csv.reader(io.StringIO(text)))[1:]


def test_lines() -> None:
    """Blank ones are none; a quoted text may have some; ends of any kind."""
    assert rows(read("a,b\n\n1,2\n  \n3,4")) == [["1", "2"], ["3", "4"]]
    assert rows(read("a,b\r\n1,2\r\n\r\n3,4\r\n")) == [["1", "2"], ["3", "4"]]
    assert rows(read('a,b\r1,2\r"3\r3",4\r')) == [["1", "2"], ["3\r3", "4"]]
    assert rows(read('a,b\n"1\n\n1",2\n')) == [["1\n\n1", "2"]]
    assert rows(read('a,b\r\r\n1,2\r\r\n"3",4\r\r\n')) == [["1", "2"], ["3", "4"]]
    assert rows(read('a,b\r\n"x",y\r\nz,"w"\r\n')) == [["x", "y"], ["z", "w"]]


def test_a_field_longer_than_csv_takes_and_no_limit_moved() -> None:
    limit = csv.field_size_limit()
    long = "x" * (limit + 1)
    assert rows(read(f'a,b\n{long},"{long}"\n')) == [[long, long]]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\nx, y,3\n", r"row 2 \(line 3\) has 3 fields where the line of names has 2"),
        ("a,b\n1,2\n\n3\n", r"row 2 \(line 4\) has 1 field where.*has 2.*'3'; fill it up"),
        ('a,b\n"1\n\n",2\n3,4,5\n', r"row 2 \(line 5\) has 3 fields.*'3,4,5'; put a text with"),
        ("a,b\n1,2,\n3,4,\n", r"row 1 \(line 2\) has 3 fields"),
        ("a;b\n1;2\n3;4;5\n", r"row 2 \(line 3\) has 3 fields.*a semicolon between"),
        ('a,b\n1,"2\n3,4\n', r"row 1 \(line 2\) has a quote that is not closed.*'\"2"),
        ('a,b\n1,2\n"x"y,2\n', r"row 2 \(line 3\) has a quote that is not closed at the end"),
        ('a,b\n"He \\"x\\", then",2\n', r"row 1 \(line 2\) has a quote"),
        ("a,b\n", "has no rows"),
        ("\n  \n", "is empty"),
        ("a\nHello, world\n", r"row 1 \(line 2\) has 2 fields"),
    ],
)
def test_what_is_not_well_formed_is_named_by_its_row_and_line(text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_the_row_is_counted_from_the_first_where_there_are_no_names() -> None:
    with pytest.raises(TaskError, match=r"row 3 \(line 3\) has 1 field where the first row has 2"):
        read("a,b\nc,d\ne\n", columns=(0, 1))


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".csv", "p;c\na;1,5\nb;2,5\n"),
        (".csv", "p\tc\na\t1,5\nb\t2,5\n"),
        (".csv", "p|c\na|1,5\nb|2,5\n"),
        (".csv", "sep=;\r\np;c\r\na;1,5\r\nb;2,5\r\n"),
        (".csv", "sep=^\np^c\na^1,5\nb^2,5\n"),
        (".csv", 'p;c\n"a";"1,5"\n"b";"2,5"\n'),
        (".tsv", "p;c\na;1,5\nb;2,5\n"),
        (".txt", "p\tc\na\t1,5\nb\t2,5\n"),
        (".txt", "p;c\na;1,5\nb;2,5\n"),
        (".txt", 'p,c\na,"1,5"\nb,"2,5"\n'),
    ],
)
def test_the_separator_is_found(suffix: str, text: str) -> None:
    table = read(text, suffix, ("p", "c"))
    assert rows(table) == [["a", "1,5"], ["b", "2,5"]]
    assert table.column_names == ["p", "c"]


def test_blanks_before_a_quote_are_told() -> None:
    """RFC 4180: blanks are part of a field; csv reads it so."""
    text = 'p,c\n"a", "b"\nx, y "z"\n'
    with pytest.warns(UserWarning, match="1 fields have a blank in front of their quotes"):
        assert rows(read(text)) == list(csv.reader(io.StringIO(text)))[1:]
    with pytest.raises(TaskError, match=r"row 1 \(line 2\) has 3 fields"):
        read('p,c\n"a", "b, c"\n')


def test_the_line_that_excel_heeds_is_no_row() -> None:
    assert rows(read("sep=;\np;c\na;b\n", sep=";")) == [["a", "b"]]
    with pytest.raises(TaskError, match=r"row 1 \(line 3\)"):
        read("sep=;\np;c\na\n")


def test_a_separator_in_the_texts_is_none() -> None:
    assert rows(read("p,c\na; b,c; d\n")) == [["a; b", "c; d"]]
    assert rows(read('"p; q",c\na,b\n')) == [["a", "b"]]
    assert rows(read('"Frage, kurz";Antwort\nWie, was?;x\n')) == [["Wie, was?", "x"]]


@pytest.mark.parametrize("sep", ["||", " ", "::", "^", "\x01"])
def test_any_separator_may_be_named(sep: str) -> None:
    text = sep.join(["p", "c"]) + "\n" + sep.join(["a.b", f'"x{sep}""y"""']) + "\n"
    assert rows(read(text, sep=sep)) == [["a.b", f'x{sep}"y"']]
    assert rows(read("p\tc\n1\t2\n", sep="\\t")) == [["1", "2"]]


@pytest.mark.parametrize("sep", ["", '"', "\n"])
def test_what_cannot_separate(sep: str) -> None:
    with pytest.raises(TaskError, match="cannot separate fields"):
        read("p,c\n1,2\n", sep=sep)


def test_a_txt_without_a_separator_is_lines_of_text() -> None:
    table = read("\nOne, two.\r\nThree; four, five.\n  six\u2028seven\x0c\n\n", ".txt")
    assert table.column_names == ["text"]
    assert table["text"] == ["One, two.", "Three; four, five.", "  six\u2028seven\x0c"]
    parted = read("One,\r\ntwo.\r\n\r\n  Three;\nfour.\n \n\n\nFive.\n", ".txt")
    assert parted["text"] == ["One,\ntwo.", "  Three;\nfour.", "Five."]
    assert read("a\tb\nno tabs here\n", ".txt")["text"] == ["a\tb", "no tabs here"]
    with pytest.raises(TaskError, match="is empty"):
        read("\n", ".txt")


def test_names() -> None:
    """Unnamed columns are called as pandas calls them; of two alike neither can be meant."""
    table = read(",p,c\n0,a,b\n")
    assert table.column_names == ["Unnamed: 0", "p", "c"]
    table = read("p,id,c,id\na,1,b,2\n")
    assert rows(table) == [["a", "b"]]
    with pytest.raises(TaskError, match="several columns that are called 'id'"):
        table.need(("id",))
    with pytest.raises(TaskError, match="has no column 'c'; its columns are p, ' c'"):
        read("p, c\n1,2\n").need(("c",))


def test_columns_by_number() -> None:
    table = read("a,b\nc,d\n", columns=(1, 0))
    assert (table[0], table[1]) == (["a", "c"], ["b", "d"])


def _read_or_refused(text: str) -> Any:
    try:
        return dict(read_separated(text, "x", ".csv", (0, 1), ",").columns)
    except TaskError as error:
        return str(error)


def test_even_rows_are_read_at_once_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    pieces = ['"', ",", "\n", "a", "\r\n", '"",']
    texts = {"".join(rng.choices(pieces, k=k % 12)) for k in range(6000)}
    at_once = {text: _read_or_refused(text) for text in texts}
    monkeypatch.setattr(separated._File, "_even_columns", lambda file: None)
    assert at_once == {text: _read_or_refused(text) for text in texts}
    assert sum(isinstance(read, dict) for read in at_once.values()) > 100
