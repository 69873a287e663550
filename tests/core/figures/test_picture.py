"""Figures as pictures: where things stand is worked out by hand, and no text is markup."""

from __future__ import annotations

import base64
import re
import struct
import xml.etree.ElementTree as ET
import zlib
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from lora_lab import figures
from lora_lab.analysis.rank_map import RankMap
from lora_lab.figures._base import THEMES, Figure, base_layout
from lora_lab.figures._picture_axes import formatted, nice_step
from tests.helpers.figure_inputs import budget, losses, view
from tests.helpers.html_pages import EVIL

SVG = "{http://www.w3.org/2000/svg}"


def parsed(figure: Any) -> ET.Element:
    return ET.fromstring(figures.picture(figure))


def plain(width: int = 300, height: int = 200) -> Any:
    """A figure whose plot is 200 × 100 pixels from (60, 40)."""
    figure = Figure(layout=base_layout(THEMES["light"], width, height))
    figure.update_layout(margin={"l": 60, "r": 40, "t": 40, "b": 60})
    return figure


def texts(root: ET.Element) -> list[str]:
    return [node.text or "" for node in root.iter(f"{SVG}text")]


def points(node: ET.Element) -> list[tuple[float, ...]]:
    return [tuple(map(float, pair.split(","))) for pair in node.attrib["points"].split()]


def test_a_line_lies_where_its_numbers_do_and_is_cut_where_one_is_missing() -> None:
    figure = plain()
    figure.add_scatter(x=[0, 5, 10, 10], y=[0, 50, np.nan, 100], mode="lines")
    figure.update_xaxes(range=[0, 10])
    figure.update_yaxes(range=[0, 100])
    lines = [points(node) for node in parsed(figure).iter(f"{SVG}polyline")]
    assert lines == [[(60, 140), (160, 90)], [(260, 40)]]


def test_a_logarithmic_axis_has_equal_room_for_each_power() -> None:
    figure = plain()
    figure.add_scatter(x=[1, 10, 100], y=[1, 10, 100], mode="lines")
    figure.update_xaxes(type="log", range=[0, 2])
    figure.update_yaxes(type="log", range=[0, 2])
    root = parsed(figure)
    (line,) = root.iter(f"{SVG}polyline")
    assert points(line) == [(60, 140), (160, 90), (260, 40)]
    assert texts(root).count("10") == 2


def test_bars_stand_on_zero_and_on_each_other() -> None:
    figure = plain()
    for amounts in ([30, 10], [20, 40]):
        figure.add_bar(orientation="h", y=["a", "b"], x=amounts, marker={"color": "#123456"})
    figure.update_layout(barmode="stack", bargap=0.5)
    figure.update_xaxes(range=[0, 100])
    figure.update_yaxes(categoryarray=["a", "b"])
    bars = list(parsed(figure).iter(f"{SVG}rect"))
    places = [(float(b.attrib["x"]), float(b.attrib["width"])) for b in bars]
    assert places == [(60, 60), (60, 20), (120, 40), (80, 80)]
    assert {float(bar.attrib["height"]) for bar in bars} == {25}
    assert [float(bar.attrib["y"]) for bar in bars[:2]] == [102.5, 52.5], "a is below"


def decoded(node: ET.Element) -> np.ndarray:
    """The pixels of a PNG, read by its own rules."""
    data = base64.b64decode(node.attrib["href"].partition(",")[2])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind = data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        (crc,) = struct.unpack(">I", data[at + 8 + size : at + 12 + size])
        assert crc == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    columns, rows, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind == [8, 6, 0, 0, 0]
    raw = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(rows, 1 + 4 * columns)
    assert not raw[:, 0].any()
    return raw[:, 1:].reshape(rows, columns, 4)


def test_a_maps_cells_have_the_scales_colors_and_none_where_nothing_is() -> None:
    figure = plain()
    scale = [[0, "rgb(0,0,0)"], [1, "rgb(200,100,50)"]]
    values = [[0.0, 1.0], [0.5, np.nan]]
    figure.add_heatmap(x=[0, 1], y=[0, 1], z=values, zmin=0, zmax=1, colorscale=scale)
    figure.update_xaxes(range=[-0.5, 1.5])
    figure.update_yaxes(range=[1.5, -0.5])  # the first row on top
    image, bar = parsed(figure).iter(f"{SVG}image")
    place = [float(image.attrib[name]) for name in ("x", "y", "width", "height")]
    assert place == [60, 40, 200, 100]
    assert decoded(image).tolist() == [
        [[0, 0, 0, 255], [200, 100, 50, 255]],
        [[100, 50, 25, 255], [0, 0, 0, 0]],
    ]
    ramp = decoded(bar)[:, 0, 0].astype(int)
    assert (ramp[0], ramp[-1]) == (200, 0), "the largest on top"
    figure.update_yaxes(range=[-0.5, 1.5])
    image, _ = parsed(figure).iter(f"{SVG}image")
    assert decoded(image)[1].tolist() == [[0, 0, 0, 255], [200, 100, 50, 255]]


def test_texts_are_as_plotly_shows_them_and_never_markup() -> None:
    figure = plain()
    figure.add_scatter(x=[0, 1], y=[0, 1], name="mean σ<sub>12</sub>")
    figure.add_annotation(text=EVIL.replace("<", "&lt;"), x=0.5, y=0.5)
    figure.add_annotation(text="<b>bold</b> & 10<sup>−3</sup>", x=0.5, y=0.5)
    figure.update_layout(showlegend=True)
    svg = figures.picture(figure)
    found = texts(ET.fromstring(svg))
    assert EVIL in found
    assert "bold & 10⁻³" in found
    assert "mean σ₁₂" in found
    assert "<script" not in svg
    assert "<img" not in svg


def rank_map() -> RankMap:
    values = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 1.5]])
    return RankMap(("q", "v"), ("0", "1", "2"), values, np.full((2, 3), 8))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    "draw",
    [
        lambda theme: figures.loss_figure(losses(300), theme=theme),
        lambda theme: figures.loss_figure([(1, 2.0)], theme=theme),
        lambda theme: figures.memory_figure(budget(), theme=theme),
        lambda theme: figures.spectrum_figure(view(), theme=theme),
        lambda theme: figures.spectrum_figure(view(zero=True), theme=theme),
        lambda theme: figures.overlap_figure(view(), theme=theme),
        lambda theme: figures.overlap_figure(view(zero=True), theme=theme),
        lambda theme: figures.effective_rank_figure(rank_map(), theme=theme),
    ],
)
def test_every_figure_of_a_report_stays_within_its_picture(draw: Any, theme: str) -> None:
    figure = draw(theme)
    root = parsed(figure)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert (width, height) == (figure.layout.width, figure.layout.height)
    shown = texts(root)
    wanted = [figure.layout.xaxis.title.text, *(note.text for note in figure.layout.annotations)]
    assert [text for text in wanted if text and "<" not in text and text not in shown] == []
    for node in root.iter():
        for x, y in (("x", "y"), ("cx", "cy"), ("x1", "y1"), ("x2", "y2")):
            if x in node.attrib and node.tag != f"{SVG}svg":
                assert -1 <= float(node.attrib[x]) <= width + 1
                assert -1 <= float(node.attrib[y]) <= height + 1
        if node.tag == f"{SVG}polyline":
            assert all(-1 <= x <= width + 1 and -1 <= y <= height + 1 for x, y in points(node))
    assert not re.search(r"\bnan\b|\binf\b", figures.picture(figure))


def test_ticks_are_round_numbers() -> None:
    assert [nice_step(least) for least in (0.3, 1, 1.2, 4.9, 51, 0)] == [0.5, 1, 2, 5, 100, 1]
    assert [formatted(*pair) for pair in ((12345.0, ",d"), (0.25, "~p"), (-1.5, ".2f"))] == [
        "12,345",
        "25%",
        "−1.50",
    ]


def test_steps_of_a_line_lie_half_way() -> None:
    figure = plain()
    figure.add_trace(go.Scatter(x=[0, 10], y=[0, 100], mode="lines", line={"shape": "hvh"}))
    figure.update_xaxes(range=[0, 10])
    figure.update_yaxes(range=[0, 100])
    (line,) = parsed(figure).iter(f"{SVG}polyline")
    assert points(line) == [(60, 140), (160, 140), (160, 40), (260, 40)]
