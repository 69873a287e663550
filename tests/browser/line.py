"""What carries a page's connections to a server, and can be cut as a closed laptop's are."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Line:
    """A port that leads to another one of this machine, until it is cut.

    >>> with Line(server_port) as line:
    ...     page.goto(f"http://127.0.0.1:{line.port}/lab")
    ...     line.cut()
    ...     line.mend()
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        self._whole = True
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._door.shutdown(socket.SHUT_RDWR)  # ends the wait for the next one
        self._door.close()
        self.cut()

    def cut(self) -> None:
        """End all connections; new ones are refused."""
        with self._lock:
            self._whole = False
            ends, self._ends = self._ends, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Take new connections again."""
        self._whole = True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the door is closed
            while True:
                here, _ = self._door.accept()
                threading.Thread(target=self._lead, args=(here,), daemon=True).start()

    def _lead(self, here: socket.socket) -> None:
        there = socket.create_connection(("127.0.0.1", self._to))
        with here, there:
            with self._lock:
                if not self._whole:
                    return
                self._ends |= {here, there}
            back = threading.Thread(target=_carry, args=(there, here), daemon=True)
            back.start()
            _carry(here, there)
            back.join()
            with self._lock:
                self._ends -= {here, there}


def _carry(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes, and at last that nothing more does."""
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
