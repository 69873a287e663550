"""The figures of one run in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_lab._util.format import format_bytes, format_change, format_number, plural
from lora_lab.analysis.rank_map import RankMap
from lora_lab.analysis.site_view import SiteView

if TYPE_CHECKING:
    from lora_lab.budget.costs import Budget
    from lora_lab.tasks.look import Look


def summary(view: SiteView) -> str:
    """Say in words what the spectrum and the overlap map of a site show."""
    m = len(view.singular_values)
    if not view.frobenius_norm:
        return f"{view.site}, step {view.step}: ΔW is zero, nothing is learned yet."
    row, column = np.unravel_index(int(np.nanargmax(view.overlap)), view.overlap.shape)
    return (
        f"{view.site}, step {view.step}: effective rank {view.effective_rank:.2f} of {m}, "
        f"largest singular value {format_number(float(view.singular_values[0]))}, "
        f"Frobenius norm {format_number(view.frobenius_norm)}. Largest overlap with W₀: "
        f"{format_number(float(view.overlap[row, column]))} between direction {row + 1} of ΔW and "
        f"{column + 1} of W₀, random level {format_number(view.random_overlap)}. "
        f"Amplification {format_number(view.amplification)}, "
        f"along random directions {format_number(view.random_amplification)}."
    )


def map_summary(ranks: RankMap) -> str:
    """Say in words what the effective-rank map shows."""
    if not np.isfinite(ranks.values).any():
        return "No matrix has an adapter."
    flat = int(np.nanargmax(ranks.values))
    role, layer = np.unravel_index(flat, ranks.values.shape)
    return (
        f"Effective rank of {_matrices(ranks)}: "
        f"{np.nanmin(ranks.values):.2f} to {np.nanmax(ranks.values):.2f}, "
        f"mean {np.nanmean(ranks.values):.2f}; highest at layer {ranks.layers[layer]}, "
        f"{ranks.roles[role]}."
    )


def _matrices(ranks: RankMap) -> str:
    return plural(int(np.isfinite(ranks.values).sum()), "matrix", "matrices")


def lengths_summary(look: Look) -> str:
    """Say in words how long the examples of a task are."""
    half, most = look.percentile(50), look.percentile(99)
    return (
        f"Half of the training examples have up to {half:,} tokens, 99 % up to {most:,}, the "
        f"longest {look.would_do:,}; {look.too_long:,} of {look.sample:,} have more than "
        f"max_length={look.max_length:,}."
    )


def loss_summary(losses: Sequence[tuple[int, float]]) -> str:
    """Say in words what the loss curve shows."""
    if not losses:
        return "No step has been trained yet."
    (first, start), (last, end) = losses[0], losses[-1]
    lowest = min(losses, key=lambda point: point[1])
    return (
        f"Training loss from {start:.3f} at step {first} to {end:.3f} at step {last}; "
        f"lowest {lowest[1]:.3f} at step {lowest[0]}."
    )


def memory_summary(budget: Budget) -> str:
    """Say in words what the memory bars show."""
    full, adapted = budget.full.total, budget.adapted.total
    return (
        f"Full fine-tuning takes {format_bytes(full)}, this plan {format_bytes(adapted)} "
        f"({format_change(adapted, full)})."
    )
