"""An Anatomy as people read it: a plain table, and the same as HTML."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from lora_lab._util.format import plural

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy, Row, Site

_MOST_COLUMNS = 16  # a mixture of experts can have hundreds


def as_text(anatomy: Anatomy) -> str:
    """Return a table of shapes, (out × in), equal neighbouring layers on one line."""
    head, *body = _table(anatomy)
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip()
        for cells in (head, *body)
    ]
    return "\n".join([_title(anatomy), *(lines if body else []), *_notes(anatomy)])


def as_html(anatomy: Anatomy) -> str:
    """Return the same table as HTML, without scripts and with every name escaped."""
    head, *body = _table(anatomy)
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{escape(shape)}</td>" for shape in shapes)
        + "</tr>"
        for label, *shapes in body
    )
    table = f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>" if body else ""
    notes = "".join(f"<div>{escape(note)}</div>" for note in _notes(anatomy))
    return f"<div><div>{escape(_title(anatomy))}</div>{table}{notes}</div>"


def _table(anatomy: Anatomy) -> list[list[str]]:
    roles = anatomy.roles[:_MOST_COLUMNS]

    def shapes(row: Row) -> tuple[str, ...]:
        return tuple(_shape(anatomy.cell(row, role)) for role in roles)

    lines = [["layer", *roles]]
    for (_, cells), group in groupby(anatomy.rows, key=lambda row: (row.stack, shapes(row))):
        first, *rest = group
        lines.append([f"{first.label}–{rest[-1].layer}" if rest else first.label, *cells])
    return lines


def _shape(site: Site | None) -> str:
    return "·" if site is None else f"{site.out_features}×{site.in_features}"


def _title(anatomy: Anatomy) -> str:
    shape = anatomy.shape
    parts = [shape.model_type]
    if anatomy.rows:
        parts.append(plural(len(anatomy.rows), "layer"))
    if shape.hidden_size is not None:
        parts.append(f"hidden {shape.hidden_size}")
    if shape.num_heads is not None:
        grouped = shape.num_kv_heads not in (None, shape.num_heads)
        of = f" of {shape.head_dim}" if shape.head_dim else ""
        kv = f" ({shape.num_kv_heads} for k and v)" if grouped else ""
        parts.append(f"{plural(shape.num_heads, 'head')}{of}{kv}")
    parts.append(plural(anatomy.parameters, "parameter"))
    parts.append(plural(len(anatomy.sites), "site"))
    return " · ".join(parts)


def _notes(anatomy: Anatomy) -> list[str]:
    notes = []
    if len(anatomy.roles) > _MOST_COLUMNS:
        more = plural(len(anatomy.roles) - _MOST_COLUMNS, "more role")
        notes.append(f"and {more}; .roles has them all")
    outside = [f"{s.role} {_shape(s)}" for s in anatomy.sites if s.layer is None]
    if len(outside) > _MOST_COLUMNS:
        outside[_MOST_COLUMNS:] = [f"and {len(outside) - _MOST_COLUMNS} more"]
    if outside:
        notes.append(f"outside the layers: {', '.join(outside)}")
    return notes
