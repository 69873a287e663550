"""A table's cells are one line each, whatever stands in them."""

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
