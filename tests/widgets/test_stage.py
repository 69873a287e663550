"""The laboratory's one figure: made once, replaced as a whole, with words under it."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from lora_lab_widgets._stage import Stage


def two_axes() -> go.Figure:
    figure = go.Figure(go.Bar(y=np.arange(3, dtype=np.float32), yaxis="y2"))
    figure.update_layout(height=200, yaxis2={"range": [0, 9]}, shapes=[{"type": "line"}])
    return figure


def plain() -> go.Figure:
    return go.Figure(go.Scatter(y=np.arange(5, dtype=np.float32)), {"height": 120})


def test_nothing_is_made_before_the_first_figure() -> None:
    stage = Stage()
    assert stage.figure is None
    assert stage.layout.display == "none"
    assert not stage.change(lambda figure: True)


def test_a_figure_is_made_once_and_replaced_whole() -> None:
    stage = Stage()
    stage.show(two_axes(), "two axes")
    made = stage.figure
    assert stage._place.children == (made,)
    assert stage._place.layout.height == "200px"
    stage.show(plain(), "a line")
    assert stage.figure is made
    assert [trace.type for trace in made.data] == ["scatter"]
    # What the front end starts its next view from: nothing is left of the figure before.
    assert [trace["type"] for trace in made._widget_data] == ["scatter"]
    assert "yaxis2" not in made._widget_layout
    assert "shapes" not in made._widget_layout
    assert made._widget_layout["height"] == 120
    assert "a line" in stage._words.value


def test_replacing_a_figure_is_one_small_message(sent: list[Any]) -> None:
    stage = Stage()
    stage.show(two_axes(), "")
    sent.clear()
    stage.show(plain(), "")
    of_figure = [message for name, message in sent if name == "FigureWidget"]
    assert len(of_figure) == 1
    changes = of_figure[0]["state"]
    assert "_esm" not in changes  # the 5 MB travel once
    # No view is told to follow the way there.
    assert not [k for k, v in changes.items() if k.startswith("_py2js") and v is not None]


def test_a_change_in_place_is_one_batch_and_no_new_view(sent: list[Any]) -> None:
    stage = Stage()
    stage.show(plain(), "before")
    sent.clear()

    def update(figure: Any) -> bool:
        figure.data[0].y = np.ones(5, np.float32)
        figure.layout.title.text = "moved"
        return True

    assert stage.change(update)
    assert {name for name, _ in sent} == {"FigureWidget"}
    assert len(sent) <= 4  # plotly takes four for an update
    np.testing.assert_array_equal(stage.figure.data[0].y, 1)


def test_no_button_uploads_the_figure() -> None:
    stage = Stage()
    stage.show(plain(), "")
    assert stage.figure._config["showSendToCloud"] is False


def test_words_are_text() -> None:
    stage = Stage()
    stage.show(plain(), "<img src=x onerror=alert(1)>")
    assert "<img" not in stage._words.value
    assert "&lt;img" in stage._words.value


def test_without_figure_widgets_the_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:  # as plotly has it in their place
        def __init__(self, *_: Any, **__: Any) -> None:
            raise ImportError("Please install anywidget\nto use FigureWidget")

    monkeypatch.setattr(go, "FigureWidget", Refusing)
    stage = Stage()
    for figure in (plain(), two_axes()):
        stage.show(figure, "what it shows")
        assert "what it shows" in stage._words.value
        assert "(No figure: plotly ImportError: Please install anywidget.)" in stage._words.value
        assert stage._place.layout.height is None


def test_a_figure_of_what_was_asked_before_turns_pale() -> None:
    stage = Stage()
    stage.show(plain(), "")
    stage.fade(True)
    stage.fade(True)
    assert stage._dom_classes.count("ll-stale-figure") == 1
    stage.fade(False)
    assert "ll-stale-figure" not in stage._dom_classes
