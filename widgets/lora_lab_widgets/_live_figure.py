"""A titled plotly figure that is made when there is something to show, then updated in place."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any, Literal

import ipywidgets

from lora_lab.analysis import SiteView
from lora_lab_widgets._whole_figure import whole_figure

HEIGHT = 190
Theme = Literal["light", "dark"]


class LiveFigure(ipywidgets.VBox):
    """One of the two figures of a site.

    A FigureWidget is 5 MB on the wire when it is made, so it is made once, and only then. Where
    plotly cannot make one, a line of text says why and what the figure would show.

    Args:
        kind: "spectrum" or "overlap".
    """

    def __init__(self, kind: Literal["spectrum", "overlap"]) -> None:
        self._kind = kind
        self._figure: Any = None
        self._reason = ""  # why there is no figure
        self._view: SiteView | None = None
        self._theme: Theme = "light"
        self._stale = False
        self._width = 0
        self._head = ipywidgets.HTML(layout={"margin": "0"})
        super().__init__([self._head], layout={"display": "none", "overflow": "hidden"})

    def resize(self, width: int) -> None:
        """Take `width` pixels: FigureWidgets do not follow their container by themselves."""
        if width == self._width:
            return
        self._width = width
        self.layout.width = f"{width}px"
        if self._figure is not None:
            self._figure.layout.width = width

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
        repaint = theme != self._theme
        self._view, self._theme = view, theme
        self.layout.display = "flex"
        self._head.value = _heading(self._kind, view)
        if self._figure is None and not self._reason:
            self._make(view, theme)
        elif self._figure is not None:
            self._redraw(view, theme, repaint)
        if self._reason:
            from lora_lab import figures

            text = f"{figures.summary(view)} (No figure: {self._reason}.)"
            self.children[1].value = f'<span class="ll-dim">{html.escape(text)}</span>'

    def clear(self) -> None:
        """Show nothing, until the next view; the figure is kept."""
        self._view = None
        self.layout.display = "none"

    def _make(self, view: SiteView, theme: Theme) -> None:
        try:
            figure = whole_figure(self._maker()(view, theme=theme, **self._size()))
        except Exception as error:
            # plotly 5 without its notebook extension, or no anywidget: many types of error.
            self._reason = f"plotly {type(error).__name__}: {error}".splitlines()[0]
            self.children = [self._head, ipywidgets.HTML()]
            return
        self._figure = figure
        self.children = [self._head, figure]

    def _redraw(self, view: SiteView, theme: Theme, repaint: bool) -> None:
        from lora_lab import figures

        update = figures.update_spectrum if self._kind == "spectrum" else figures.update_overlap
        with self._figure.batch_update():
            if repaint:
                fresh = self._maker()(view, theme=theme, **self._size())
                self._figure.layout.update(fresh.layout.to_plotly_json())
                self._figure.data[0].update(fresh.data[0].to_plotly_json())
            else:
                update(self._figure, view, theme)

    def _maker(self) -> Callable[..., Any]:
        from lora_lab import figures

        return figures.spectrum_figure if self._kind == "spectrum" else figures.overlap_figure

    def _size(self) -> dict[str, int]:
        return {"width": self._width, "height": HEIGHT}


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
