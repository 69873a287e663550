"""plotly.js: sent once, and to a page that was reloaded when it asks."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go
from ipywidgets import Widget
from ipywidgets.embed import embed_data

from lora_lab import figures
from lora_lab_widgets import Workbench
from lora_lab_widgets.plot import Plot, PlotlyScript
from tests.helpers.tiny_chat import tiny_chat_model


def asked(plot: Plot, data: dict[str, Any]) -> None:
    """Hear a message of the page, as ipykernel brings it."""
    plot.library._handle_msg({"content": {"data": data}, "buffers": []})


def test_a_page_that_is_reloaded_gets_plotly_js_when_it_asks(sent: list[Any]) -> None:
    plot = Plot()
    plot.show(go.Figure())
    *_, first = (message["state"] for name, message in sent if name == "PlotlyScript")
    sent.clear()
    asked(plot, {"method": "request_state"})
    ((_, whole),) = sent
    assert "_esm" in whole["state"]
    assert "source" not in whole["state"]
    sent.clear()
    asked(plot, {"method": "custom", "content": {"type": "source"}})
    assert sent == [("PlotlyScript", {"method": "update", "state": first, "buffer_paths": []})]
    assert first == {"source": figures.plotly_js()}


def test_the_state_that_a_reloaded_page_waits_for_is_small() -> None:
    wb = Workbench(*tiny_chat_model())
    wb.session.plotly.bring()
    states = [widget.get_state(drop_defaults=False) for widget in _below(wb.box)]
    assert len(json.dumps(states, default=repr)) < 1_000_000


def test_a_page_without_python_has_plotly_js_with_it() -> None:
    """`embed_minimal_html` writes what `embed_data` returns."""
    plot = Plot()
    plot.show(go.Figure())
    states = embed_data([plot], drop_defaults=True)["manager_state"]["state"]
    drawn = states[plot.model_id]["state"]
    library = states[drawn["library"].removeprefix("IPY_MODEL_")]["state"]
    assert library["source"] == figures.plotly_js()
    assert drawn["_esm"] == Plot._esm
    assert library["_esm"] == PlotlyScript._esm


def _below(widget: Any) -> list[Widget]:
    """Return a widget and all that its traits name."""
    found, line = [widget], [widget]
    while line:
        each = line.pop()
        for name in each.keys:
            value = getattr(each, name)
            for other in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(other, Widget) and other not in found:
                    found.append(other)
                    line.append(other)
    return found
