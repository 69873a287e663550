"""WebNLG: its files, and its domains: of its test rows some are of categories that are trained on.

Which these are is not the same in all releases: Athlete and Politician were kept for the test of
2017, and are trained on since.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from lora_lab.errors import TaskError
from lora_lab.tasks.files import XML
from lora_lab.tasks.table import Table

SEEN = frozenset(
    [
        *("Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food"),
        *("Monument", "SportsTeam", "University", "WrittenWork"),
    ]
)
"""The categories of the challenge's training rows (Gardent et al., 2017); a file may lack some."""
_ENDS = {"_seen": True, "_unseen": False}
# Test files beside the one that has all rows with their texts.
_OTHERS = ("semantic-parsing", "without", "no_lex", "unseen")


def files_in(folder: Path) -> list[Path]:
    """Return the XML files of a part, "train/1triples/Airport.xml": of test files the whole one.

    Beside "testdata_with_lex.xml" of 2017 there are "testdata_unseen_with_lex.xml" and one without
    texts, beside "rdf-to-text-generation-test-data-with-refs-en.xml" of 3.0 those of another task.
    """
    files = sorted(path for path in folder.rglob(f"*{XML}") if path.is_file())
    whole = [path for path in files if not any(word in path.stem for word in _OTHERS)]
    return whole or files


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

    Seen are the categories of 2017, and those of the training rows.

    Raises:
        TaskError: rows without a category, or none of that domain.
    """
    if not domains:
        return dict(parts)
    trained = parts.get("training")
    known = SEEN
    if trained is not None and trained.has("category"):
        known |= set(trained["category"])
    return {p: _of(t, domains[p], known) if p in domains else t for p, t in parts.items()}


def _of(table: Table, seen: bool, known: Collection[str]) -> Table:
    word = "seen" if seen else "unseen"
    table.need(["category"])
    places = [at for at, name in enumerate(table["category"]) if (name in known) == seen]
    if not places:
        raise TaskError(f"{table.source} has no row of WebNLG's {word} categories")
    columns = {name: [values[at] for at in places] for name, values in table.columns.items()}
    return Table(columns, f"{table.source} ({word} categories)")
