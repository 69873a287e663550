"""The one plotly figure of "Analyze ΔW", and what it says in words."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import ipywidgets

from lora_lab_widgets.plot import Plot, PlotlyScript


class FigureArea(ipywidgets.VBox):
    """Shows one `go.Figure` at a time, and under it what it says in words.

    Args:
        library: plotly.js, shared with other figures.

    Attributes:
        figure: the one on show, None before the first.
    """

    def __init__(self, library: PlotlyScript | None = None) -> None:
        self.figure: Any = None
        self._pale = False
        self._plot = Plot(library)
        self._words = ipywidgets.HTML(layout={"margin": "0"})
        self._words.add_class("ll-lab-words")
        super().__init__([self._plot, self._words], layout={"overflow": "auto hidden"})
        self.clear()

    def show(self, figure: Any, words: str) -> None:
        """Put a figure on show, and the sentence that says what it shows."""
        self.layout.display = "flex"
        self.figure = figure
        self._plot.show(figure)
        self.say(words)

    def change(self, update: Callable[[Any], bool]) -> bool:
        """Change the figure on show in place, as one message; return what `update` returns."""
        if self.figure is None:
            return False
        drawn = update(self.figure)
        self._plot.show(self.figure)
        return drawn

    def fade(self, pale: bool) -> None:
        """Draw the figure paler, as long as it is not of what is asked for."""
        if pale != self._pale:
            self._pale = pale
            (self.add_class if pale else self.remove_class)("ll-stale-figure")

    def say(self, words: str) -> None:
        """Set the words under the figure."""
        self._words.value = f'<div class="ll-dim" role="status">{html.escape(words)}</div>'

    def clear(self) -> None:
        """Show nothing, until the next figure."""
        self.layout.display = "none"
