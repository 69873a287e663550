"""φ maps: which directions two updates of one matrix share, and which an update shares with W₀.

Source: Hu et al. (ICLR 2022), section 7.2, equation 4; figures 3, 4 and 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lora_lab import spectra
from lora_lab._util.arrays import computable, to_numpy
from lora_lab.analysis.leading import BaseWeight
from lora_lab.analysis.sites import AdaptedSite, naming
from lora_lab.errors import AdapterError, ConfigError

Side = Literal["input", "output"]


@dataclass(frozen=True)
class OverlapMap:
    """φ(i, j) of two matrices' leading subspaces: the mean cos² of their principal angles.

    Attributes:
        site: the site's name.
        first: what the rows are: "r=8", "seed 1", "ΔW" …
        second: what the columns are, likewise; "W₀" for the base weight.
        side: "input" for right singular vectors (the paper's choice), "output" for left ones.
        values: (i_max, j_max) float32, φ(i, j) in [0, 1] at [i−1, j−1].
        random: (i_max, j_max) E φ(i, j) of unrelated subspaces, max(i, j)/n.
        spread: (i_max, j_max) the standard deviation of φ there.
        n: the dimension of the space that the directions live in.
        note: why they may be alike beyond what was learned, such as one seed; "" of others.
    """

    site: str
    first: str
    second: str
    side: Side
    values: np.ndarray
    random: np.ndarray
    spread: np.ndarray
    n: int
    note: str = ""

    @property
    def excess(self) -> np.ndarray:
        """(φ − random)/(1 − random): 0 for unrelated subspaces, 1 where one holds the other."""
        return spectra.excess_overlap(self.values, self.random)


def compare(
    first: AdaptedSite,
    second: AdaptedSite,
    *,
    labels: tuple[str, str],
    side: Side = "input",
    rank_by: Literal["update", "factor"] = "update",
    most: int = 64,
) -> OverlapMap:
    """Return φ between two updates of one matrix: two ranks, two seeds, two steps.

    Args:
        first, second: the same site of two adapters, which may have different ranks.
        labels: what to call them, such as ("r=8", "r=64").
        side: "input" compares right singular vectors, "output" left ones.
        rank_by: what orders the directions: "update", ΔW's own singular values, or "factor", those
            of A (of B for "output") alone, as the paper has it. Both span the same space; its
            leading parts differ.
        most: directions of each at most; only those that ΔW really has are taken.

    Raises:
        AdapterError: two different matrices, a ΔW that is zero, or NaN in one.
        ConfigError: a setting that is not one of these.
    """
    _check_settings(side, rank_by, most)
    name, other = first.site.name, second.site.name
    shapes = [tuple(s.update.shape) for s in (first, second)]
    if name != other or shapes[0] != shapes[1]:
        sizes = [f"{d} × {k}" for d, k in shapes]
        raise AdapterError(
            f"{name} ({sizes[0]}) and {other} ({sizes[1]}) are not the same matrix; "
            "compare one matrix of two adapters of the same base model"
        )
    directions = []
    for site, label in zip((first, second), labels, strict=True):
        with naming(f"{name} ({label})"):
            directions.append(_directions(site, side, rank_by, most))
    return _overlap_map(name, labels, side, *directions)


def compare_with_base(
    site: AdaptedSite, W: Any, *, side: Side = "input", most: int = 64
) -> OverlapMap:
    """Return φ between an update and W₀: does ΔW strengthen what W₀ is strong in (figure 8)?

    Args:
        site: the update; the rows, "ΔW".
        W: W₀ (out, in), NumPy or torch, any dtype and device; the columns, "W₀". Its strongest
            directions are kept, see `leading`.
        side: "input" compares right singular vectors, "output" left ones.
        most: directions of each at most.

    Raises:
        AdapterError: an update that does not fit W₀, is zero, or holds NaN.
        ModelError: NaN in W₀.
        ConfigError: a setting that is not one of these.
    """
    _check_settings(side, "update", most)
    name = site.site.name
    with naming(name):
        site.update.check_fits(W)
        update = _directions(site, side, "update", most)
        U, _, Vt = BaseWeight(W).leading(most)
    return _overlap_map(name, ("ΔW", "W₀"), side, update, Vt.T if side == "input" else U)


def _overlap_map(
    name: str, labels: tuple[str, str], side: Side, first: np.ndarray, second: np.ndarray
) -> OverlapMap:
    n, i_max, j_max = len(first), first.shape[1], second.shape[1]
    values = spectra.subspace_overlap(first, second)
    return OverlapMap(
        site=name,
        first=labels[0],
        second=labels[1],
        side=side,
        # Rounding can carry φ of a subspace with itself past 1.
        values=np.clip(values, 0, 1).astype(np.float32),
        random=spectra.random_subspace_overlap(i_max, j_max, n),
        spread=spectra.random_subspace_spread(i_max, j_max, n),
        n=n,
    )


def _directions(site: AdaptedSite, side: Side, rank_by: str, most: int) -> np.ndarray:
    """Return the directions that are really there, (n, count), strongest first."""
    update = site.update
    if rank_by == "factor":
        factor = computable(update.A).mT if side == "input" else computable(update.B)
        U, s, _ = spectra.singular_triplets(np.eye(factor.shape[-1]), to_numpy(factor))
    else:
        left, s, right = update.triplets()
        U = right.mT if side == "input" else left
    there = int(spectra.numerical_rank(s))
    if there == 0:
        raise AdapterError("ΔW is zero, so it has no directions yet; train a few steps first")
    return to_numpy(U)[:, : min(there, most)]


def _check_settings(side: str, rank_by: str, most: int) -> None:
    if side not in ("input", "output"):
        raise ConfigError(f"side is {side!r}; use 'input' or 'output'")
    if rank_by not in ("update", "factor"):
        raise ConfigError(f"rank_by is {rank_by!r}; use 'update' or 'factor'")
    if most < 1:
        raise ConfigError(f"most is {most}; at least 1 direction is needed")
