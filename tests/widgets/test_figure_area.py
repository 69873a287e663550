"""One figure, replaced as a whole, with words under it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lora_lab_widgets.figure_area import FigureArea


def two_axes() -> go.Figure:
    figure = go.Figure(go.Bar(y=np.arange(3, dtype=np.float32), yaxis="y2"))
    figure.update_layout(height=200, yaxis2={"range": [0, 9]}, shapes=[{"type": "line"}])
    return figure


def plain() -> go.Figure:
    return go.Figure(go.Scatter(y=np.arange(5, dtype=np.float32)), {"height": 120})


def test_there_is_nothing_before_the_first_figure() -> None:
    area = FigureArea()
    assert area.figure is None
    assert area.layout.display == "none"
    assert not area.change(lambda figure: True)


def test_each_figure_is_one_small_message(sent: list[Any]) -> None:
    area = FigureArea()
    area.show(two_axes(), "two axes")
    sent.clear()
    area.show(plain(), "a line")
    of_figure = [message["state"] for name, message in sent if name == "Plot"]
    assert len(of_figure) == 1
    assert json.loads(of_figure[0]["figure"]) == json.loads(plain().to_json())
    assert "a line" in area._words.value


def test_a_change_in_place_is_one_message(sent: list[Any]) -> None:
    area = FigureArea()
    area.show(plain(), "before")
    sent.clear()

    def update(figure: Any) -> bool:
        figure.data[0].y = np.ones(5, np.float32)
        figure.layout.title.text = "moved"
        return True

    assert area.change(update)
    ((name, message),) = sent
    assert name == "Plot"
    assert json.loads(message["state"]["figure"])["layout"]["title"]["text"] == "moved"
    np.testing.assert_array_equal(area.figure.data[0].y, 1)


def test_words_are_text() -> None:
    area = FigureArea()
    area.show(plain(), "<img src=x onerror=alert(1)>")
    assert "<img" not in area._words.value
    assert "&lt;img" in area._words.value


def test_a_figure_of_what_was_asked_before_turns_pale() -> None:
    area = FigureArea()
    area.show(plain(), "")
    area.fade(True)
    area.fade(True)
    assert area._dom_classes.count("ll-stale-figure") == 1
    area.fade(False)
    assert "ll-stale-figure" not in area._dom_classes
