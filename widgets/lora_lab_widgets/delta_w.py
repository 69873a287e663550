"""ΔW of one site while it grows: its spectrum and how it lies against W₀; and of all, as a map."""

from __future__ import annotations

import contextlib
import html
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import ipywidgets
import numpy as np
import traitlets

from lora_lab.analysis.live import adapter_spectra
from lora_lab.analysis.site_view import SiteView, site_view
from lora_lab.anatomy.blocks import site_label
from lora_lab.errors import LoraLabError
from lora_lab.spectra.sizes import effective_rank
from lora_lab.training.snapshot import RunState, Snapshot, Spectra
from lora_lab_widgets.background import Background
from lora_lab_widgets.grid_cells import cell_of, first_of
from lora_lab_widgets.live_adapter import resting
from lora_lab_widgets.live_figure import LiveFigure
from lora_lab_widgets.marimo_page import ShownInMarimo
from lora_lab_widgets.message_throttle import Line, Picker, at_once
from lora_lab_widgets.panel import PanelWidget, Tick
from lora_lab_widgets.site_map import SiteMap

if TYPE_CHECKING:
    from lora_lab.methods.base import Adapter
    from lora_lab_widgets.session import Session

PAUSE = 2.0  # seconds between two looks at ΔW, at least: a look takes five messages
LONGEST_PAUSE = 5.0  # seconds; how long slow steps may make it
STEPS = 6  # steps between two looks, where they are slow: drawing takes the cores from training
SHARE = 0.02  # of the time that looking may take, at most
NOTHING_YET = "Spectrum and overlap with W₀ show here while it trains: press Start."
LOOKING = "Looking at ΔW…"


class DeltaTitle(PanelWidget):
    """The title of its line, with what explains it."""

    module = "delta_title"


class DeltaW(ShownInMarimo, ipywidgets.VBox):
    """A site to pick, its two figures, and the map of effective ranks.

    `update` is called by the heartbeat. What takes longer than a few milliseconds (W₀'s leading
    directions) is computed on a thread and shown with a later tick.

    Args:
        session: has the adapter, and the site that is looked at.

    Attributes:
        selected: the name of the site that is looked at; set it, or observe it.
        ranks: {site name: r} of the adapter; the sites that can be picked.
    """

    selected = traitlets.Unicode()
    ranks = traitlets.Dict()

    def __init__(self, session: Session) -> None:
        self._session, self._anatomy, self._live = session, session.anatomy, session.live_adapter
        self._adapter: Adapter | None = None  # the one on show
        self._lock = threading.RLock()
        self._job: Background[SiteView | None] = Background()
        self._asked: tuple[str, str, int] | None = None  # (site, run, version) of the latest look
        self._rest_until = 0.0
        self._view: SiteView | None = None
        self._mapped: Spectra | Adapter | None = None
        self._whole: Background[tuple[Adapter, dict[str, np.ndarray]]] = Background()
        self._map_due = 0.0
        self._nothing = NOTHING_YET
        self._picker = Picker(
            description="matrix",
            layout={"width": "auto"},
            options=[("no matrix", "")],
            style={"description_width": "initial"},
        )
        self._line = Line(_dim(NOTHING_YET))
        self._map = SiteMap(session.anatomy)
        self._spectrum = LiveFigure("spectrum", session.plotly)
        self._overlap = LiveFigure("overlap", session.plotly)
        figures = ipywidgets.Box([self._spectrum, self._overlap])
        figures.add_class("ll-delta-figures")
        head = ipywidgets.HBox([DeltaTitle(), self._picker, self._line])
        head.add_class("ll-delta-head")
        look = ipywidgets.VBox([head, figures])
        super().__init__([look, self._map])
        for widget, name in ((self, "ll-delta"), (look, "ll-delta-look")):
            widget.add_class("ll-panel")
            widget.add_class(name)
        for show, view in ((self._spectrum, "spectrum"), (self._overlap, "overlap")):
            show.add_class(f"ll-delta-{view}")
        self._picker.observe(lambda change: self._pick(change["new"]), "value")
        self._map.observe(lambda change: self._pick(change["new"]), "selected")
        self.observe(self._selected, "selected")
        self.observe(self._ranked, "ranks")
        self.observe(lambda change: setattr(session, "site", change["new"]), "selected")
        session.observe(lambda change: setattr(self, "selected", change["new"]), "site")
        session.observe(lambda _: self._show_adapter(), "run")
        self._show_adapter()

    def update(self, tick: Tick) -> None:
        """Show what is new; quick, and nothing is sent when nothing is."""
        if self._live.latest is not self._adapter:  # a queued run has begun
            self._show_adapter()
        snapshot = tick.snapshot
        with self._lock:
            with at_once():  # when the page opens, not in the second in which a run begins
                self._spectrum.bring()
                self._overlap.bring()
            if snapshot is not None:
                self._draw_map(snapshot)
            else:
                self._draw_map_of_no_run()
            self._take(_pause(snapshot))
            self._look(snapshot)
            if self._view is not None:
                stale = self._view.site != self.selected
                for figure in (self._spectrum, self._overlap):
                    figure.show(self._view, tick.theme, stale=stale)

    def refresh(self) -> None:
        """Look at ΔW again at the next tick, though no step was trained: after a new adapter."""
        with self._lock:
            self._asked = self._mapped = None
            self._rest_until = 0.0
            self._map_due = 0.0

    def _show_adapter(self) -> None:
        """Show the adapter of the latest run."""
        with self._lock:
            self._adapter = self._live.latest
            adapter = self._live.adapter
            ranks = {} if adapter is None else {name: s.r for name, s in adapter.sites.items()}
            self._nothing = NOTHING_YET if self._session.run is None else self._live.nothing
            if ranks != self.ranks:
                self.ranks = ranks
            else:
                self._ranked(None)
        self._session.watch()

    def _look(self, snapshot: Snapshot | None) -> None:
        run = (snapshot.run_id, snapshot.version) if snapshot else ("", 0)
        key = (self.selected, *run)
        # At rest the last look is due at once, as the map's: both show that step.
        still = snapshot is not None and resting(snapshot.state) and self._asked is not None
        waits = time.monotonic() < self._rest_until and not still
        if not self.selected or key == self._asked or waits:
            return
        site = self.selected
        if self._job.start(lambda: self._measure(site)):
            self._asked = key

    def _measure(self, site: str) -> SiteView | None:
        factors = self._live.factors(site)
        return None if factors is None else site_view(factors, self._live.base_weight(site))

    def _take(self, pause: float) -> None:
        outcome = self._job.take()
        if outcome is None:
            return
        self._rest_until = time.monotonic() + max(pause, outcome.seconds / SHARE)
        if outcome.error is not None:
            self._say_error(outcome.error)
        elif outcome.value is not None and outcome.value.site == self.selected:
            self._view = outcome.value
            self._say(_sentence(outcome.value))
        else:
            # Another site was picked meanwhile, or this one has no factors yet: look again.
            self._asked = None
            self._rest_until = 0.0 if outcome.value is not None else time.monotonic() + PAUSE

    def _draw_map(self, snapshot: Snapshot) -> None:
        spectra, now = snapshot.spectra, time.monotonic()
        # At rest what came last is drawn at once: no step follows that would bring another.
        due = now >= self._map_due or snapshot.state is not RunState.RUNNING
        if spectra is None or spectra is self._mapped or not due:
            return
        self._map_due = now + _pause(snapshot)
        self._mapped = spectra
        if snapshot.ranks:  # what training has left of them
            self._map.ranks = {name: r for name, r in snapshot.ranks.items() if r}
        self._map.values = _by_cell(effective_ranks(spectra.singular_values))

    def _draw_map_of_no_run(self) -> None:
        """Draw the map of an adapter that was not trained here: no snapshot brings its spectra."""
        if (outcome := self._whole.take()) is not None:
            if outcome.error is not None:
                self._say_error(outcome.error)
            elif outcome.value is not None and outcome.value[0] is self._adapter:
                self._map.values = _by_cell(effective_ranks(outcome.value[1]))
        adapter = self._live.adapter
        if adapter is None or self._mapped is adapter:
            return

        def measure() -> tuple[Adapter, dict[str, np.ndarray]]:
            with self._live.at_rest():
                return adapter, adapter_spectra(adapter)

        if self._whole.start(measure):
            self._mapped = adapter

    def _pick(self, name: str) -> None:
        # The map names a cell, which has several sites where experts share a tensor.
        if name and name != cell_of(self.selected):
            self.selected = first_of(self._anatomy, name)

    def _selected(self, _change: object) -> None:
        with self._lock:
            self._rest_until = 0.0
            if self.selected in [name for _, name in self._picker.options]:
                self._picker.value = self.selected
            self._map.selected = cell_of(self.selected)
            if self._view is not None and self._view.site != self.selected:
                label = self._label(self.selected)
                self._say(
                    f"{label}: waiting for the next look…"
                    if self.selected in self.ranks
                    else f"{label} has no adapter"
                )

    def _ranked(self, _change: object) -> None:
        with self._lock:
            every = {own.name: own for site in self._anatomy.sites for own in site.each}
            names = [name for name in every if self.ranks.get(name)]
            self._map.ranks = {cell_of(name): self.ranks[name] for name in names}
            self._map.values = {}
            self._view = None
            self.refresh()
            for figure in (self._spectrum, self._overlap):
                figure.clear()
            self._say(LOOKING if names else self._nothing)
            options = [(site_label(every[name]), name) for name in names] or [("no matrix", "")]
            chosen = self.selected if self.selected in names else self._typical(names)
            self._picker.options = options  # this selects the first of them
            self.selected = chosen
            self._picker.value = chosen

    def _typical(self, names: list[str]) -> str:
        """Return a site worth looking at first: a v in the middle layers, else the middle one."""
        cells = self._anatomy.by_name
        values = [name for name in names if cells[cell_of(name)].role == "v"] or names
        return values[len(values) // 2] if values else ""

    def _label(self, name: str) -> str:
        site = self._anatomy.by_name.get(cell_of(name))
        own = [one for one in site.each if one.name == name] if site else []
        return site_label(own[0]) if own else name

    def _say(self, text: str) -> None:
        # What asks for Start is gone with the run that was started: its line waits for no turn.
        asked = NOTHING_YET in self._line.value and text not in self._line.value
        with at_once() if asked else contextlib.nullcontext():
            self._line.value = _dim(text)

    def _say_error(self, error: Exception) -> None:
        known = isinstance(error, LoraLabError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        self._line.value = f'<div class="ll-error" role="alert">{html.escape(text)}</div>'


def _pause(snapshot: Snapshot | None) -> float:
    rate = snapshot.steps_per_second if snapshot and not snapshot.state.final else None
    return min(LONGEST_PAUSE, max(PAUSE, STEPS / rate if rate else 0.0))


def effective_ranks(singular_values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return {site: effective rank} of {site: (r,) singular values}, one call for each rank r."""
    same: defaultdict[int, list[str]] = defaultdict(list)
    for name, s in singular_values.items():
        same[len(s)].append(name)
    return {
        name: float(rank)
        for names in same.values()
        for name, rank in zip(
            names, effective_rank(np.stack([singular_values[n] for n in names])), strict=True
        )
    }


def _by_cell(values: Mapping[str, float]) -> dict[str, float]:
    """Return {cell: value}; of experts that share a cell their mean."""
    cells: defaultdict[str, list[float]] = defaultdict(list)
    for name, value in values.items():
        cells[cell_of(name)].append(value)
    return {cell: sum(own) / len(own) for cell, own in cells.items()}


def _sentence(view: SiteView) -> str:
    if not view.frobenius_norm:
        return f"step {view.step} · ΔW is zero: nothing is learned yet"
    return (
        f"step {view.step} · ‖ΔW‖ {view.frobenius_norm:.3g} · "
        f"amplification {view.amplification:.3g}, "
        f"along random directions {view.random_amplification:.3g}"
    )


def _dim(text: str) -> str:
    # Jupyter gives an HTML widget a line height of 28 pixels; wrapped lines stand closer here.
    return f'<div class="ll-dim" style="padding:0;line-height:1.4">{html.escape(text)}</div>'
