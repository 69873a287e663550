"""Effective ranks as a grid, layer × role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lora_lab import spectra
from lora_lab.anatomy.blocks import Placed, cells


@dataclass(frozen=True)
class RankMap:
    """Effective ranks as a grid: one row a role, one column a layer; NaN where nothing adapts."""

    roles: tuple[str, ...]
    layers: tuple[str, ...]  # "0", "1" …, or "enc 0", "dec 0" …
    values: np.ndarray  # (roles, layers) float32
    ranks: np.ndarray  # (roles, layers) int32: the number of singular values; 0 where none


def rank_map(sites: Iterable[Placed], singular_values: Mapping[str, np.ndarray]) -> RankMap:
    """Lay effective ranks out as role × layer, in the order in which roles and layers first come.

    Args:
        sites: `Anatomy.grid_sites` for the whole model, or `Analysis.rows` for an adapter's own.
        singular_values: {site name: σ}, as `adapter_spectra` or a `Snapshot` gives it.

    Raises:
        ModelError: two sites would have one cell.
    """
    grid = cells(sites)
    roles = list(dict.fromkeys(role for _, role in grid))
    rows = list(dict.fromkeys(row for row, _ in grid))
    values = np.full((len(roles), len(rows)), np.nan, np.float32)
    ranks = np.zeros((len(roles), len(rows)), np.int32)
    for (row, role), site in grid.items():
        s = singular_values.get(site.name)
        if s is not None:
            at = roles.index(role), rows.index(row)
            values[at], ranks[at] = spectra.effective_rank(s), len(s)
    return RankMap(tuple(roles), tuple(row.label for row in rows), values, ranks)
