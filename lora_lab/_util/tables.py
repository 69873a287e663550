"""A table as people read it: in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, repr=False)
class Listing:
    """A small table; the columns named in `numbers` are set flush right, with even digits."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str] = frozenset()

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            padded = (
                cell.rjust(width) if name in self.numbers else cell.ljust(width)
                for name, cell, width in zip(self.header, cells, widths, strict=True)
            )
            return "  ".join(padded).rstrip()

        return "\n".join(map(line, (self.header, *self.rows)))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            aligned = (
                f'<{tag} style="text-align:{"right" if name in self.numbers else "left"};'
                f'font-variant-numeric:tabular-nums">{escape(cell)}</{tag}>'
                for name, cell in zip(self.header, cells, strict=True)
            )
            return f"<tr>{''.join(aligned)}</tr>"

        body = "".join(line(cells, "td") for cells in self.rows)
        return f"<table><thead>{line(self.header, 'th')}</thead><tbody>{body}</tbody></table>"
