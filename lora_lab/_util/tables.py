"""A table as people read it: in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lora_lab.errors import one_line
from lora_lab.redaction import redacted_values


@dataclass(frozen=True, repr=False)
class Table:
    """A small table. The first column names its rows.

    Attributes:
        header: a name a column.
        rows: texts.
        numbers: the columns that are set flush right, with even digits.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str] = frozenset()

    def __str__(self) -> str:
        rows = self._shown()
        widths = [max(map(len, column)) for column in zip(self.header, *rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            padded = (
                cell.rjust(width) if name in self.numbers else cell.ljust(width)
                for name, cell, width in zip(self.header, cells, widths, strict=True)
            )
            return "  ".join(padded).rstrip()

        return "\n".join(map(line, (self.header, *rows)))

    __repr__ = __str__

    def _shown(self) -> list[tuple[str, ...]]:
        """Return the rows, a cell on one line, without secrets."""
        rows: list[tuple[str, ...]] = redacted_values(
            [tuple(map(one_line, row)) for row in self.rows]
        )
        return rows

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], *tags: str) -> str:
            texts = zip(self.header, map(escape, cells), strict=True)
            aligned = (
                f'<{tag} style="text-align:{"right" if name in self.numbers else "left"}">{text}'
                f"</{tag.partition(' ')[0]}>"
                for tag, (name, text) in zip(tags, texts, strict=True)
            )
            return f"<tr>{''.join(aligned)}</tr>"

        columns = len(self.header)
        head = line(self.header, *['th scope="col"'] * columns)
        body = (line(cells, 'th scope="row"', *["td"] * (columns - 1)) for cells in self._shown())
        return (
            '<table style="font-variant-numeric:tabular-nums">'
            f"<thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"
        )
