"""A model as the rank grid's cells, and the ranks that they can have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_lab.errors import ConfigError

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy, Site


OUTSIDE = "outside"
"""The label of the row below the layers."""


def grid_of(anatomy: Anatomy) -> dict[str, Any]:
    """Return a model's rows, roles and cells; the last row has what lies outside the layers."""
    outside = _outside(anatomy)
    return {
        "rows": [*(row.label for row in anatomy.rows), *([OUTSIDE] if outside else [])],
        "roles": [*anatomy.roles, *(role for role in outside if role not in anatomy.roles)],
        "cells": cells_of(anatomy),
    }


def cells_of(anatomy: Anatomy) -> list[dict[str, Any]]:
    """Return one dict a site.

    They are: row (index), role, site (its name), shape [out, in], max_rank; of routed experts that
    share a tensor their number too, as experts, and the sizes are those of one.
    """
    rows = [block.roles for block in anatomy.blocks]
    cells = []
    for index, row in enumerate([*rows, _outside(anatomy)]):
        for role in [*anatomy.roles, *(role for role in row if role not in anatomy.roles)]:
            site = row.get(role)
            if site is not None:
                shape = [site.out_features, site.in_features]
                cells.append(
                    {
                        "row": index,
                        "role": role,
                        "site": site.name,
                        "shape": shape,
                        "max_rank": min(shape),
                        **({"experts": site.experts} if site.experts > 1 else {}),
                    }
                )
    return cells


def _outside(anatomy: Anatomy) -> dict[str, Site]:
    """Return {column: site} of the linear layers outside the blocks, but for heads: a pooler."""
    heads = tuple(f"{head}." for head in anatomy.heads)
    found: dict[str, Site] = {}
    for site in anatomy.sites:
        plain = site.layer is None and site.kind == "linear"
        if plain and not f"{site.module}.".startswith(heads):
            found[site.name if site.role in found else site.role] = site
    return found


def first_of(anatomy: Anatomy, name: str) -> str:
    """Return the site that a cell stands for: of routed experts the first."""
    site = anatomy.by_name.get(name)
    return name if site is None else site.each[0].name


def cell_of(name: str) -> str:
    """Return the cell that a site is in: of one expert, "….down_proj[3]", that of them all."""
    return re.sub(r"\[\d+\]$", "", name)


def checked_ranks(ranks: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the ranks without zeros.

    Raises:
        ConfigError: a rank that these cells cannot have.
    """
    by_site = {cell["site"]: cell for cell in cells}
    for site, rank in ranks.items():
        if site not in by_site:
            near = difflib.get_close_matches(site, by_site, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see .cells for the matrices there are"
            raise ConfigError(f"ranks names {site!r}, which is no matrix of this model; {hint}")
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
            raise ConfigError(
                f"ranks[{site!r}] is {rank!r}; a rank is a whole number of at least 0"
            )
        if rank > (limit := by_site[site]["max_rank"]):
            d, k = by_site[site]["shape"]
            raise ConfigError(
                f"rank {rank} at {site} ({d} × {k}) is above min(out, in); use at most {limit}"
            )
    return {site: rank for site, rank in ranks.items() if rank}
