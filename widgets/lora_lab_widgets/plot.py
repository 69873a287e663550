"""A plotly figure on a page: sent whole, in one message, whatever changed.

plotly's own FigureWidget carries plotly.js in every figure, and anywidget gives a module two
seconds to load; a page that shares its cores with training needs longer, and its figure stands
still from then on. Here plotly.js is a model of its own, loaded while the page is at rest and for
as long as it takes; a figure is the JSON that it draws.
"""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets
from ipywidgets import Widget, widget_serialization

from lora_lab import figures
from lora_lab_widgets.embedded_page import Embeddable
from lora_lab_widgets.message_throttle import at_once
from lora_lab_widgets.panel import PanelWidget
from lora_lab_widgets.subshell import OnSubshell


class PlotlyScript(OnSubshell, Embeddable, anywidget.AnyWidget):
    """plotly.js, 5 MB: one message a workbench, shared by all of its figures.

    A page that is reloaded is told the state of all widgets in one message, and for that it waits
    a few seconds at most; plotly.js is not part of it, and comes when a figure of the page asks.

    Attributes:
        source: plotly.js itself; empty until `bring`.
    """

    _esm = "export default {};"
    source = traitlets.Unicode().tag(sync=True)

    def __init__(self) -> None:
        super().__init__()
        self.on_msg(lambda *_: self.send_state("source"))  # all that a page ever asks

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """Return the traits that are named; without a name all of them but plotly.js."""
        state: dict[str, Any] = super().get_state(key, drop_defaults)
        if key is None:
            state.pop("source", None)
        return state

    def _get_embed_state(self, drop_defaults: bool = False) -> dict[str, Any]:
        """Return all of it, for a page that has no Python to ask."""
        found = super()._get_embed_state(drop_defaults)
        found["state"]["source"] = self.source
        return found

    def bring(self) -> None:
        """Send plotly.js, once: to a page that shows the rest already, and need not wait for it."""
        if not self.source:
            self.source = figures.plotly_js()


class Plot(PanelWidget):
    """Shows one `plotly.graph_objects.Figure` at a time.

    Args:
        library: shared with other figures; by default its own.

    Attributes:
        figure: what is drawn, plotly's JSON; empty before the first one. Set it with `show`.
        config: of plotly.js.
        library: plotly.js itself.
        fills: whether a figure is as wide as its place, whatever width it says.
    """

    module = "plot"
    figure = traitlets.Unicode().tag(sync=True)
    config = traitlets.Dict().tag(sync=True)
    library = traitlets.Instance(Widget).tag(sync=True, **widget_serialization)
    fills = traitlets.Bool().tag(sync=True)

    def __init__(self, library: PlotlyScript | None = None, *, fills: bool = False) -> None:
        super().__init__(library=library or PlotlyScript(), fills=fills)

    def bring(self) -> None:
        """Have plotly.js sent, if it was not yet."""
        if not self.config:
            with at_once():
                self.config = figures.CONFIG
            self.library.bring()

    def show(self, figure: Any) -> None:
        """Draw a figure in place of the one on show."""
        self.bring()
        self.figure = figure.to_json()

    def clear(self) -> None:
        """Draw nothing; the place keeps its height."""
        self.figure = ""

    def summary(self) -> str:
        """Return whether there is a figure."""
        return "a figure" if self.figure else "empty"
