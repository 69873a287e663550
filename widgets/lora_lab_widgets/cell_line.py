"""A line in the output of the cell that runs: what takes time in it, until that is over."""

from __future__ import annotations

import html
import sys
import threading
import time
from typing import Any, Protocol, Self

from lora_lab.redaction import redacted

_PAUSE = 1.0  # seconds between two drawings


class Tell(Protocol):
    """Says what is being done, and how far it is: 0 to 1, or None where nobody knows."""

    def __call__(self, text: str, share: float | None = None) -> None:
        """Say it."""


class CellLine:
    """A line with a bar in a notebook's running cell; where no kernel is, nothing is shown.

    It stands there from `tell` until the block ends, and counts the seconds from a thread of its
    own, whatever keeps the cell. It is no widget: each host of a kernel draws it, and nothing of
    it is to be restored when a page is opened again.

    >>> with CellLine("interrupt the kernel (■) to cancel") as line:
    ...     line.tell("reading the weights, 538 MB")

    Args:
        hint: what stands behind it.
    """

    def __init__(self, hint: str = "") -> None:
        self._hint = f" · {hint}" if hint else ""
        self._start = time.monotonic()
        self._text = ""
        self._share: float | None = None
        self._handle: Any = None
        self._over = threading.Event()
        self._lock = threading.Lock()  # who draws last is who was told last

    def __enter__(self) -> Self:
        return self

    def tell(self, text: str, share: float | None = None) -> None:
        """Show what is being done now; see `Tell`."""
        with self._lock:
            self._text, self._share = text, share
            if self._handle is None:
                self._handle = _shown_in_cell(self._bundle())
                if self._handle is not None:
                    threading.Thread(target=self._count, daemon=True).start()
            else:
                self._handle.update(self._bundle(), raw=True)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over.set()
            if self._handle is not None:
                self._handle.update({"text/plain": "", "text/html": ""}, raw=True)

    def _count(self) -> None:
        while not self._over.wait(_PAUSE):
            with self._lock:
                if not self._over.is_set():
                    self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        seconds = round(time.monotonic() - self._start)
        text = redacted(f"LoRA Lab: {self._text} · {seconds} s{self._hint}")  # a URL may have some
        value = "" if self._share is None else f' value="{self._share:.3f}"'
        # Without a value it moves by itself, also while a library keeps the kernel from telling.
        bar = f'<progress max="1"{value}></progress>'
        return {"text/plain": text, "text/html": f"<div>{bar} {html.escape(text)}</div>"}


def _shown_in_cell(bundle: dict[str, str]) -> Any:
    """Show it in the cell's output; return what changes it, None where there is no kernel."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    if not hasattr(get_ipython(), "kernel"):
        return None
    return display(bundle, raw=True, display_id=True)
