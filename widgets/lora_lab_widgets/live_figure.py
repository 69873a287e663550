"""A titled plotly figure of one site, kept up to date; an empty place before there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import ipywidgets

from lora_lab import figures
from lora_lab.analysis.site_view import SiteView
from lora_lab_widgets.message_throttle import Line, Throttled
from lora_lab_widgets.panel import Theme
from lora_lab_widgets.plot import Plot, PlotlyScript

HEIGHT = 165
TITLES = {"spectrum": "Spectrum of ΔW", "overlap": "Overlap with W₀"}


class LiveFigure(Throttled, ipywidgets.VBox):
    """One of the two figures of a site, as wide as its place.

    Args:
        kind: "spectrum" or "overlap".
        library: plotly.js, shared with other figures.

    Attributes:
        figure: the `go.Figure` on show, None before the first.
    """

    def __init__(
        self, kind: Literal["spectrum", "overlap"], library: PlotlyScript | None = None
    ) -> None:
        self._kind = kind
        self.figure: Any = None
        self._view: SiteView | None = None
        self._theme: Theme = "light"
        self._stale = False
        self._head = Line(_heading(kind, None), layout={"margin": "0"})
        self._plot = Plot(library, fills=True)
        super().__init__([self._head, self._plot], layout={"overflow": "hidden"})

    def bring(self) -> None:
        """Have plotly.js sent: the page is open; training has perhaps not begun."""
        self._plot.bring()

    def show(self, view: SiteView, theme: Theme, *, stale: bool = False) -> None:
        """Draw the view; nothing is sent when it is the one on show.

        Args:
            view: of one site at one step.
            theme: of the page.
            stale: drawn paler, as another site is asked for.
        """
        if view is self._view and theme == self._theme and stale == self._stale:
            return
        if stale != self._stale:
            (self.add_class if stale else self.remove_class)("ll-stale-figure")
            self._stale = stale
        if view is self._view and theme == self._theme:
            return
        fresh = self.figure is None or theme != self._theme
        self._view, self._theme = view, theme
        self._head.value = _heading(self._kind, view)
        make, update = self._functions()
        if fresh:
            self.figure = make(view, theme=theme, height=HEIGHT)
        else:
            update(self.figure, view, theme)
        self._plot.show(self.figure)

    def clear(self) -> None:
        """Show nothing, until the next view."""
        self._view = None
        self._head.value = _heading(self._kind, None)
        self._plot.clear()

    def _functions(self) -> tuple[Callable[..., Any], Callable[..., None]]:
        if self._kind == "spectrum":
            return figures.spectrum_figure, figures.update_spectrum
        return figures.overlap_figure, figures.update_overlap


def _heading(kind: str, view: SiteView | None) -> str:
    if view is None:
        note = ""
    elif kind == "spectrum":
        note = f"effective rank {view.effective_rank:.1f} of {len(view.singular_values)}"
    else:
        note = f"first {view.overlap.shape[1]} directions"
    # In a narrow column the note's last words are left out, and no letter is cut.
    return (
        '<div class="ll-head" style="flex-wrap:nowrap;gap:6px;margin:0;line-height:1.5">'
        f'<span class="ll-title" style="white-space:nowrap">{TITLES[kind]}</span> '
        f'<span style="height:1.5em;overflow:hidden">{note}</span></div>'
    )
