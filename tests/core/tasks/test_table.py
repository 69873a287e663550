"""Tables: their columns as texts, and several as one."""

from __future__ import annotations

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks.table import LazyColumn, Table, joined

FIRST = Table({"p": ["a", None], "n": ["1.0", "2.0"]}, "first", frozenset({"n"}))
SECOND = Table({"p": [" b\n"], "extra": ["x"]}, "second", ambiguous=frozenset({"id"}))


def test_texts_are_as_they_stand() -> None:
    assert FIRST.texts("p") == ["a", ""]
    assert SECOND.texts("p") == [" b\n"]
    with pytest.raises(TaskError, match=r"d: column 'p' holds dicts, not text; .* as 'p\.b'$"):
        Table({"p": ["a", {"b": 1}]}, "d").texts("p")
    lists = Table({"p": [["a", "c"], ["b"]]}, "d")
    with pytest.raises(TaskError, match=r"'p' holds lists, not text; 'p\.0' is the first one"):
        lists.texts("p")
    assert lists.texts("p.0") == ["a", "b"], "as the message says"
    assert Table({"0": ["a"]}, "d").texts(0) == ["a"]


def test_several_tables_are_one() -> None:
    table = joined([FIRST, SECOND], "both")
    assert table.column_names == ["p", "n", "extra"]
    assert {name: list(table[name]) for name in table.columns} == {
        "p": ["a", None, " b\n"],
        "n": ["1.0", "2.0", None],
        "extra": [None, None, "x"],
    }
    assert (len(table), table.floats, table.ambiguous) == (3, {"n"}, {"id"})
    assert [table.place(number) for number in (1, 2, 3)] == [
        "first: row 1", "first: row 2", "second: row 1",
    ]  # fmt: skip
    with pytest.raises(TaskError, match="second has no column 'n'; its columns are p, extra"):
        table.need(["p", "n"])
    with pytest.raises(TaskError, match="second has several columns that are called 'id'"):
        joined([SECOND, SECOND], "both").need(["id"])
    assert joined([FIRST], "one") is FIRST


def test_a_row_that_is_no_text_is_named_by_its_own_table() -> None:
    spoilt = Table({"p": ["b", "\udc80"]}, "spoilt")
    with pytest.raises(TaskError, match=r"spoilt: row 2 has half a letter"):
        joined([FIRST, spoilt], "both").texts("p")


def test_a_lazy_column_is_made_once_and_when_it_is_looked_at() -> None:
    made: list[int] = []

    def make() -> list[str]:
        made.append(1)
        return ["a", "b"]

    column = LazyColumn(2, make)
    assert (len(column), made) == (2, [])
    assert (list(column), column[1], column[:1], "b" in column) == (["a", "b"], "b", ["a"], True)
    assert made == [1]
