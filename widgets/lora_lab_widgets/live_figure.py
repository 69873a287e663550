"""A titled plotly figure of one site, kept up to date from when there is something to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import ipywidgets

from lora_lab import figures
from lora_lab.analysis.site_view import SiteView
from lora_lab_widgets.message_throttle import Line, Place, Throttled
from lora_lab_widgets.panel import Theme
from lora_lab_widgets.plot import Plot, PlotlyScript

HEIGHT = 190


class LiveFigure(Throttled, ipywidgets.VBox):
    """One of the two figures of a site.

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
        self._width = 0
        self._head = Line(layout={"margin": "0"})
        self._plot = Plot(library)
        super().__init__([self._head, self._plot], layout=Place(display="none", overflow="hidden"))

    def resize(self, width: int) -> None:
        """Take `width` pixels: a figure does not follow its container by itself."""
        self._plot.bring()  # the page is open; training has perhaps not begun
        if width == self._width:
            return
        self._width = width
        self.layout.width = f"{width}px"
        if self.figure is not None:
            self.figure.layout.width = width
            self._plot.show(self.figure)

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
        self.layout.display = "flex"
        self._head.value = _heading(self._kind, view)
        make, update = self._functions()
        if fresh:
            self.figure = make(view, theme=theme, width=self._width, height=HEIGHT)
        else:
            update(self.figure, view, theme)
        self._plot.show(self.figure)

    def clear(self) -> None:
        """Show nothing, until the next view."""
        self._view = None
        self.layout.display = "none"

    def _functions(self) -> tuple[Callable[..., Any], Callable[..., None]]:
        if self._kind == "spectrum":
            return figures.spectrum_figure, figures.update_spectrum
        return figures.overlap_figure, figures.update_overlap


def _heading(kind: str, view: SiteView) -> str:
    if kind == "spectrum":
        title = "Spectrum of ΔW"
        note = f"effective rank {view.effective_rank:.1f} of {len(view.singular_values)}"
    else:
        title, note = "Overlap with W₀", f"first {view.overlap.shape[1]} directions"
    return (
        '<div class="ll-head" style="flex-wrap:nowrap;margin:0;line-height:1.5;white-space:nowrap">'
        f'<span class="ll-title">{title}</span> <span>{note}</span></div>'
    )
