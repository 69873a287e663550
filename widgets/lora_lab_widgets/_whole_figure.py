"""A FigureWidget that reaches the browser whole."""

from __future__ import annotations

from typing import Any


def whole_figure(figure: Any) -> Any:
    """Return the FigureWidget of a `go.Figure`, sent to the browser in one message.

    plotly tells the browser of a figure while it is still empty, and of its data right behind.
    Where the second message is late, as with all cores at work, the browser has drawn empty axes
    by then and never looks again.

    Raises:
        Exception: plotly cannot make one here: without anywidget, or its notebook extension.
    """
    import plotly.graph_objects as go

    from lora_lab import figures

    class FigureWidget(go.FigureWidget):
        def open(self) -> None:
            if getattr(self, "_whole", False):
                super().open()

    made = FigureWidget(figure)
    # Before it is displayed: no button that uploads the figure to somebody's cloud.
    made._config = figures.CONFIG
    made._whole = True
    made.open()
    return made
