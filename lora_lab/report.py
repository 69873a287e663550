"""A run on one page: a self-contained `report.html` that needs no network and no notebook.

plotly.js is inlined once, everything that came from outside is escaped, and page and figures
follow the reader's light or dark setting.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lora_lab._format import format_bytes, format_change, format_count, format_ratio, format_share
from lora_lab.analysis import (
    HEADER,
    Analysis,
    RankMap,
    SiteAnalysis,
    SiteView,
    analyze_sites,
    live_view,
    rank_map,
)
from lora_lab.errors import RunError
from lora_lab.memory import MemoryReading

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.budget import Budget
    from lora_lab.figures import Figure, Theme
    from lora_lab.runs import Run

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
) -> Path:
    """Write the report of a run, whole or not at all.

    Args:
        path: the file; its folder is made.
        title: the page's heading, such as the model's name.
        subtitle: what was trained on what; says so when the task is synthetic.
        config_python: the config as Python.
        budget: full fine-tuning against the plan.
        losses: (step, nats a token).
        metrics: {name_before, name_after}, such as "bleu_before" and "bleu_after".
        analysis: ΔW of every site.
        views: a few sites in detail, the strongest first.
        samples: (prompt, reference, base model's answer, adapted model's answer).
        environment: versions and hardware.
        reading: measured memory, if any.

    Returns:
        The path.

    Raises:
        RunError: the file cannot be written.
    """
    page = _Page()
    body = [
        f"<header><h1>{escape(title)}</h1><p class='dim'>{escape(subtitle)}</p></header>",
        _headline(budget, losses, metrics),
        _savings(page, budget, reading),
        _training(page, losses),
        _updates(page, analysis, views),
        _answers(samples),
        f"<section><h2>Configuration</h2><pre>{escape(config_python)}</pre></section>",
        _section("Environment", _facts(environment)),
    ]
    text = page.render(title, "\n".join(body))
    path = Path(path)
    draft = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    return path


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
        config_python=f"{run.config.to_python()}\n{run.training.to_python()}",
        budget=budget,
        losses=run.losses,
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
    )


class _Page:
    """Collects figures, so that plotly.js and the drawing code stand in the page once."""

    def __init__(self) -> None:
        self._figures: list[str] = []

    def figure(self, draw: Callable[..., Figure], data: object, caption: str) -> str:
        """Return the place of a figure; it is drawn in the theme that the reader has."""
        name = f"figure-{len(self._figures)}"
        drawn = {theme: draw(data, theme=theme) for theme in ("light", "dark")}
        height = drawn["light"].layout.height
        for figure in drawn.values():
            # The page's columns set the width.
            figure.update_layout(width=None, autosize=True)
        both = ",".join(f'"{theme}":{figure.to_json()}' for theme, figure in drawn.items())
        self._figures.append(f'"{name}":{{{both}}}')
        return (
            f'<figure><div id="{name}" class="plot" role="img" aria-labelledby="{name}-text" '
            f'style="height:{height}px"></div>'
            f'<figcaption id="{name}-text">{escape(caption)}</figcaption></figure>'
        )

    def render(self, title: str, body: str) -> str:
        """Return the whole page."""
        from lora_lab.figures import plotly_js

        # "<" cannot end the script element when it is written as an escape.
        figures = f"{{{','.join(self._figures)}}}".replace("<", "\\u003c")
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)} · LoRA Lab</title><style>{_STYLE}</style></head>\n"
            f"<body><main>\n{body}\n</main>\n"
            f"<script>{plotly_js()}</script>\n"
            f'<script type="application/json" id="figures">{figures}</script>\n'
            f"<script>{_DRAW}</script></body></html>\n"
        )


def _headline(
    budget: Budget, losses: Sequence[tuple[int, float]], metrics: Mapping[str, float]
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
        tiles.append((f"{losses[0][1]:.2f} → {losses[-1][1]:.2f}", "training loss, nats a token"))
    for key, after in metrics.items():
        name = key.removesuffix("_after")
        if name != key:
            before = metrics[f"{name}_before"]
            label = {"loss": "held-out loss", "bleu": "BLEU"}.get(name, name)
            tiles.append((f"{before:.3g} → {after:.3g}", f"{label}, before → after"))
    cells = "".join(f"<div><b>{escape(big)}</b><span>{escape(s)}</span></div>" for big, s in tiles)
    return f'<section class="tiles">{cells}</section>'


def _savings(page: _Page, budget: Budget, reading: MemoryReading | None) -> str:
    from lora_lab import figures

    def draw(data: Budget, theme: Theme) -> Figure:
        return figures.memory_figure(data, reading, theme=theme)

    full, adapted = budget.full, budget.adapted
    rows = [
        (part, format_bytes(getattr(full, part)), format_bytes(getattr(adapted, part)))
        for part in (*figures.MEMORY_PARTS, "total")
    ]
    if reading is not None:
        rows.append((f"measured peak ({reading.kind})", "–", format_bytes(reading.peak)))
    return _section(
        "Savings",
        page.figure(draw, budget, figures.memory_summary(budget)),
        _table(("memory", "full fine-tuning", "this plan"), rows),
        note=budget.settings,
    )


def _training(page: _Page, losses: Sequence[tuple[int, float]]) -> str:
    from lora_lab import figures

    if not losses:
        return _section("Training", "<p class='dim'>No step was trained.</p>")
    return _section(
        "Training", page.figure(figures.loss_figure, losses, figures.loss_summary(losses))
    )


def _updates(page: _Page, analysis: Analysis, views: Sequence[SiteView]) -> str:
    from lora_lab import figures

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
    parts.append(_site_table(strongest))
    parts.append(
        "<p class='caption'>Amplification is ‖ΔW‖ / ‖UᵀW₀V‖ with ΔW's own singular directions U "
        "and V: how much more of them ΔW holds than W₀ did. “Random” is the same ratio for "
        "directions that have nothing to do with W₀; an amplification below it means that W₀ "
        "already lies along ΔW's directions more than along random ones.</p>"
    )
    return _section("The update ΔW", *parts)


def _wide_map(data: RankMap, theme: Theme) -> Figure:
    from lora_lab import figures

    height = max(120, 66 + 20 * len(data.roles))
    return figures.effective_rank_figure(data, theme=theme, height=height)


def _site_table(rows: Iterable[SiteAnalysis]) -> str:
    return _table(HEADER, (row.cells() for row in rows))


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
    return _section("Answers on held-out prompts", *cards)


def _section(heading: str, *parts: str, note: str = "") -> str:
    small = f" <small>{escape(note)}</small>" if note else ""
    return f"<section><h2>{escape(heading)}{small}</h2>{''.join(parts)}</section>"


def _facts(facts: Mapping[str, str]) -> str:
    lines = (f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    return f"<dl>{''.join(lines)}</dl>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1f2328;--dim:#667085;--line:#e4e7ec;--card:#fbfcfd;
--accent:#3b6fd4;--ground:#f3f4f6}
@media (prefers-color-scheme:dark){:root{--bg:#111318;--fg:#e6e8ec;--dim:#98a2b3;--line:#2a2f38;
--card:#171a20;--accent:#7ea6f4;--ground:#0b0d10}}
@media print{:root{color-scheme:light;--bg:#fff;--fg:#1f2328;--dim:#667085;--line:#e4e7ec;
--card:#fbfcfd;--accent:#3b6fd4;--ground:#fff}section{break-inside:avoid}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--fg);font:14px/1.5 system-ui,sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:980px;margin:24px auto;background:var(--bg);border:1px solid var(--line);
border-radius:8px;padding:28px 32px}
h1{font-size:20px;margin:0}h2{font-size:15px;margin:0 0 14px}h3{font-size:13px;margin:22px 0 8px;
overflow-wrap:anywhere}
header p{margin:2px 0 0}.dim,small{color:var(--dim);font-weight:400}small{font-size:12px;
margin-left:8px}
section{margin-top:24px;padding-top:20px;border-top:1px solid var(--line)}
.tiles{display:flex;flex-wrap:wrap;gap:16px 40px}.tiles b{display:block;font-size:20px;
font-weight:600}.tiles span{color:var(--dim);font-size:12px}
figure{margin:0;min-width:0}.plot{width:100%}
figcaption,.caption{color:var(--dim);font-size:12px;margin:4px 0 0}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:24px}
.scroll{overflow-x:auto;margin-top:14px}
table{border-collapse:collapse;font-size:13px;width:100%}
th,td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--dim);font-weight:400;font-size:12px}
th:first-child,td:first-child{text-align:left;padding-left:0}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:12px 14px;
overflow-x:auto;font-size:13px;margin:0;white-space:pre-wrap}
article{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:12px 14px;
margin-top:10px}
article p{margin:0 0 8px;font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:110px 1fr;gap:4px 12px;margin:0}
dt{color:var(--dim);font-size:12px;line-height:21px}
dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.adapted{border-left:2px solid var(--accent);padding-left:10px;margin-left:-12px}
@media (max-width:700px){main{padding:18px 16px;margin:0;border-radius:0}
.pair{grid-template-columns:1fr}dl{grid-template-columns:1fr}.adapted{margin-left:0}}
"""

_DRAW = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const config = {showSendToCloud: false, displaylogo: false, displayModeBar: false,
                responsive: true};
function draw(theme) {
  for (const [id, drawn] of Object.entries(figures)) {
    const {data, layout} = structuredClone(drawn[theme]);
    Plotly.react(id, data, layout, config);
  }
}
const current = () => draw(dark.matches ? "dark" : "light");
dark.addEventListener("change", current);
addEventListener("beforeprint", () => draw("light"));
addEventListener("afterprint", current);
current();
"""
