"""An Anatomy as people read it: a plain table, and the same as HTML."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from lora_lab._util.format import plural
from lora_lab._util.tables import Table

if TYPE_CHECKING:
    from lora_lab.anatomy.blocks import Block
    from lora_lab.anatomy.types import Anatomy, Site

_MOST_COLUMNS = 16  # a mixture of experts can have hundreds


def as_text(anatomy: Anatomy) -> str:
    """Return a table of shapes, (out × in), equal neighboring layers on one line."""
    lines = [str(_table(anatomy))] if anatomy.rows else []
    return "\n".join([_title(anatomy), *lines, *_notes(anatomy)])


def as_html(anatomy: Anatomy) -> str:
    """Return the same table as HTML, without scripts and with every name escaped."""
    table = _table(anatomy)._repr_html_() if anatomy.rows else ""
    notes = "".join(f"<div>{escape(note)}</div>" for note in _notes(anatomy))
    return f"<div><div>{escape(_title(anatomy))}</div>{table}{notes}</div>"


def _table(anatomy: Anatomy) -> Table:
    roles = anatomy.roles[:_MOST_COLUMNS]

    def shapes(block: Block) -> tuple[str, ...]:
        return tuple(_shape(block.roles.get(role)) for role in roles)

    lines = []
    for (_, cells), group in groupby(anatomy.blocks, key=lambda b: (b.row.stack, shapes(b))):
        first, *rest = (block.row for block in group)
        lines.append((f"{first.label}–{rest[-1].layer}" if rest else first.label, *cells))
    return Table(("layer", *roles), tuple(lines), frozenset(roles))


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
    parts.append(plural(len(anatomy.sites), "matrix", "matrices"))
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
