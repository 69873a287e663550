"""A hub on this machine that has one model: the requests of huggingface_hub, answered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves files of one repository.

    Args:
        files: {name: bytes}.
        hub_id: of the form owner/name.
        licensed: as the card states it.

    Attributes:
        url: for HF_ENDPOINT.
        asked: paths that were asked for, in order.
        let: cleared, a file's second half waits for it.
        half: set when somebody has a file's first half.
    """

    def __init__(self, files: Mapping[str, bytes], hub_id: str, licensed: str) -> None:
        self.files, self.hub_id, self.license = dict(files), hub_id, licensed
        self.asked: list[str] = []
        self.let, self.half = threading.Event(), threading.Event()
        self.let.set()
        self.url = ""

    def info(self) -> dict[str, object]:
        siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
        card = {"license": self.license}
        return {"id": self.hub_id, "sha": COMMIT, "siblings": siblings, "cardData": card}

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
            for name, data in self.files.items()
        ]


def etag(data: bytes) -> str:
    """Return what names a file's content."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve it on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Print nothing."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(path)
            if path.startswith(f"/api/models/{hub.hub_id}"):
                is_tree = "/tree/" in path
                data = json.dumps(hub.tree() if is_tree else hub.info()).encode()
                self.send(200, data, body, {"Content-Type": "application/json"})
                return
            name = path.rpartition("/")[2]
            if f"/{hub.hub_id}/resolve/" not in path or name not in hub.files:
                self.send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
                return
            data = hub.files[name]
            self.send(200, data, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag(data)}"'})

        def send(self, code: int, data: bytes, body: bool, headers: Mapping[str, str]) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not body:
                return
            with contextlib.suppress(OSError):  # who asked has ended
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                if "ETag" in headers:
                    hub.half.set()
                    hub.let.wait(30)
                self.wfile.write(data[len(data) // 2 :])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.let.set()
        server.shutdown()
        server.server_close()
        thread.join()
