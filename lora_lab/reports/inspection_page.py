"""An inspection on one page: every figure that applies, each with what it shows in words."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab import figures
from lora_lab._util.format import format_number
from lora_lab.analysis.amplify import SiteAmplification
from lora_lab.analysis.rank_map import rank_map
from lora_lab.analysis.steps import StepMaps
from lora_lab.redaction import redacted
from lora_lab.reports.page import Page, facts, heading, section, site_table, table

if TYPE_CHECKING:
    from lora_lab.figures._base import Figure, Theme
    from lora_lab.reports.inspection import Inspection

_TABLE_SITES = 12
_TRIPLE = ("matrix", "directions", "‖ΔW‖", "‖W₀‖", "ΔW's", "W₀'s own", "random", "amplification")
_SETTINGS = (
    *("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules"),
    *("use_rslora", "use_dora", "init_lora_weights", "modules_to_save"),
)


def write_inspection(path: str | Path, inspection: Inspection) -> Path:
    """Write an inspection as a page, whole or not at all.

    Raises:
        RunError: the file cannot be written.
    """
    page = Page()
    parts = [
        heading(inspection.name, inspection.subtitle),
        _notes(inspection),
        _updates(page, inspection),
        _details(page, inspection),
        _table_7(page, inspection),
        _intruders(page, inspection),
        _steps(page, inspection),
        _sweep(page, inspection),
        _every_site(inspection),
        _settings(inspection),
    ]
    return page.write(path, inspection.name, parts)


def _notes(inspection: Inspection) -> str:
    if not inspection.notes:
        return ""
    return section("Notes", *(f"<p>{escape(redacted(note))}</p>" for note in inspection.notes))


def _updates(page: Page, inspection: Inspection) -> str:
    rows = inspection.analysis.rows
    ranks = rank_map(rows, {row.name: row.singular_values for row in rows})
    if not ranks.layers:
        return ""
    drawn = page.figure(_tall(figures.effective_rank_figure), ranks, figures.map_summary(ranks))
    return section("Effective rank of ΔW, layer by layer", drawn)


def _details(page: Page, inspection: Inspection) -> str:
    drawn: dict[str, list[str]] = {name: [] for name in inspection.details}
    for view in inspection.lone_spectra:
        text = (
            f"Singular values of ΔW: effective rank {view.effective_rank:.2f} of "
            f"{len(view.singular_values)}, Frobenius norm {format_number(view.frobenius_norm)}."
        )
        drawn[view.site].append(page.figure(figures.spectrum_figure, view, text))
    for spectrum in inspection.spectra:
        text = figures.spectrum_against_base_summary(spectrum)
        drawn[spectrum.site].append(
            page.figure(figures.spectrum_against_base_figure, spectrum, text)
        )
    for overlap in (*inspection.base_overlaps, *inspection.shown_overlaps):
        text = figures.phi_summary(overlap)
        drawn[overlap.site].append(page.figure(figures.phi_figure, overlap, text))
    parts = [
        f"<h3>{escape(name)}</h3><div class='pair'>{''.join(cells)}</div>"
        for name, cells in drawn.items()
        if cells
    ]
    return section("Matrices in detail", *parts) if parts else ""


def _table_7(page: Page, inspection: Inspection) -> str:
    rows = inspection.amplifications
    if not rows:
        return ""
    return section(
        "How much of W₀ lies along ΔW’s directions",
        page.figure(figures.amplification_figure, rows, figures.amplification_summary(rows)),
        _folded("Every matrix’s numbers", table(_TRIPLE, map(_triple, rows))),
        note="table 7 of the LoRA paper",
    )


def _triple(row: SiteAmplification) -> list[str]:
    sizes = (row.delta_norm, row.weight_norm, row.along_delta, row.along_own, row.along_random)
    return [
        row.name,
        str(row.r),
        *map(format_number, sizes),
        format_number(row.factor) if row.r else "–",
    ]


def _intruders(page: Page, inspection: Inspection) -> str:
    if not inspection.intruders:
        return ""
    text = figures.intruder_summary(inspection.intruders)
    parts = [page.figure(figures.intruder_figure, inspection.intruders, text)]
    if inspection.curve is not None:
        text = figures.intruder_curve_summary(inspection.curve)
        parts.append("<h3>The intruders scaled by λ</h3>")
        parts.append(page.figure(figures.intruder_curve_figure, inspection.curve, text))
    return section("Intruder dimensions", *parts)


def _steps(page: Page, inspection: Inspection) -> str:
    parts = []
    if inspection.steps is not None and inspection.steps.layers:
        last = len(inspection.steps.steps) - 1
        parts.append(
            page.figure(
                _all_steps, inspection.steps, figures.step_maps_summary(inspection.steps, last)
            )
        )
    if inspection.capacity is not None:
        text = figures.capacity_summary(inspection.capacity)
        parts.append(page.figure(figures.capacity_figure, inspection.capacity, text))
    return section("The run, step by step", *parts) if parts else ""


def _all_steps(steps: StepMaps, theme: Theme) -> Figure:
    return figures.step_maps_figure(steps, len(steps.steps) - 1, standalone=True, theme=theme)


def _sweep(page: Page, inspection: Inspection) -> str:
    if inspection.sweep is None:
        return ""
    drawn = page.figure(
        figures.sweep_figure, inspection.sweep, figures.sweep_summary(inspection.sweep)
    )
    return section("Rank and learning rate", drawn)


def _every_site(inspection: Inspection) -> str:
    rows = inspection.analysis.rows
    shown = site_table(rows)
    if len(rows) > _TABLE_SITES:
        shown = site_table(inspection.analysis.strongest(_TABLE_SITES)) + _folded(
            f"All {len(rows)} matrices", shown
        )
    return section(f"The {min(len(rows), _TABLE_SITES)} largest updates", shown)


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _settings(inspection: Inspection) -> str:
    shown = {name: inspection.config[name] for name in _SETTINGS if inspection.config.get(name)}
    if not shown:
        return ""
    return section("Configuration", facts({name: _short(value) for name, value in shown.items()}))


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 300 else f"{text[:300]} …"


def _tall(draw: Any) -> Any:
    """Return a map's function with a height that its roles ask for."""

    def drawn(data: Any, theme: Theme) -> Figure:
        return draw(data, theme=theme, height=max(120, 66 + 20 * len(data.roles)))

    return drawn
