"""A run on one page."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lora_lab import figures
from lora_lab._util.format import (
    format_bytes,
    format_change,
    format_count,
    format_ratio,
    format_share,
)
from lora_lab.analysis.rank_map import RankMap, rank_map
from lora_lab.analysis.site_view import SiteView, live_view
from lora_lab.analysis.table import Analysis, analyze_sites
from lora_lab.budget.reading import MemoryReading, measured_text
from lora_lab.errors import RunError
from lora_lab.redaction import redacted, redacted_values
from lora_lab.reports.page import Page, facts, heading, section, site_table, table
from lora_lab.runs.shown_code import shown_code
from lora_lab.tasks.metrics import NATS, changes, sureness

if TYPE_CHECKING:
    from lora_lab.budget.costs import Budget
    from lora_lab.figures._base import Figure, Theme
    from lora_lab.training.run import Run

_TABLE_SITES = 12
_VIEWS = 3


class Sample(NamedTuple):
    """One held-out prompt and what both models make of it."""

    prompt: str
    reference: str
    base: str
    adapted: str


def write_report(
    path: str | Path,
    *,
    title: str,
    subtitle: str,
    config_python: str,
    budget: Budget,
    losses: Sequence[tuple[int, float]],
    metrics: Mapping[str, float],
    analysis: Analysis,
    views: Sequence[SiteView],
    samples: Sequence[tuple[str, str, str, str]],
    environment: Mapping[str, str],
    reading: MemoryReading | None = None,
    loss_unit: str = NATS,
    sure: str = "",
) -> Path:
    """Write the report of a run, whole or not at all.

    Args:
        path: the file; its folder is made.
        title: the page's heading, such as the model's name.
        subtitle: what was trained on what; says so when the task is synthetic.
        config_python: the config as Python.
        budget: full fine-tuning against the plan.
        losses: (step, loss).
        metrics: {name_before, name_after}, such as "bleu_before" and "bleu_after".
        analysis: ΔW of every site.
        views: a few sites in detail, the strongest first.
        samples: (prompt, reference, base model's answer, adapted model's answer).
        environment: versions and hardware.
        reading: measured memory, if any.
        loss_unit: of the losses.
        sure: how sure the metrics are, in a line; see `lora_lab.tasks.metrics.sureness`.

    Returns:
        The path.

    Raises:
        RunError: the file cannot be written.
    """
    title, subtitle, config_python = map(redacted, (title, subtitle, config_python))
    samples, environment = redacted_values(samples), redacted_values(environment)
    page = Page()
    body = [
        heading(title, subtitle),
        _headline(budget, losses, loss_unit, metrics),
        f"<p>{escape(sure[0].upper() + sure[1:])}.</p>" if sure else "",
        _savings(page, budget, reading),
        _training(page, losses, loss_unit),
        _updates(page, analysis, views),
        _answers(samples),
        f"<section><h2>Configuration</h2><pre>{escape(config_python)}</pre></section>",
        section("Environment", facts(environment)),
    ]
    return page.write(path, title, body)


def write_run_report(run: Run, budget: Budget, path: str | Path | None = None) -> Path:
    """Write the report of a finished run.

    Args:
        run: one that is over; its adapter is still on the model.
        budget: what its plan was to cost.
        path: the file; report.html in the run's folder by default.

    Returns:
        The path.

    Raises:
        AdapterError: the run's adapter is no longer on the model.
        RunError: the file cannot be written.
    """
    if run.adapter is None:
        raise RunError(f"run {run.id} has not started; there is nothing to report")
    analysis = analyze_sites(run.adapter.sites.values(), run.adapter.base_weight, run.adapter.name)
    step = run.snapshot.step
    description = run.description()
    return write_report(
        path or run.folder / "report.html",
        title=f"{run.lm.card.name} on {run.task.name}",
        subtitle=f"{run.task.describe()} · run {run.id}, {step} steps",
        config_python=shown_code(run.configs, run.training),
        budget=budget,
        losses=run.losses,
        loss_unit=run.task.loss_unit,
        metrics=run.snapshot.metrics,
        analysis=analysis,
        views=[live_view(run.adapter, row.name, step) for row in analysis.strongest(_VIEWS)],
        samples=[
            (s.prompt, s.references[0], s.base or "", s.adapted or "")
            for s in run.samples
            if s.adapted is not None
        ],
        environment={**description["versions"], "machine": f"{platform.machine()}, {run.lm.card}"},
        reading=run.snapshot.memory,
        sure=sureness(run.snapshot.intervals, run.snapshot.evaluated),
    )


def _headline(
    budget: Budget, losses: Sequence[tuple[int, float]], unit: str, metrics: Mapping[str, float]
) -> str:
    tiles = [
        (
            format_count(budget.parameters_trainable),
            f"trainable of {format_count(budget.parameters_total)} "
            f"({format_share(budget.parameters_trainable, budget.parameters_total)})",
        ),
        (
            format_bytes(budget.checkpoint_bytes),
            "checkpoint, "
            f"{format_ratio(budget.full_checkpoint_bytes, budget.checkpoint_bytes)} smaller",
        ),
        (
            format_change(budget.adapted.total, budget.full.total),
            "peak memory against full fine-tuning",
        ),
    ]
    if losses:
        tiles.append((f"{losses[0][1]:.2f} → {losses[-1][1]:.2f}", f"training loss, {unit}"))
    for metric, before, after in changes(metrics):
        if before is not None and after is not None:
            tiles.append((f"{before:.3g} → {after:.3g}", f"{metric.title}, before → after"))
    cells = "".join(f"<div><b>{escape(big)}</b><span>{escape(s)}</span></div>" for big, s in tiles)
    return f'<section class="tiles">{cells}</section>'


def _savings(page: Page, budget: Budget, reading: MemoryReading | None) -> str:
    def draw(data: Budget, theme: Theme) -> Figure:
        return figures.memory_figure(data, reading, theme=theme)

    full, adapted = budget.full, budget.adapted
    rows = [
        (part, format_bytes(getattr(full, part)), format_bytes(getattr(adapted, part)))
        for part in (*figures.MEMORY_PARTS, "total")
    ]
    if budget.expected is not None:
        rows.append(("total, expected", "–", format_bytes(budget.expected.total)))
    if reading is not None:
        rows.append((f"measured peak ({reading.kind})", "–", format_bytes(reading.peak)))
    told = [budget.forecast_text(), measured_text(budget, reading) if reading else ""]
    line = "; ".join(filter(None, told))
    return section(
        "Savings",
        page.figure(draw, budget, figures.memory_summary(budget)),
        table(("memory", "full fine-tuning", "this plan"), rows),
        f"<p class='caption'>{escape(line[0].upper() + line[1:])}.</p>" if line else "",
        note=budget.settings,
    )


def _training(page: Page, losses: Sequence[tuple[int, float]], unit: str) -> str:
    if not losses:
        return section("Training", "<p class='dim'>No step was trained.</p>")
    draw = functools.partial(figures.loss_figure, unit=unit)
    return section("Training", page.figure(draw, losses, figures.loss_summary(losses)))


def _updates(page: Page, analysis: Analysis, views: Sequence[SiteView]) -> str:
    ranks = rank_map(analysis.rows, {row.name: row.singular_values for row in analysis.rows})
    parts = []
    if ranks.layers:
        parts.append("<h3>Effective rank, layer by layer</h3>")
        parts.append(page.figure(_wide_map, ranks, figures.map_summary(ranks)))
    for view in views:
        parts.append(f"<h3>{escape(view.site)}</h3>")
        parts.append(
            '<div class="pair">'
            + page.figure(figures.spectrum_figure, view, "Singular values of ΔW.")
            + page.figure(figures.overlap_figure, view, "Overlap of ΔW's directions with W₀'s.")
            + f"</div><p class='caption'>{escape(figures.summary(view))}</p>"
        )
    strongest = analysis.strongest(_TABLE_SITES)
    parts.append(f"<h3>The {len(strongest)} largest updates of {len(analysis.rows)}</h3>")
    parts.append(site_table(strongest))
    parts.append(
        "<p class='caption'>Amplification is ‖ΔW‖ / ‖UᵀW₀V‖ with ΔW's own singular directions U "
        "and V: how much more of them ΔW holds than W₀ did. “Random” is the same ratio for "
        "directions that have nothing to do with W₀; an amplification below it means that W₀ "
        "already lies along ΔW's directions more than along random ones.</p>"
    )
    return section("The update ΔW", *parts)


def _wide_map(data: RankMap, theme: Theme) -> Figure:
    height = max(120, 66 + 20 * len(data.roles))
    return figures.effective_rank_figure(data, theme=theme, height=height)


def _answers(samples: Sequence[tuple[str, str, str, str]]) -> str:
    if not samples:
        return ""
    cards = []
    for sample in map(Sample._make, samples):
        lines = (
            ("base model", sample.base, ""),
            ("adapted", sample.adapted, " class='adapted'"),
            ("reference", sample.reference, ""),
        )
        answers = "".join(
            f"<dt>{label}</dt><dd{mark}>{escape(text) or '<i>nothing</i>'}</dd>"
            for label, text, mark in lines
        )
        cards.append(f"<article><p>{escape(sample.prompt)}</p><dl>{answers}</dl></article>")
    return section("Answers on held-out prompts", *cards)
