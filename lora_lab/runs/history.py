"""A run's spectra over its steps, read back from its folder, while it is being written or after.

The files are the run's `sites.json` and `spectra.npy`; `lora_lab.runs.spectra_log` says how they
are made. Neither the model nor the adapter is needed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np
from msgspec import Meta

from lora_lab._util.files import user_path
from lora_lab._util.json_files import read_json
from lora_lab.anatomy.blocks import cells
from lora_lab.errors import ModelError, RunError, as_cause
from lora_lab.runs.schema import Count, Name, Rate, Whole
from lora_lab.runs.spectra_log import SITES_FILE, SPECTRA_FILE, read_log


@dataclass(frozen=True)
class RecordedSite:
    """One adapted matrix, as a run's `sites.json` tells of it.

    Attributes:
        name, stack, layer, role: its place in the grid.
        out_features, in_features: the shape of W₀ and ΔW.
        r: the rank of its factors.
        singular_values: how many the run keeps of it, min(r, out, in).
        weight_norm: ‖W₀‖_F; 0 where it is packed, and could not be read.
        trainable: numbers in A and B.
    """

    name: Name
    stack: Name
    layer: Annotated[int, Meta(ge=0, le=2**20)] | None
    role: Name
    out_features: Count
    in_features: Count
    r: Whole
    singular_values: Annotated[int, Meta(ge=0, le=2**20)]
    weight_norm: Rate
    trainable: Whole


class SitesFile(TypedDict):
    """sites.json: the matrices, in the adapter's order."""

    sites: list[RecordedSite]


@dataclass(frozen=True)
class SpectraHistory:
    """The singular values of ΔW at every site, at the steps that a run kept.

    Attributes:
        sites: in the adapter's order.
        steps: (S,) int32, optimizer steps, ascending; the first is 0, before training.
        values: (S, m₁ + m₂ + …) float32; a row is every site's σ, one site after another.
    """

    sites: tuple[RecordedSite, ...]
    steps: np.ndarray
    values: np.ndarray

    @cached_property
    def columns(self) -> dict[str, slice]:
        """Where each site's σ stand in a row of `values`."""
        ends = np.cumsum([site.singular_values for site in self.sites]).tolist()
        return {
            site.name: slice(end - site.singular_values, end)
            for site, end in zip(self.sites, ends, strict=True)
        }

    @property
    def weight_norms(self) -> dict[str, float]:
        """‖W₀‖_F of every site."""
        return {site.name: site.weight_norm for site in self.sites}

    def singular_values(self, step_index: int) -> dict[str, np.ndarray]:
        """Return {site name: (m,) float32, descending} at `steps[step_index]`."""
        row = self.values[step_index]
        return {name: row[columns] for name, columns in self.columns.items()}


def read_history(run_folder: str | os.PathLike[str]) -> SpectraHistory:
    """Read the spectra that a run has kept so far.

    The run may be training meanwhile, or have been killed: what is on disk whole is returned.

    Raises:
        RunError: no spectra there (yet), or files that do not belong together.
    """
    folder = user_path(run_folder, RunError).resolve()
    if not (folder / SITES_FILE).is_file() or not (folder / SPECTRA_FILE).is_file():
        raise RunError(
            f"{folder} holds no spectra: it is no run's folder, or the run has not begun to train "
            "(or an older LoRA Lab made it); train again to get some"
        )
    sites = read_sites(folder)
    steps, values = read_log(folder / SPECTRA_FILE)
    if values.shape[1] != sum(site.singular_values for site in sites):
        raise RunError(
            f"{folder}: {SPECTRA_FILE} and {SITES_FILE} do not belong together; "
            "copy the run's folder again, whole"
        )
    return SpectraHistory(sites, steps, values)


def read_sites(run_folder: Path) -> tuple[RecordedSite, ...]:
    """Return the matrices of a run's sites.json.

    Raises:
        RunError: it is not there, or damaged.
    """
    path = run_folder / SITES_FILE
    try:
        sites = tuple(read_json(path, SitesFile)["sites"])
        if len({site.name for site in sites}) < len(sites):
            raise ValueError("a matrix stands twice")
        cells(sites)
        return sites
    except (ModelError, OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}; copy the run's folder again") from as_cause(
            error
        )
