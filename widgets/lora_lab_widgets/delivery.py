"""A file of this machine on its way to the page's: in pieces, as servers refuse large messages.

It comes over the widget's own line, which every host has; no server has to know the file.
"""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from lora_lab.errors import ConfigError

PIECE = 512 * 1024  # bytes


def zipped_page(path: Path) -> IO[bytes]:
    """Return a page that was written just now, packed: plotly.js is most of it.

    Raises:
        OSError: it cannot be read.
    """
    return io.BytesIO(gzip.compress(path.read_bytes(), compresslevel=6))


class Delivery:
    """One file at a time, until the next one takes its place.

    Attributes:
        offer: {"token", "name", "size", "kind"} of the file, {} where there is none.
    """

    def __init__(self) -> None:
        self.offer: dict[str, Any] = {}
        self._file: IO[bytes] | None = None
        self._count = 0

    def put(self, file: IO[bytes], name: str, kind: str, about: str) -> dict[str, Any]:
        """Have a file ready for the page; return the offer.

        Args:
            file: open for reading; it is closed when another one comes.
            name: what it is called there.
            kind: "zip", or "html.gz" of a page.
            about: what it is of: a run's id.
        """
        self.drop()
        self._count += 1
        size = file.seek(0, 2)
        self._file = file
        self.offer = {
            "token": self._count,
            "name": name,
            "size": size,
            "kind": kind,
            "about": about,
        }
        return self.offer

    def put_report(self, page: IO[bytes], run: str) -> dict[str, Any]:
        """Have the report of a run, by its id, ready for the page; return the offer."""
        return self.put(page, f"report-{run.replace('/', '-')}.html", "html.gz", run)

    def drop(self) -> None:
        """Have nothing any more."""
        if self._file is not None:
            self._file.close()
        self._file, self.offer = None, {}

    def piece(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the message with the piece that the page asks for.

        Raises:
            ConfigError: another file has taken its place.
        """
        token, at = content.get("token"), content.get("at")
        if self._file is None or token != self.offer["token"] or not isinstance(at, int) or at < 0:
            raise ConfigError("this file is not there any more; ask for it again")
        self._file.seek(at)
        data = base64.b64encode(self._file.read(PIECE)).decode()
        return {"type": "piece", "token": token, "at": at, "data": data}
