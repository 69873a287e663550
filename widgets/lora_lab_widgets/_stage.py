"""The laboratory's one plotly figure: made on demand, re-used for every view."""

from __future__ import annotations

import copy
import html
from collections.abc import Callable
from typing import Any

import ipywidgets

from lora_lab_widgets._whole_figure import whole_figure


class Stage(ipywidgets.VBox):
    """Shows one `go.Figure` at a time, and under it what it says in words.

    A FigureWidget is 5 MB on the wire when it is made, so there is one. Another figure is put into
    it as a whole and shown by a new view: updating plotly's front end piece by piece would leave
    behind what the new figure does not mention.
    """

    def __init__(self) -> None:
        self._figure: Any = None
        self._reason = ""  # why there is no figure
        self._pale = False
        self._place = ipywidgets.Box(layout={"overflow": "hidden"})
        self._words = ipywidgets.HTML(layout={"margin": "0"})
        self._words.add_class("ll-lab-words")
        super().__init__([self._place, self._words], layout={"overflow": "hidden"})
        self.clear()

    @property
    def figure(self) -> Any:
        """The FigureWidget, None before the first figure."""
        return self._figure

    def show(self, figure: Any, words: str) -> None:
        """Put a figure on show, and the sentence that says what it shows."""
        self.layout.display = "flex"
        self._place.layout.height = f"{figure.layout.height}px"  # nothing jumps while it changes
        if self._figure is None and not self._reason:
            self._make(figure)
        elif self._figure is not None:
            self._replace(figure)
        if self._reason:
            self._place.layout.height = None
            words = f"{words} (No figure: {self._reason}.)"
        self.say(words)

    def change(self, update: Callable[[Any], bool]) -> bool:
        """Change the figure on show in place, as one message; return what `update` returns."""
        if self._figure is None:
            return False
        with self._figure.batch_update():
            return update(self._figure)

    def fade(self, pale: bool) -> None:
        """Draw the figure paler, as long as it is not of what is asked for."""
        if pale != self._pale:
            self._pale = pale
            (self.add_class if pale else self.remove_class)("ll-stale-figure")

    def say(self, words: str) -> None:
        """Set the words under the figure."""
        self._words.value = f'<div class="ll-dim" role="status">{html.escape(words)}</div>'

    def clear(self) -> None:
        """Show nothing; the figure is kept for the next one."""
        self.layout.display = "none"
        self._place.children = ()

    def _make(self, figure: Any) -> None:
        try:
            made = whole_figure(figure)
        except Exception as error:
            # plotly 5 without its notebook extension, or no anywidget: many types of error.
            self._reason = f"plotly {type(error).__name__}: {error}".splitlines()[0]
            return
        self._figure = made
        self._place.children = (made,)

    def _replace(self, figure: Any) -> None:
        shown = self._figure
        self._place.children = ()
        # One message with the whole state, as plotly itself sends it before a display, and none of
        # the changes on the way there: a view that is being closed could not follow them.
        with shown.hold_sync():
            shown.data = ()
            shown.add_traces(figure.data)
            shown.layout = figure.layout
            shown._widget_data = copy.deepcopy(shown._data)
            shown._widget_layout = copy.deepcopy(shown._layout_obj._props)
        self._place.children = (shown,)
