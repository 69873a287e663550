"""ΔW of every site, one row each: as a table, as HTML and as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from lora_lab import spectra
from lora_lab._util.arrays import computable, same_library, to_numpy
from lora_lab._util.format import format_number
from lora_lab._util.tables import Table
from lora_lab.analysis.sites import AdaptedSite, naming

# What a table of sites shows; `SiteAnalysis.cells` gives the row.
HEADER = ("matrix", "r", "σ₁", "effective rank", "stable rank", "‖ΔW‖", "amplification", "random")

DORA_NOTE = "DoRA: this is its low-rank part s·BA; the learned lengths of the rows come on top"


@dataclass(frozen=True)
class SiteAnalysis:
    """One row of an `Analysis`. Without a base model the amplifications are None."""

    name: str
    layer: int | None
    role: str
    r: int
    singular_values: np.ndarray  # (min(r, out, in),) float32, descending
    effective_rank: float
    stable_rank: float
    frobenius_norm: float
    amplification: float | None  # NaN for a zero ΔW
    random_amplification: float | None
    stack: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the row as text, in the order of `HEADER`."""
        return (
            self.name,
            str(self.r),
            format_number(float(self.singular_values[0])),
            f"{self.effective_rank:.2f}",
            f"{self.stable_rank:.2f}",
            format_number(self.frobenius_norm),
            _short(self.amplification),
            _short(self.random_amplification),
        )


@dataclass(frozen=True)
class Analysis:
    """ΔW of every site of one adapter. Printing it shows a table."""

    name: str
    rows: tuple[SiteAnalysis, ...]
    note: str = ""  # what people should know besides

    def strongest(self, count: int) -> tuple[SiteAnalysis, ...]:
        """Return the sites with the largest ‖ΔW‖_F, largest first."""
        return tuple(sorted(self.rows, key=lambda row: -row.frobenius_norm)[:count])

    def to_json(self) -> dict[str, Any]:
        """Return {"name", "sites": [...]} in plain JSON types; what is not a number is null.

        A note comes with it as "note".
        """
        sites = [_row_json(row) for row in self.rows]
        return {"name": self.name, "sites": sites} | ({"note": self.note} if self.note else {})

    def to_table(self) -> Table:
        """Return the sites as a table for people."""
        return Table(HEADER, tuple(row.cells() for row in self.rows), frozenset(HEADER[1:]))

    def __str__(self) -> str:
        return "\n".join(filter(None, (str(self.to_table()), self.note)))

    def _repr_html_(self) -> str:
        note = f"<div>{escape(self.note)}</div>" if self.note else ""
        return self.to_table()._repr_html_() + note


def analyze_sites(
    sites: Iterable[AdaptedSite],
    base_weight: Callable[[str], Any] | None = None,
    name: str = "default",
) -> Analysis:
    """Measure ΔW of factors that need no model, such as those of an adapter's file.

    Args:
        sites: the factors, site by site.
        base_weight: gives W₀ (out, in) for a site's name; None: no amplification.
        name: the adapter's name, for the table.

    Raises:
        AdapterError: a factor with NaN; the line names the site.
    """
    sites = tuple(sites)
    lengths = any(getattr(site, "magnitude", None) is not None for site in sites)
    rows = tuple(_analyze_site(site, base_weight) for site in sites)
    return Analysis(name, rows, DORA_NOTE if lengths else "")


def _analyze_site(site: AdaptedSite, base_weight: Callable[[str], Any] | None) -> SiteAnalysis:
    name = site.site.name
    with naming(name):
        U, s, Vt = site.update.triplets()
        amplified = expected = None
        if base_weight is not None:
            W = computable(base_weight(name))
            U, s, Vt = (same_library(x, W) for x in (U, s, Vt))
            amplified = float(spectra.amplification(U, s, Vt, W))
            expected = float(spectra.random_amplification(s, W))
    return SiteAnalysis(
        name=name,
        layer=site.site.layer,
        role=site.site.role,
        r=site.update.r,
        singular_values=to_numpy(s),
        effective_rank=float(spectra.effective_rank(s)),
        stable_rank=float(spectra.stable_rank(s)),
        frobenius_norm=float(spectra.frobenius(s)),
        amplification=amplified,
        random_amplification=expected,
        stack=site.site.stack,
    )


def _short(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else format_number(value)


def _row_json(row: SiteAnalysis) -> dict[str, Any]:
    row_json: dict[str, Any] = {
        "name": row.name,
        "layer": row.layer,
        "role": row.role,
        "r": row.r,
        "singular_values": [_finite(s) for s in row.singular_values.tolist()],
        "effective_rank": _finite(row.effective_rank),
        "stable_rank": _finite(row.stable_rank),
        "frobenius_norm": _finite(row.frobenius_norm),
    }
    if row.amplification is not None and row.random_amplification is not None:
        row_json["amplification"] = _finite(row.amplification)
        row_json["random_amplification"] = _finite(row.random_amplification)
    return row_json


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
