"""What a command prints, to readers that may go away while it works."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from lora_lab.errors import visible
from lora_lab.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console

# What rich writes: colors, the cursor's moves and its hiding, ends of a line.
_STYLE = re.compile(r"(\x1b\[(?:[0-9;]*m|[0-9]*[A-HJK]|\?25[lh])|\r)")
_OF_A_BAR = re.compile(r"\r|(?:\n|\x1b\[A)+$")
_GONE = errno.EPIPE, errno.EIO, errno.EBADF  # of a pipe, a terminal, a file


class Steady:
    """A stream without secrets, that names what a terminal would obey, and outlives its readers.

    Attributes:
        lost: it cannot.
        problem: why not, unless its reader has merely gone away; "" else.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.lost = False
        self.problem = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text without secrets and what steers a terminal; see `TextIO.write`."""
        bar = _OF_A_BAR.match(text)  # tqdm's, of a download
        start = bar.end() if bar else 0
        return self.write_styled(text[:start] + redacted(visible(text[start:])))

    def write_styled(self, text: str) -> int:
        """Write a text as it is: rich's, or JSON, which has none of both."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush; see `TextIO.flush`."""
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        if self.lost:
            return
        try:
            act()
        except (OSError, ValueError) as error:  # ValueError: it was closed on this side
            self.lost = True
            if isinstance(error, OSError) and error.errno not in _GONE:
                self.problem = error.strerror or str(error)

    def discard(self) -> None:
        """Have what stands in the buffer go nowhere: Python writes it out at its end, else."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class _Styled:
    """A stream for rich, whose colors and moves of the cursor pass, and nothing else does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write; see `TextIO.write`."""
        clean = "".join(
            part if _STYLE.fullmatch(part) else redacted(visible(part))
            for part in _STYLE.split(text)
        )
        write = getattr(self._stream, "write_styled", self._stream.write)
        return cast(int, write(clean))


def console(*, stderr: bool = False, **options: Any) -> Console:
    """Return rich's console on what is stdout or stderr now. What it is given it shows as it is.

    Args:
        stderr: on that.
        options: of `rich.console.Console`.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=cast(TextIO, _Styled(stream)), **options)


@contextlib.contextmanager
def steady_output() -> Iterator[Steady]:
    """Let those who read stdout and stderr go away, and the terminal close, and go on.

    Yields:
        What stands for stdout in the block.
    """
    _occupy_standard_files()
    out, err = Steady(sys.stdout), Steady(sys.stderr)
    with (
        contextlib.redirect_stdout(cast(TextIO, out)),
        contextlib.redirect_stderr(cast(TextIO, err)),
        _past_hangup(),
    ):
        try:
            yield out
        finally:
            for stream in (out, err):
                stream.flush()
                if stream.lost:
                    stream.discard()


def _occupy_standard_files() -> None:
    """Open files 0 to 2 if the shell has closed them: a run's own files would get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


@contextlib.contextmanager
def _past_hangup() -> Iterator[None]:
    """Outlive the terminal, as under `nohup`; the other signals are as before."""
    number = getattr(signal, "SIGHUP", None)  # Windows has none
    main = threading.current_thread() is threading.main_thread()
    if number is None or not main or signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return
    signal.signal(number, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)
