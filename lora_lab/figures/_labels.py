"""Texts beside points that cover neither each other nor the points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LETTER = 6.6  # pixels of a letter, in wide fonts too
_LINE = 14.0  # pixels of height of a label
_DOT = 6.0  # pixels about a point that stay free
_STROKE = 2.0  # pixels about a line
_EVERY = 8.0  # pixels between two boxes that stand for a line
_RINGS = 12
_DIRECTIONS = 16


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def about(cls, x: float, y: float, width: float, height: float) -> Box:
        """Return the box of a size about its centre."""
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    def overlap(self, other: Box) -> float:
        """Return the area, in square pixels, that both cover."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, across) * max(0.0, down)


@dataclass(frozen=True)
class Label:
    """Where a label's centre stands from its point, in pixels, y downwards.

    Attributes:
        dx, dy: the distance.
        far: it does not stand right beside the point, so that it needs a line to it.
        box: what it covers.
    """

    dx: float
    dy: float
    far: bool
    box: Box


def text_box(text: str, x: float, y: float) -> Box:
    """Return what a text covers about its centre."""
    return Box.about(x, y, _LETTER * len(text) + 4, _LINE)


def line_boxes(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """Return small boxes along a line: what it covers."""
    count = max(1, math.ceil(math.dist(start, end) / _EVERY))
    shares = [k / count for k in range(1, count)]
    return [
        Box.about(
            start[0] + share * (end[0] - start[0]),
            start[1] + share * (end[1] - start[1]),
            2 * _STROKE,
            2 * _STROKE,
        )
        for share in shares
    ]


def place_labels(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    size: tuple[float, float],
    obstacles: Sequence[Box] = (),
) -> list[Label]:
    """Find each text a place: right beside its point if that is free, else farther out.

    Points in a crowd choose first. Where nothing is free the place with the least overlap is
    taken.

    Args:
        points: (x, y) in pixels from the plot's upper left corner.
        texts: one a point; an empty one needs no place, but its point stays free.
        size: width and height of the plot in pixels.
        obstacles: what else is to stay free.
    """
    dots = [Box.about(x, y, 2 * _DOT, 2 * _DOT) for x, y in points]
    taken = [*dots, *obstacles]
    found: dict[int, Label] = {}
    named: list[Box] = []
    for i in sorted(range(len(points)), key=lambda i: _nearest(points, i)):
        label = _best(points[i], texts[i], size, taken, named)
        found[i] = label
        if texts[i]:
            named.append(label.box)
            taken += [label.box, *_leader(points[i], label)]
    return [found[i] for i in range(len(points))]


def _best(
    point: tuple[float, float],
    text: str,
    size: tuple[float, float],
    taken: Sequence[Box],
    named: Sequence[Box],
) -> Label:
    """Return the first free place, else the one that covers least.

    A label keeps off all that is `taken`; its line may cross points, but not the labels `named`.
    """
    plot = Box(0, 0, *size)
    best, least = None, math.inf
    for dx, dy, far in _places(text):
        box = text_box(text, point[0] + dx, point[1] + dy)
        label = Label(dx, dy, far, box)
        area = (box.right - box.left) * (box.bottom - box.top)
        covered = sum(box.overlap(other) for other in taken) + 4 * (area - box.overlap(plot))
        covered += sum(part.overlap(name) for part in _leader(point, label) for name in named)
        if covered < least - 1e-6:
            best, least = label, covered
        if not least:
            break
    assert best is not None
    return best


def _leader(point: tuple[float, float], label: Label) -> list[Box]:
    """Return what the line from a point to a far label covers."""
    if not label.far:
        return []
    return line_boxes(point, (point[0] + label.dx, point[1] + label.dy))


def _places(text: str) -> Iterator[tuple[float, float, bool]]:
    """Yield offsets of a label's centre, the most natural first."""
    box = text_box(text, 0, 0)
    across, down = box.right + _DOT, box.bottom + _DOT
    for dx, dy in ((across, 0), (-across, 0), (0, -down), (0, down)):
        yield dx, dy, False
    for ring in range(_RINGS):
        for k in range(_DIRECTIONS):
            angle = 2 * math.pi * k / _DIRECTIONS
            yield (
                (across + 10 * ring) * math.cos(angle),
                (down + 10 * ring) * math.sin(angle),
                ring > 0,
            )


def _nearest(points: Sequence[tuple[float, float]], i: int) -> float:
    return min((math.dist(points[i], p) for j, p in enumerate(points) if j != i), default=math.inf)
