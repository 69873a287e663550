"""The comparison of methods in words."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from lora_lab._util.format import format_count, format_number, format_share
from lora_lab.captions.delta_w import measured
from lora_lab.tasks.metrics import KEPT, metric_of

if TYPE_CHECKING:
    from lora_lab.analysis.methods import MethodComparison, MethodRow


def method_comparison_summary(comparison: MethodComparison) -> str:
    """Say in words what the comparison of methods shows."""
    name, unit = measured(comparison)
    rows, best = comparison.rows, comparison.best
    values = sorted(row.mean for row in rows)
    span = " to ".join(dict.fromkeys(map(format_number, (values[0], values[-1]))))
    text = (
        f"{name[:1].upper()}{name[1:]} of {len(rows)} "
        f"{'method' if len(rows) == 1 else 'methods'} after {comparison.steps:,} steps of "
        f"{comparison.task} on {comparison.model}: {span} {unit}".rstrip()
    )
    if comparison.base is not None:
        text += f", the base model {format_number(comparison.base)}"
    text += f"; best {_named(best)} with {format_number(best.mean)}"
    if best.kept and comparison.kept_base is not None and metric_of(comparison.metric) != KEPT:
        kept = format_number(statistics.fmean(best.kept))
        base = format_number(comparison.kept_base)
        text += f", whose loss on the base model's own text went from {base} to {kept}"
    largest = rows[-1]
    if best is not largest:
        share = format_share(best.trainable, largest.trainable)
        text += f", at {share} of the parameters of {_named(largest)}"
    note = comparison.note
    return f"{text}. {note[:1].upper()}{note[1:]}".strip()


def _named(row: MethodRow) -> str:
    return f"{row.method} ({format_count(row.trainable)} parameters)"
