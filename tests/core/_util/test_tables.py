"""A table's cells are one line each, whatever stands in them."""

import pytest

from lora_lab._util.tables import Table
from tests.core.test_errors import HOSTILE, steers


def test_a_cell_neither_steers_a_terminal_nor_breaks_its_row() -> None:
    table = Table(("run", "loss"), ((HOSTILE, "1"), ("a\nb\tc", "2")), frozenset({"loss"}))
    text = str(table)
    assert not steers(text)
    header, first, second = text.splitlines()
    assert len(header) == len(first) == len(second)
    assert second.startswith("a\\nb\\tc")
    assert not steers(table._repr_html_())


def test_no_secret_is_in_a_table_and_numbers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "pa55<word>")
    table = Table(("run", "loss"), (("on pa55<word>", "2.5"),))
    assert str(table).splitlines()[1].split() == ["on", "[redacted]", "2.5"]
    assert "<td" in table._repr_html_()
    assert "pa55" not in table._repr_html_()
