"""A run's spectra laid out as maps, layer × role, one for every step that it kept."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from lora_lab import spectra
from lora_lab.anatomy.blocks import cells
from lora_lab.runs.history import RecordedSite, SpectraHistory


@dataclass(frozen=True)
class StepMaps:
    """What ΔW is at every cell of the grid, at every step kept: maps that move with training.

    Attributes:
        roles: the rows, in the order in which they first come.
        layers: the columns: "0", "1" …, or "enc 0", "dec 0" ….
        steps: (S,) int32, optimizer steps, ascending.
        effective_ranks: (S, roles, layers) float32, exp of the entropy of σ/Σσ; 0 for a zero ΔW,
            NaN where nothing adapts.
        relative_sizes: (S, roles, layers) float32, ‖ΔW‖_F/‖W₀‖_F; NaN where nothing adapts or
            W₀ is zero.
        ranks: (roles, layers) int32, the number of singular values; 0 where nothing adapts.
    """

    roles: tuple[str, ...]
    layers: tuple[str, ...]
    steps: np.ndarray
    effective_ranks: np.ndarray
    relative_sizes: np.ndarray
    ranks: np.ndarray


def step_maps(history: SpectraHistory) -> StepMaps:
    """Lay a run's effective ranks and relative sizes out as role × layer, step by step.

    Sites outside the layers (a pooler, a classifier) have no cell and are left out.
    """
    grid = cells(history.sites)
    roles = list(dict.fromkeys(role for _, role in grid))
    rows = list(dict.fromkeys(row for row, _ in grid))

    shape = len(history.steps), len(roles), len(rows)
    effective_ranks = np.full(shape, np.nan, np.float32)
    relative_sizes = np.full(shape, np.nan, np.float32)
    ranks = np.zeros(shape[1:], np.int32)
    same: defaultdict[int, dict[tuple[int, int], RecordedSite]] = defaultdict(dict)
    for (row, role), site in grid.items():
        same[site.singular_values][roles.index(role), rows.index(row)] = site
    for count, placed in same.items():
        sites = placed.values()
        y, x = np.array(list(placed)).T
        s = np.stack([history.values[:, history.columns[site.name]] for site in sites], axis=1)
        norms = np.array([site.weight_norm or np.nan for site in sites], np.float32)
        effective_ranks[:, y, x] = spectra.effective_rank(s)
        relative_sizes[:, y, x] = spectra.frobenius(s) / norms
        ranks[y, x] = count
    labels = tuple(row.label for row in rows)
    return StepMaps(tuple(roles), labels, history.steps, effective_ranks, relative_sizes, ranks)
