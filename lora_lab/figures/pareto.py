"""What scores cost: the front of methods that no other one beats, beside PEFT's own comparison."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from lora_lab._util.format import format_bytes, format_count, format_number
from lora_lab.analysis.choices import Choices
from lora_lab.analysis.methods import MethodComparison
from lora_lab.analysis.pareto import Against, FrontPoint, front_of, pareto_points
from lora_lab.captions.comparisons import AGAINST
from lora_lab.captions.delta_w import measured, rate_text
from lora_lab.figures._base import THEMES, Colors, Figure, Theme, base_layout, plain
from lora_lab.figures._labels import Box
from lora_lab.figures._method_look import look
from lora_lab.figures._scatter import Plot, Point, draw
from lora_lab.paper.printed import printed_table
from lora_lab.tasks.metrics import metric_of

_BESIDE = 820  # pixels of width from which PEFT's points stand beside, not below
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 26, 44  # pixels about each plot
_HEIGHT = 420
_AXES = {
    "parameters": "log₁₀ of the trainable parameters",
    "seconds": "log₁₀ of the seconds of training",
    "memory": "peak memory, GiB",
    "kept": "loss on the base model's own text, nats per token",
}
_LOG = "parameters", "seconds"
_GIB = 2**30
_PEFT = {  # column, and what its axis says
    "parameters": ("parameters", _AXES["parameters"]),
    "seconds": ("seconds", _AXES["seconds"]),
    "memory": ("peak memory, GiB", _AXES["memory"]),
    "kept": ("forgetting", "rise of the loss on Wikipedia, nats per token"),
}
_PEFT_NAMES = {"lora": "LoRA", "adalora": "AdaLoRA", "full-finetuning": "FT"}


def pareto_figure(
    data: MethodComparison | Choices,
    against: Against = "parameters",
    *,
    published: bool = True,
    theme: Theme = "either",
    width: int = 900,
    height: int | None = None,
) -> go.Figure:
    """Draw each method's score over what it cost, with the front that no other method beats.

    The dotted line joins the front; bars are the standard deviation over seeds.

    Args:
        data: what `compare_methods` or `compare` found.
        against: trainable "parameters", "seconds" of training, peak "memory", or the loss on text
            that the base model wrote itself ("kept").
        published: put the 63 runs of PEFT's own comparison beside it: Llama-3.2-3B on MetaMathQA,
            accuracy on GSM8K over the same cost, or over what was forgotten.
        theme: of the page.
        width, height: in pixels; below 820 PEFT's points stand below.

    Raises:
        ConfigError: no run has noted that cost.
    """
    colors = THEMES[theme]
    points = pareto_points(data, against)
    beside = published and width >= _BESIDE
    height = height or (2 * _HEIGHT if published and not beside else _HEIGHT)
    figure = Figure(layout=base_layout(colors, width, height))
    figure.update_layout(margin={"l": 0, "r": 0, "t": 0, "b": 0})
    middle = (width / 2, height) if beside else (width, height / 2 if published else height)
    plot = _own(data, points, against, Box(_LEFT, _TOP, *_inner(*middle)), colors)
    draw(figure, plot, colors)
    for size in dict.fromkeys(getattr(point.row, "train_examples", None) for point in points):
        own = [p for p in points if getattr(p.row, "train_examples", None) == size and p.on_front]
        _join(figure, "", [(_x(p.x, against), p.row.mean) for p in own], colors)
    if published:
        left, top = (width / 2, 0) if beside else (0, height / 2)
        box = Box(left + _LEFT, top + _TOP, *_inner(width, height))
        theirs, front = _peft(against, box, colors)
        draw(figure, theirs, colors)
        _join(figure, "2", front, colors)
    return figure


def _inner(right: float, bottom: float) -> tuple[float, float]:
    return right - _RIGHT, bottom - _BOTTOM


def _own(
    data: MethodComparison | Choices,
    points: tuple[FrontPoint, ...],
    against: Against,
    box: Box,
    colors: Colors,
) -> Plot:
    name, unit = measured(data)
    y_title = ", ".join(filter(None, (name, unit)))
    low_is_good = not metric_of(data.metric).higher_is_better
    methods = [point.row.method for point in points]
    sizes = {getattr(point.row, "train_examples", None) for point in points}
    drawn = []
    for point in points:
        row = point.row
        label = f"{row.method} {row.setting}" if methods.count(row.method) > 1 else row.method
        if len(sizes) > 1:
            label += f", {getattr(row, 'train_examples', 0):,}"
        drawn.append(
            Point(
                row.method,
                _x(point.x, against),
                row.mean,
                *look(row.method, colors),
                hover=f"{plain(label)}, learning rate {rate_text(row.learning_rate)}<br>"
                f"{AGAINST[against]}: {_cost(point.x, against)}<br>{row.score}"
                + ("<br>on the front" if point.on_front else ""),
                label=label,
                spread=row.spread or 0.0,
                x_spread=0.0 if against in _LOG else point.x_spread / _unit(against),
            )
        )
    return Plot(
        axes="",
        box=box,
        title=f"{data.model} on {data.task}",
        x_title=_AXES[against],
        y_title=f"{y_title} (lower is better)" if low_is_good else y_title,
        points=drawn,
        lines=False,
    )


def _peft(against: Against, box: Box, colors: Colors) -> tuple[Plot, list[tuple[float, float]]]:
    """Return PEFT's runs as a plot, and the places of their front."""
    found = printed_table("PEFT", "1")
    column, x_title = _PEFT[against]
    costs = [cost or 0.0 for cost in found.column(column)]
    scores = [score or 0.0 for score in found.column("accuracy")]
    front = front_of(list(zip(costs, scores, strict=True)), True)
    places = [(math.log10(cost) if against in _LOG else cost) for cost in costs]
    points = [
        Point(
            _PEFT_NAMES.get(row[0], "other methods"),
            places[number],
            scores[number],
            *look(_PEFT_NAMES.get(row[0], ""), colors),
            hover=f"{row[0]}, {row[1]}<br>{column} {row[found.header.index(column)]}<br>"
            f"{scores[number]:.1f} %",
            label=row[0] if number in front else "",
        )
        for number, row in enumerate(found.rows)
    ]
    plot = Plot(
        axes="2",
        box=box,
        title="Llama-3.2-3B on MetaMathQA (PEFT, 2026)",
        x_title=x_title,
        y_title="accuracy on GSM8K, %",
        points=points,
        lines=False,
    )
    return plot, [(places[number], scores[number]) for number in front]


def _join(figure: go.Figure, axes: str, places: list[tuple[float, float]], colors: Colors) -> None:
    """Draw the line of a front, below the points."""
    places = sorted(places)
    figure.add_scatter(
        name="front",
        x=[x for x, _ in places],
        y=[y for _, y in places],
        xaxis=f"x{axes}",
        yaxis=f"y{axes}",
        mode="lines",
        line={"color": colors.dim, "width": 1.2, "dash": "dot"},
        hoverinfo="skip",
    )


def _x(cost: float, against: Against) -> float:
    return math.log10(cost) if against in _LOG else cost / _unit(against)


def _unit(against: Against) -> float:
    return _GIB if against == "memory" else 1.0


def _cost(cost: float, against: Against) -> str:
    if against == "memory":
        return format_bytes(int(cost))
    return format_count(int(cost)) if against == "parameters" else format_number(cost)
