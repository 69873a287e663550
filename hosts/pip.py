"""pip, with a line that says what it is at: which file, how much of it, for how long."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

_COMES = re.compile(r"\s*Downloading (?:\S*/)?(\S+)(?: \(([\d.]+ \w+)\))?")
_SO_FAR = re.compile(r"Progress (\d+) of (\d+)")
_LAST_LINES = 30
_TRIES = 3  # of a download that breaks off
_PAUSE = {True: 0.5, False: 20.0}  # seconds between two drawings: on a terminal, in a log


class PipError(Exception):
    """pip has failed; the text is the end of what it said."""


class Pip:
    """The pip of an environment.

    Args:
        python: of the environment.
        folder: in which it runs; the working directory where none is named.
    """

    def __init__(self, python: Path, folder: Path | None = None) -> None:
        self.python, self._folder = python, folder
        self._start = time.monotonic()
        self._terminal = sys.stdout.isatty()

    def install(self, what: str, *arguments: str) -> None:
        """Install something, and say so.

        Raises:
            PipError: that failed.
        """
        code, said, _ = self._run(what, arguments)
        if code:
            raise PipError(f"{what} could not be installed:\n{said}")

    def tries(self, what: str, *arguments: str) -> bool:
        """Install something if that can be had; return whether it could.

        Raises:
            PipError: it can be had, and its download broke off each time.
        """
        for _ in range(_TRIES):
            code, said, came = self._run(what, arguments)
            if code == 0:
                return True
            if not came:
                return False
        raise PipError(
            f"{what}: its download broke off {_TRIES} times; the same command tries again:\n{said}"
        )

    def version(self, package: str) -> str | None:
        """Return the version of a package that is installed; None: there is none."""
        code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
        asked = [str(self.python), "-c", code, package]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        return found.stdout.strip() or None

    def versions(self) -> dict[str, str]:
        """Return {package: version} of all that is installed."""
        asked = [str(self.python), "-m", "pip", "list", "--format=freeze"]
        listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        return dict(line.split("==", 1) for line in listed.splitlines() if "==" in line)

    def passed(self) -> str:
        """Return how long all of it has taken so far."""
        minutes, seconds = divmod(round(time.monotonic() - self._start), 60)
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"

    def _run(self, what: str, arguments: tuple[str, ...]) -> tuple[int, str, bool]:
        """Run it; return its exit code, the end of what it said, and whether a download began."""
        command = [str(self.python), "-m", "pip", "install", "--no-input"]
        command += ["--disable-pip-version-check"]
        if self._tells_bytes():
            command += ["--progress-bar", "raw"]
        running = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            text=True,
            errors="replace",
        )
        state, over = _State(what), threading.Event()
        telling = threading.Thread(target=self._tell, args=(state, over), daemon=True)
        telling.start()
        for line in running.stdout or ():
            state.hear(line)
        code = running.wait()
        over.set()
        telling.join()
        end = "done" if code == 0 else "broke off" if state.came else "not to be had"
        self._draw(f"{what}: {end}{state.sum()}", last=True)
        return code, "".join(state.said), state.came

    def _tells_bytes(self) -> bool:
        """Whether this pip knows "raw", which came with 24.1."""
        numbers = re.findall(r"\d+", self.version("pip") or "")
        return [int(number) for number in numbers[:2]] >= [24, 1]

    def _tell(self, state: _State, over: threading.Event) -> None:
        self._draw(state.line())
        while not over.wait(_PAUSE[self._terminal]):
            self._draw(state.line())

    def _draw(self, line: str, last: bool = False) -> None:
        text = f"[{self.passed():>10}] {line}"
        if not self._terminal:
            print(text, flush=True)
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)


class _State:
    """What pip has said so far of one command."""

    def __init__(self, what: str) -> None:
        self._what, self._now = what, ""
        self.came = False  # something of a file
        self._bytes = self._done = 0
        self.said: deque[str] = deque(maxlen=_LAST_LINES)

    def hear(self, line: str) -> None:
        """Take a line of pip's."""
        if found := _SO_FAR.match(line):
            come, of = int(found[1]), int(found[2])
            self._bytes = self._done + come
            name = self._now.partition(":")[0]
            self._now = f"{name}: {_size(come)} of {_size(of)}"
            if come == of:
                self._done = self._bytes
            return
        self.said.append(line)
        if found := _COMES.match(line):
            self._now, self.came = found[1], True
        elif line.startswith(("Installing", "Collecting")):
            self._now = "writing the files" if line.startswith("I") else line.split()[1]

    def line(self) -> str:
        """Return what it is at."""
        return f"{self._what} · {self._now}" if self._now else self._what

    def sum(self) -> str:
        """Return how much was downloaded, if anything was."""
        return f", {_size(self._bytes)} downloaded" if self._bytes else ""


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
