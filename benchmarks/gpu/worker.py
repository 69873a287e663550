"""A process that runs lines: one that fails, hangs or kills its process costs no other line."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import traceback
from multiprocessing.connection import Connection
from typing import Any

from benchmarks._measure import Row
from benchmarks.gpu.lines import Line, Place

_START = 60  # seconds; a process imports torch and transformers before its first line


class Worker:
    """Runs lines in a process of its own, which is made anew after one that failed.

    A CUDA error spoils all that its process does afterwards, and a line that was broken off leaves
    memory and switches behind.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._process: Any = None
        self._link: Any = None

    @property
    def start_seconds(self) -> int:
        """What the next line may take beside its own seconds."""
        return _START if self._process is None else 0

    def run(self, line: Line, seconds: float) -> tuple[list[Row], str]:
        """Run one line for at most so many seconds; return its rows, and a traceback or ""."""
        if self._process is None:
            self._start()
        self._link.send(line)
        try:
            if not self._link.poll(seconds):
                raise TimeoutError(f"broken off after {seconds:.0f} s")
            rows, details = self._link.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            rows, details = _failed(line, f"its process ended with exit status {code}"), ""
        except TimeoutError as error:
            rows, details = _failed(line, str(error)), ""
        else:
            if not details:
                return rows, ""
        self.close()
        return rows, details

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._link.close()
            self._process = self._link = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._link, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._place), daemon=True)
        self._process.start()
        theirs.close()


def _serve(link: Connection, place: Place) -> None:
    """Answer each line with its rows, until nobody asks any more."""
    while True:
        try:
            line = link.recv()
        except EOFError:
            return
        try:
            module, _, function = line.check.partition(":")
            check = getattr(importlib.import_module(module), function)
            link.send((check(place), ""))
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            rows = _failed(line, f"{type(error).__name__}: {said}")
            link.send((rows, traceback.format_exc()))
        gc.collect()
        if place.device == "cuda":
            import torch

            torch.cuda.empty_cache()


def _failed(line: Line, why: str) -> list[Row]:
    return [Row(line.what, "failed", line.expected, False, why)]
