"""WebNLG's domains: of its test rows one half is of categories that are trained on, one is not."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lora_lab.errors import TaskError
from lora_lab.tasks.table import Table

SEEN = frozenset(
    [
        *("Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food"),
        *("Monument", "SportsTeam", "University", "WrittenWork"),
    ]
)
"""The categories of the challenge's training rows (Gardent et al., 2017)."""
_ENDS = {"_seen": True, "_unseen": False}


def whole_splits(
    given: Mapping[str, str], there: Collection[str]
) -> tuple[dict[str, str], dict[str, bool]]:
    """Return the splits that are meant, and of which parts the seen (or else the unseen) rows.

    Args:
        given: {"test": "test_unseen"}, as somebody has named them.
        there: the splits that there are.
    """
    splits, domains = dict(given), {}
    for part, name in given.items():
        for end, seen in _ENDS.items():
            if name not in there and name.removesuffix(end) in there:
                splits[part], domains[part] = name.removesuffix(end), seen
    return splits, domains


def of_domains(parts: Mapping[str, Table], domains: Mapping[str, bool]) -> dict[str, Table]:
    """Return the parts, of some only the rows whose category is seen, or is not.

    Raises:
        TaskError: rows without a category, or none of that domain.
    """
    return {p: _of(t, domains[p]) if p in domains else t for p, t in parts.items()}


def _of(table: Table, seen: bool) -> Table:
    word = "seen" if seen else "unseen"
    table.need(["category"])
    places = [at for at, name in enumerate(table["category"]) if (name in SEEN) == seen]
    if not places:
        raise TaskError(f"{table.source} has no row of WebNLG's {word} categories")
    columns = {name: [values[at] for at in places] for name, values in table.columns.items()}
    return Table(columns, f"{table.source} ({word} categories)")
