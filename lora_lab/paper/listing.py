"""Published numbers beside counted ones, as people read them: in a terminal and in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab._util.tables import Table
from lora_lab.errors import ConfigError
from lora_lab.paper.claims import claims
from lora_lab.paper.rows import PublishedRow
from lora_lab.paper.side_by_side import side_by_side
from lora_lab.paper.tables import TABLE_7, TABLES

if TYPE_CHECKING:
    from lora_lab.paper.things import Comparable


def list_table(name: str, compare: Comparable | None = None) -> Table:
    """Return a table's rows, each with our count and the verdict.

    Args:
        name: such as "Table 15".
        compare: what to set beside it, any run, sweep or other table: then as `side_by_side` has
            them.

    Raises:
        ConfigError: for a table that is not here.
    """
    rows = [row for row in TABLES if row.table == name]
    if not rows:
        known = ", ".join(dict.fromkeys(row.table for row in TABLES))
        raise ConfigError(f"no table is called {name!r}; use one of {known}")
    if compare is not None:
        return side_by_side(name, compare)
    scores = tuple(rows[0].scores)
    several = len({row.model for row in rows}) > 1
    header = ("method", "setting", *scores, "printed", "counted", "verdict", "note")
    return Table(
        ("model", *header) if several else header,
        tuple((row.model, *_cells(row)) if several else _cells(row) for row in rows),
        frozenset({*scores, "printed", "counted"}),
    )


def _cells(row: PublishedRow) -> tuple[str, ...]:
    shown = (f"{score:.1f}" for score in row.scores.values())
    numbers = (*shown, f"{row.printed}M", f"{row.count / 1e6:,.3f}M")
    return (row.method, row.setting, *numbers, row.verdict, row.note)


def list_claims(model: str) -> Table:
    """Return what the text says of a model, each with the formula that gives it."""
    return Table(
        ("printed", "of", "formula", "gives", "verdict", "note"),
        tuple((c.printed, c.what, c.formula, c.shown, c.verdict, c.note) for c in claims(model)),
        frozenset({"printed", "gives"}),
    )


def list_amplification() -> Table:
    """Return table 7 with the level of unrelated directions beside its random column."""
    return Table(
        ("r", "‖ΔW_q‖", "along ΔW_q", "along W_q", "random", "‖W_q‖·r/d", "amplification"),
        tuple(
            (
                str(row.r),
                f"{row.delta_norm:.2f}",
                f"{row.along_delta:.2f}",
                f"{row.along_own:.2f}",
                f"{row.along_random:.2f}",
                f"{row.expected_random:.4f}",
                f"{row.delta_norm / row.along_delta:.2f}",
            )
            for row in TABLE_7
        ),
        frozenset({"‖ΔW_q‖", "along ΔW_q", "along W_q", "random", "‖W_q‖·r/d", "amplification"}),
    )
