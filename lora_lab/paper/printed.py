"""The tables of Hu et al. (2022), Zhang et al. (2023) and PEFT as they are printed, a file a table.

A file in `published/` has its title, its unit, notes on its marks and slips (where the paper
contradicts itself or the authors' code), an empty line, and then the table, tabs between cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import Any, Literal

from lora_lab._util.tables import Table
from lora_lab.errors import ConfigError

Paper = Literal["LoRA", "AdaLoRA", "PEFT"]
_PAPERS: dict[str, str] = {
    "LoRA": "Hu et al. (2022)",
    "AdaLoRA": "Zhang et al. (2023)",
    "PEFT": "PEFT's comparison of methods (2026)",
}
_SCALED = "METEOR", "TER", "ROUGE-L"
_TEXTS = frozenset(
    (
        "model",
        "method",
        "setting",
        "weights",
        "task",
        "data",
        "share",
        "optimizer",
        "kind",
        "metrics",
    )
)


@dataclass(frozen=True, repr=False)
class PublishedTable:
    """A table of a paper. Printing it shows it with its unit, its marks and its slips.

    Attributes:
        source: the paper and the table's number.
        title: what it shows.
        unit: of its numbers, with their spread where it stands in the caption.
        header: a name a column.
        rows: the cells as they are printed; a leading dot has a zero before it.
        notes: what its marks mean: ‡ stands by a number of parameters that does not come out of
            the paper's own formula.
        slips: where the paper contradicts itself, or the authors' code.
        own: rows of one's own, cells as in `rows`; see `table`.
    """

    source: str
    title: str
    unit: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    slips: tuple[str, ...] = ()
    own: tuple[tuple[str, ...], ...] = ()

    def column(self, name: str) -> tuple[float | None, ...]:
        """Return a column's numbers without spread and marks; None where a cell holds none.

        Raises:
            ConfigError: for a column that is not here.
        """
        if name not in self.header:
            raise ConfigError(f"no column is called {name!r}; there are {', '.join(self.header)}")
        place = self.header.index(name)
        return tuple(_number(row[place]) for row in self.rows)

    @property
    def shares(self) -> frozenset[str]:
        """The columns of METEOR, TER and ROUGE-L that go from 0 to 1, and not to 100."""
        scaled = (name for name in self.header if name.partition(" ")[0] in _SCALED)
        return frozenset(n for n in scaled if all(v is None or v <= 1 for v in self.column(n)))

    def to_table(self) -> Table:
        """Return the cells for people: one's own rows stand last, and say so in front."""
        numbers = frozenset(self.header) - _TEXTS
        if not self.own:
            return Table(self.header, self.rows, numbers)
        whose = [("published", row) for row in self.rows] + [("yours", row) for row in self.own]
        return Table(("", *self.header), tuple((who, *row) for who, row in whose), numbers)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            key: [list(row) if isinstance(row, tuple) else row for row in value]
            if isinstance(value, tuple)
            else value
            for key, value in vars(self).items()
        }

    def __str__(self) -> str:
        return "\n".join((self._heading(), "", str(self.to_table()), *self._below()))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        below = "".join(f"<div>{escape(line)}</div>" for line in self._below())
        return f"<div>{escape(self._heading())}</div>{self.to_table()._repr_html_()}{below}"

    def _heading(self) -> str:
        return f"{self.source}: {self.title} ({self.unit})"

    def _below(self) -> Iterator[str]:
        yield from self.notes
        yield from (f"slip: {slip}" for slip in self.slips)


def printed_table(paper: str, number: str) -> PublishedTable:
    """Return a table as it is printed.

    Args:
        paper: whose.
        number: the table's.

    Raises:
        ConfigError: for a table that is not here; the line names those that are.
    """
    if paper not in _PAPERS:
        raise ConfigError(f"paper={paper!r} is none of {', '.join(map(repr, _PAPERS))}")
    found = _tables()
    if (paper, number) not in found:
        known = ", ".join(n for p, n in sorted(found, key=lambda key: int(key[1])) if p == paper)
        raise ConfigError(f"table {number!r} of {paper} is not here; there are {known}")
    return found[paper, number]


@cache
def _tables() -> dict[tuple[str, str], PublishedTable]:
    folder = resources.files("lora_lab.paper") / "published"
    papers = {name.lower(): name for name in _PAPERS}
    found = {}
    for file in folder.iterdir():
        if file.name.endswith(".tsv"):
            name, _, number = file.name.removesuffix(".tsv").partition("-")
            text = file.read_text(encoding="utf-8")
            found[papers[name], number] = _read(text, f"{_PAPERS[papers[name]]}, table {number}")
    return found


def _read(text: str, source: str) -> PublishedTable:
    head, _, body = text.partition("\n\n")
    told = [line.partition(": ")[::2] for line in head.splitlines()]

    def lines(name: str) -> tuple[str, ...]:
        return tuple(value for key, value in told if key == name)

    header, *rows = (tuple(line.split("\t")) for line in body.splitlines())
    (title,), (unit,) = lines("title"), lines("unit")
    return PublishedTable(source, title, unit, header, tuple(rows), lines("note"), lines("slip"))


def _number(cell: str) -> float | None:
    first = cell.split(" ")[0].rstrip("M%*†‡").replace(",", "")
    try:
        return float(first)
    except ValueError:
        return None
