"""A model as the rank grid's cells, and the ranks that they can have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_lab.errors import ConfigError

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def cells_of(anatomy: Anatomy) -> list[dict[str, Any]]:
    """Return one dict a matrix: row (index), role, site (its name), shape [out, in], max_rank."""
    cells = []
    for index, block in enumerate(anatomy.blocks):
        for role in anatomy.roles:
            site = block.roles.get(role)
            if site is not None:
                shape = [site.out_features, site.in_features]
                cells.append(
                    {
                        "row": index,
                        "role": role,
                        "site": site.name,
                        "shape": shape,
                        "max_rank": min(shape),
                    }
                )
    return cells


def checked_ranks(ranks: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the ranks without zeros.

    Raises:
        ConfigError: a rank that these cells cannot have.
    """
    by_site = {cell["site"]: cell for cell in cells}
    for site, rank in ranks.items():
        if site not in by_site:
            near = difflib.get_close_matches(site, by_site, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see .cells for the sites there are"
            raise ConfigError(f"ranks names {site!r}, which is no site of this model; {hint}")
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
