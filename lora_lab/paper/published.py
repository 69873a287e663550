"""A published table, with one's own runs beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_lab.paper.own_rows import own_rows
from lora_lab.paper.printed import Paper, PublishedTable, printed_table

if TYPE_CHECKING:
    from lora_lab.paper.things import Comparable


def table(
    number: int | str, paper: Paper = "LoRA", *, compare: Comparable | None = None
) -> PublishedTable:
    """Return a table of the LoRA or the AdaLoRA paper, or of PEFT, as it is printed.

    Args:
        number: the table's.
        paper: "LoRA" (Hu et al., ICLR 2022), "AdaLoRA" (Zhang et al., ICLR 2023), or "PEFT": the
            runs that its repository has of each of its methods, on one model and task (table 1).
        compare: a run, a sweep, what comparisons return, another table, or several of these, by
            themselves, id, folder or name (see `side_by_side`), whose scores then stand beside the
            published ones, a row a setting: the mean ± standard deviation over its seeds.

    Raises:
        ConfigError: for a table that is not here, and what cannot stand beside it.
        RunError: none of the runs has ended with a score.
    """
    published = printed_table(paper, str(number).strip().lower().removeprefix("table").strip())
    if compare is None:
        return published
    header, own = own_rows(published, compare)
    more = len(header) - len(published.header)
    wide = tuple((*row, *[""] * more) for row in published.rows)
    return replace(published, header=header, rows=wide, own=own)
