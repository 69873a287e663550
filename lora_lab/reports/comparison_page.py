"""The report of a comparison: one page of HTML with its table, curves and fronts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import get_args

from lora_lab import captions, figures
from lora_lab.analysis.choices import Choices
from lora_lab.analysis.pareto import Against, pareto_points
from lora_lab.captions.comparisons import AGAINST
from lora_lab.errors import ConfigError
from lora_lab.reports.page import Page, facts, heading, section, table
from lora_lab.tasks.metrics import metric_of


def write_comparison_report(found: Choices, path: str | Path) -> Path:
    """Write what `compare` found as one self-contained page of HTML.

    Args:
        found: what `Comparison.results` returns.
        path: of the page; its folder is made.

    Returns:
        The path.

    Raises:
        RunError: the file cannot be written.
    """
    page = Page()
    title = f"{len({row.method for row in found.rows})} methods on {found.task}"
    return page.write(path, title, _body(page, title, found))


def _body(page: Page, title: str, found: Choices) -> Iterator[str]:
    label = metric_of(found.metric).title
    yield heading(title, f"{found.model}, each at its own best learning rate by {label}")
    rows = found.to_table()
    yield section("What they came to", table(rows.header, rows.rows))
    notes = {"differences": found.summary(), **({"note": found.note} if found.note else {})}
    yield section("What follows", facts(notes))
    curves = page.figure(figures.rate_curves_figure, found, captions.rate_curves_summary(found))
    yield section("Learning rates", curves, note=found.halves)
    for against in get_args(Against):
        try:
            pareto_points(found, against)
        except ConfigError:  # nobody has noted it
            continue
        draw = partial(figures.pareto_figure, against=against)
        caption = captions.pareto_summary(found, against)
        yield section(f"Against {AGAINST[against]}", page.figure(draw, found, caption))
