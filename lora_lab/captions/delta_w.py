"""The figures of "Analyze ΔW" in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_lab._util.format import format_count, format_number, format_share, plural
from lora_lab.tasks.metrics import LOSS, metric_of

if TYPE_CHECKING:
    from lora_lab.analysis.amplify import SiteAmplification
    from lora_lab.analysis.capacity import Capacity
    from lora_lab.analysis.choices import Choices
    from lora_lab.analysis.intruders import IntruderCurve, SiteIntruders
    from lora_lab.analysis.methods import MethodComparison
    from lora_lab.analysis.overlaps import OverlapMap
    from lora_lab.analysis.spectrum import SpectrumView
    from lora_lab.analysis.steps import StepMaps
    from lora_lab.analysis.sweep import SweepMap


def spectrum_against_base_summary(view: SpectrumView) -> str:
    """Say in words what ΔW's spectrum beside W₀'s shows."""
    where = view.site if view.step is None else f"{view.site}, step {view.step}"
    above = int((view.weight > view.edge).sum())
    shown = len(view.weight)
    noise = (
        f"{'all' if above == shown else above or 'none'} of the {shown} strongest directions of "
        f"W₀ stand above the edge of noise, {format_number(view.edge)}"
    )
    if not len(view.delta) or not view.delta[0]:
        return f"{where}: ΔW is zero, nothing is learned yet; {noise}."
    largest = float(view.delta[0])
    size = float(np.linalg.norm(view.delta.astype(np.float64)))
    strong = int((view.delta > view.edge).sum())
    return (
        f"{where}: ΔW's largest singular value {format_number(largest)} is "
        f"{format_share(largest, float(view.weight[0]))} of W₀'s, "
        f"{format_number(float(view.weight[0]))}; "
        f"‖ΔW‖ is {format_share(size, view.weight_norm)} of ‖W₀‖. "
        f"{_capital(noise)}; of ΔW's {len(view.delta)}, {strong or 'none'}."
    )


def phi_summary(overlap: OverlapMap) -> str:
    """Say in words what a φ map shows."""
    finite = np.isfinite(overlap.values)
    pair = f"{overlap.first} against {overlap.second}, {overlap.side} directions"
    if not finite.any():
        return f"{overlap.site}, {pair}: ΔW is zero, it has no directions."
    rows, columns = overlap.values.shape
    row, column = np.unravel_index(int(np.nanargmax(overlap.excess)), overlap.values.shape)
    beyond = overlap.values[finite] > (overlap.random + 3 * overlap.spread)[finite]
    return (
        f"{overlap.site}, {pair}: the strongest ones share φ(1, 1) = "
        f"{format_number(float(overlap.values[0, 0]))}, the first {rows} and {columns} share "
        f"{format_number(float(overlap.values[-1, -1]))} (unrelated: "
        f"{format_number(float(overlap.random[-1, -1]))}). Furthest above chance: φ({row + 1}, "
        f"{column + 1}) = {format_number(float(overlap.values[row, column]))}, unrelated "
        f"{format_number(float(overlap.random[row, column]))}. "
        f"{format_share(beyond.sum(), beyond.size)} of the map lies more than three standard "
        "deviations above chance." + (f" Note: {overlap.note}." if overlap.note else "")
    )


def amplification_summary(rows: Sequence[SiteAmplification]) -> str:
    """Say in words what table 7's triples show."""
    learned = [row for row in rows if row.r]
    if not learned:
        return "ΔW is zero at every matrix: it has no directions."
    strongest = max(learned, key=lambda row: row.factor)
    factors = [row.factor for row in learned]
    above = [row.along_delta / row.random_level for row in learned if row.random_level]
    share = [row.along_delta / row.along_own for row in learned if row.along_own]
    text = (
        f"{_sites(len(learned))}: ΔW amplifies its directions {_span(factors)}; most at "
        f"{strongest.name} (‖ΔW‖ {format_number(strongest.delta_norm)}, W₀ there "
        f"{format_number(strongest.along_delta)}). Along ΔW's directions W₀ has, at the median, "
        f"{format_number(float(np.median(above or [math.nan])))} times what random directions "
        f"would have, and {format_number(100 * float(np.median(share or [math.nan])))} % of what "
        "its own strongest have."
    )
    left_out = len(rows) - len(learned)
    return f"{text} At {_sites(left_out)} ΔW is zero." if left_out else text


def step_maps_summary(maps: StepMaps, index: int) -> str:
    """Say in words what the maps of one step show."""
    ranks, sizes = maps.effective_ranks[index], maps.relative_sizes[index]
    head = f"Step {int(maps.steps[index]):,} of {int(maps.steps[-1]):,}"
    if not np.isfinite(sizes).any():
        return f"{head}: no matrix has an adapter."
    if not np.nanmax(sizes):
        return f"{head}: ΔW is zero everywhere, nothing is learned yet."
    role, layer = np.unravel_index(int(np.nanargmax(sizes)), sizes.shape)
    return (
        f"{head}: effective ranks {np.nanmin(ranks):.2f} to {np.nanmax(ranks):.2f}, mean "
        f"{np.nanmean(ranks):.2f}; ‖ΔW‖ is {_percent(np.nanmin(sizes))} to "
        f"{_percent(np.nanmax(sizes))} of ‖W₀‖, most at layer {maps.layers[layer]}, "
        f"{maps.roles[role]}."
    )


def intruder_summary(rows: Sequence[SiteIntruders]) -> str:
    """Say in words what the search for intruder dimensions found."""
    if not rows:
        return "No matrix has an adapter."
    looked = sum(len(row.similarity) for row in rows)
    count = sum(row.count for row in rows)
    what = f"{looked:,} strongest directions of W₀ + ΔW at {_sites(len(rows))}"
    epsilon = rows[0].epsilon
    if not count:
        lowest = min(rows, key=lambda row: float(np.min(row.similarity, initial=1)))
        text = (
            f"No intruder among the {what}: each has |cos| ≥ {epsilon:g} with one of W₀'s; the "
            f"lowest is {float(np.min(lowest.similarity, initial=1)):.2f}, at {lowest.name}."
        )
    else:
        most = max(rows, key=lambda row: row.count)
        with_some = sum(bool(row.count) for row in rows)
        text = (
            f"{count:,} of the {what} are intruders (largest |cos| with W₀ below {epsilon:g}), "
            f"at {_sites(with_some)}, up to {most.count} at one ({most.name})."
        )
    near = sum(row.random_line > 0.8 * row.epsilon for row in rows)
    if near:
        text += (
            f" At {_sites(near)} a random vector comes near ε itself (√(2 ln n/n) up to "
            f"{max(row.random_line for row in rows):.2f}): there the search says little."
        )
    return text


def intruder_curve_summary(curve: IntruderCurve) -> str:
    """Say in words what scaling the intruders did."""
    if not curve.count:
        return "There is no intruder: scaling changes nothing."
    least, most = int(np.argmin(curve.factors)), int(np.argmax(curve.factors))
    task, base = curve.task_losses, curve.base_losses
    text = (
        f"{curve.count:,} intruders scaled from λ = {curve.factors[most]:g} to "
        f"{curve.factors[least]:g}: the task's loss goes from {task[most]:.3f} to "
        f"{task[least]:.3f} nats per token ({_signed(task[least] - task[most])}), the loss on the "
        f"base model's own text from {base[most]:.3f} to {base[least]:.3f} "
        f"({_signed(base[least] - base[most])})"
    )
    if math.isfinite(curve.base_reference):
        text += f"; the base model itself has {curve.base_reference:.3f}"
    return f"{text}. {curve.note}".strip()


def sweep_summary(sweep: SweepMap) -> str:
    """Say in words what a sweep's map shows."""
    finite = sweep.values[np.isfinite(sweep.values)]
    name, unit = measured(sweep)
    if not len(finite):
        return f"No run has ended with {name}. {sweep.note}".strip()
    row, column = sweep.ranks.index(sweep.best[0]), sweep.learning_rates.index(sweep.best[1])
    runs = plural(int(sweep.counts.sum()), "run")
    best = format_number(float(sweep.values[row, column]))
    at = f"r = {sweep.best[0]}, learning rate {rate_text(sweep.best[1])}"
    if len(finite) == 1:
        found = f"{_capital(name)} of {runs} at {at}: {f'{best} {unit}'.rstrip()}."
    else:
        found = (
            f"{_capital(name)} of {runs} in {len(finite)} of {sweep.values.size} cells: "
            f"{format_number(float(finite.min()))} to {format_number(float(finite.max()))} {unit}"
        ).rstrip() + f"; best {best} at {at}."
    return (found + _alphas_text(sweep) + f" {sweep.note}").strip()


def _alphas_text(sweep: SweepMap) -> str:
    """Return which α each rank had, where they are not all the same."""
    if len(set(sweep.alphas)) < 2:
        return ""
    pairs = zip(sweep.ranks, sweep.alphas, strict=True)
    return f" α follows the rank: {', '.join(f'{alpha:g} at r = {r}' for r, alpha in pairs)}."


def capacity_summary(capacity: Capacity) -> str:
    """Say in words what the capacity gauge shows."""
    text = (
        f"{format_count(capacity.parameters)} trainable parameters can hold about "
        f"{bits_text(capacity.bits)} (2 bits each)"
    )
    if capacity.data_bits is None:
        return f"{text}; what the data holds is not known before a first epoch."
    tokens = f" {capacity.tokens:,} completion tokens hold" if capacity.tokens else " data holds"
    share = format_share(capacity.data_bits, capacity.bits)
    end = "more than the adapter can hold" if capacity.data_bits > capacity.bits else "it has room"
    return f"{text}; the{tokens} {bits_text(capacity.data_bits)}, {share} of that: {end}."


def bits_text(bits: float) -> str:
    """Return a number of bits with three digits: "1.84 Mbit"."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if bits >= size:
            return f"{format_number(bits / size)} {prefix}bit"
    return f"{format_number(bits)} bit"


def rate_text(rate: float) -> str:
    """Return a learning rate as people write it: "2e-4", "0.05".

    >>> rate_text(2e-4), rate_text(1.5e-5), rate_text(0.01)
    ('2e-4', '1.5e-5', '0.01')
    """
    if rate >= 0.01:
        return f"{rate:g}"
    digits, _, power = f"{rate:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def measured(data: SweepMap | MethodComparison | Choices) -> tuple[str, str]:
    """Return what the values are, for a reader: the metric's name, and its unit if any."""
    metric = metric_of(data.metric)
    return metric.label, data.loss_unit if metric is LOSS else metric.unit


def _sites(count: int) -> str:
    return plural(count, "matrix", "matrices")


def _span(factors: Sequence[float]) -> str:
    if len(factors) == 1:
        return f"{format_number(factors[0])} times"
    middle = format_number(float(np.median(factors)))
    return f"{format_number(min(factors))} to {format_number(max(factors))} times, median {middle}"


def _percent(share: float) -> str:
    return f"{format_number(100 * float(share))} %"


def _signed(change: float) -> str:
    return f"{'−' if change < 0 else '+'}{abs(change):.3f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
