"""The same widgets in marimo, which shows anywidgets, and of ipywidgets' own none."""

from __future__ import annotations

from typing import Any

import traitlets
from ipywidgets import Widget, widget_serialization

from lora_lab_widgets.panel import PanelWidget


class MarimoPage(PanelWidget):
    """Draws boxes, lines and choices of ipywidgets as the page's own, with the panels in them.

    Attributes:
        root: the outermost of them. marimo knows the others' models, and keeps them up to date.
    """

    module = "marimo_page"
    root = traitlets.Instance(Widget).tag(sync=True, **widget_serialization)


class ShownInMarimo:
    """Mixed into a box of ipywidgets: what marimo shows in its place."""

    def _display_(self: Any) -> MarimoPage:
        return MarimoPage(root=self)
