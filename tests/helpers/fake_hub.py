"""A hub on this machine that has one model: the requests of huggingface_hub, answered."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

Hub = TypeVar("Hub", bound="FakeHub")
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


class PushHub(FakeHub):
    """A hub that takes files: a repository is made, and commits add to it.

    Attributes:
        made: what repositories were asked for: name, private.
        refuses: the status with which every commit is answered; 0: it is taken.
    """

    def __init__(self) -> None:
        super().__init__({}, "", "")
        self.made: list[dict[str, object]] = []
        self.repos: dict[str, dict[str, bytes]] = {}
        self.refuses = 0

    def post(self, path: str, body: bytes) -> tuple[int, object]:
        """Return the status and the answer to what was sent."""
        self.asked.append(path)
        if path == "/api/repos/create":
            told = json.loads(body)
            owner = told.get("organization") or "me"
            name = f"{owner}/{told['name']}"
            private = told.get("private", told.get("visibility") == "private")
            self.made.append({"name": name, "private": private})
            self.repos[name] = {}
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]
            ]
            return 200, {"files": [{**f, "shouldIgnore": False, "oid": None} for f in files]}
        if self.refuses:
            return self.refuses, {"error": "you may not write here"}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.repos[name][value["path"]] = base64.b64decode(value["content"])
        url = f"{self.url}/{name}/commit/{COMMIT}"
        return 200, {"commitUrl": url, "commitOid": COMMIT, "success": True, "hookOutput": ""}

    def has(self, path: str) -> bool:
        """Whether a path of its API is that of a repository that is there."""
        return "/".join(path.split("/")[3:5]) in self.repos


class _Handler(BaseHTTPRequestHandler):
    """Answers for the hub that `hub` is set to."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        assert isinstance(self.hub, PushHub)
        code, told = self.hub.post(self.path.partition("?")[0], sent)
        data = json.dumps(told).encode()
        self.send(code, data, True, {"Content-Type": "application/json"})

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(path)
        if isinstance(self.hub, PushHub):
            code, more = (
                (200, {}) if self.hub.has(path) else (404, {"X-Error-Code": "RepoNotFound"})
            )
            name = "/".join(path.split("/")[3:5])
            data = json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode()
            self.send(code, data, body, {"Content-Type": "application/json", **more})
            return
        if path.startswith(f"/api/models/{self.hub.hub_id}"):
            is_tree = "/tree/" in path
            data = json.dumps(self.hub.tree() if is_tree else self.hub.info()).encode()
            self.send(200, data, body, {"Content-Type": "application/json"})
            return
        name = path.rpartition("/")[2]
        if f"/{self.hub.hub_id}/resolve/" not in path or name not in self.hub.files:
            self.send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            return
        data = self.hub.files[name]
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
                self.hub.half.set()
                self.hub.let.wait(30)
            self.wfile.write(data[len(data) // 2 :])


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve it on a free port of this machine."""

    handler = type("OfThisHub", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
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
