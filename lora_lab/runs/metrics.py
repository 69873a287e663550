"""metrics.jsonl read back, some thousand lines at a time: a million steps are seconds nowhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import numpy as np

from lora_lab._util.files import open_own
from lora_lab._util.json_files import parse_json

METRICS_FILE = "metrics.jsonl"
EVALUATED = "eval_"  # before the name of a held-out score, as in HF Trainer's log
_MOST_BYTES = 2**31  # some ten million steps
_PIECE = 2**20  # bytes; a line that is longer is none of ours
_TAIL = 4096  # bytes that hold the last line


@dataclass(frozen=True)
class LossCurve:
    """The losses of a run, in the order of its lines.

    Attributes:
        steps: (N,) int64, of the lines that have a loss.
        losses: (N,) float64.
    """

    steps: np.ndarray
    losses: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def pairs(self) -> tuple[tuple[int, float], ...]:
        """Return (step, loss) of every step: in 120 bytes, where the arrays have 16."""
        return self._pairs

    @cached_property
    def _pairs(self) -> tuple[tuple[int, float], ...]:
        return tuple(zip(self.steps.tolist(), self.losses.tolist(), strict=True))


NO_LOSSES = LossCurve(np.empty(0, np.int64), np.empty(0))


class _Line(msgspec.Struct, gc=False):
    """What a curve needs of a line."""

    step: Annotated[int, msgspec.Meta(gt=-(10**18), lt=10**18)]
    loss: float | None = None


def read_losses(folder: Path) -> LossCurve:
    """Return the losses in a run's metrics.jsonl; a damaged line costs itself alone."""
    lines = msgspec.json.Decoder(_Line)
    steps, losses = [np.empty(0, np.int64)], [np.empty(0)]
    for piece in _pieces(folder):
        try:
            found = lines.decode_lines(piece)
        except (msgspec.MsgspecError, RecursionError):
            found = []
        # Damaged, unless each line begins and ends an object: one may hold two, a blank one none.
        if not len(found) == piece.count(b"\n") == piece.count(b"}\n") == _begun(piece):
            found = [_Line(row["step"], row.get("loss")) for row in _rows(piece)]
        steps.append(np.array([line.step for line in found if line.loss is not None], np.int64))
        losses.append(np.array([line.loss for line in found if line.loss is not None], np.float64))
    return LossCurve(np.concatenate(steps), np.concatenate(losses))


def _begun(piece: bytes) -> int:
    """Return how many of the lines begin as an object does."""
    return piece.count(b"\n{") + piece.startswith(b"{")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl; a damaged one costs itself alone."""
    return [row for piece in _pieces(folder) for row in _rows(piece)]


def read_evaluations(folder: Path) -> list[dict[str, float]]:
    """Return the held-out scores in a run's metrics.jsonl: {"step": …, "loss": …, …} each."""
    mark = f'"{EVALUATED}'.encode()
    lines = (line for piece in _pieces(folder) for line in piece.split(b"\n") if mark in line)
    return [
        {"step": row["step"]}
        | {k.removeprefix(EVALUATED): v for k, v in row.items() if k.startswith(EVALUATED)}
        for row in filter(None, map(_row, lines))
    ]


def read_last_row(folder: Path) -> Mapping[str, Any]:
    """Return the last step's whole line of a run's metrics.jsonl, {} where there is none."""
    try:
        with os.fdopen(open_own(folder / METRICS_FILE, os.O_RDONLY), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read(2 * _TAIL).split(b"\n")[:-1]
    except OSError:
        return {}
    return next((row for row in map(_row, reversed(lines)) if row and "loss" in row), {})


def cut_lines(file: IO[bytes], size: int) -> None:
    """Cut an open file after the last whole line that ends within its first `size` bytes."""
    end = min(size, file.seek(0, os.SEEK_END))
    newline = -1
    while newline < 0 < end:
        start = max(0, end - _PIECE)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        end = start + newline + 1 if newline >= 0 else start
    file.truncate(max(0, end))


def pieces(path: Path) -> Iterator[bytes]:
    """Yield the whole lines of a file, as many at a time as are read at once.

    Raises:
        OSError: it is not there, or is a link, a pipe or a device.
        ValueError: it is larger than any run's.
    """
    with os.fdopen(open_own(path, os.O_RDONLY), "rb", buffering=0) as file:
        if (size := os.fstat(file.fileno()).st_size) > _MOST_BYTES:
            raise ValueError(f"it has {size} bytes; at most {_MOST_BYTES} are read")
        rest = b""
        while piece := file.read(_PIECE):
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                yield lines + newline
            elif len(rest) > _PIECE:
                rest = b""


def _pieces(folder: Path) -> Iterator[bytes]:
    with contextlib.suppress(OSError, ValueError):
        yield from pieces(folder / METRICS_FILE)


def _rows(lines: bytes) -> Iterator[dict[str, Any]]:
    return (row for row in map(_row, lines.split(b"\n")) if row is not None)


def _row(line: bytes) -> dict[str, Any] | None:
    """Return a line's {"step": …} and its other numbers; None where it is no such line."""
    try:
        row = parse_json(line)
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
    except (ValueError, AttributeError):
        return None
    return numbers if type(numbers.get("step")) is int else None
