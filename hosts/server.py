"""A Jupyter server of some environment, on a free port, and a browser that opens a page of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.chromium import LAUNCH_ARGS, MISSING, find
from tests.browser.lab import free_port

START_SECONDS = 120
PATIENCE = 600_000  # ms for whatever a page is to show: on a machine at work all of it comes late
_HOME = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}


def environment_of(python: Path, home: Path) -> dict[str, str]:
    """Return the variables with which that interpreter's programs run, settings of their own."""
    # An editable checkout on the path would be imported in the place of what was installed.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {name: str(home / folder) for name, folder in _HOME.items()}
    return env | {"PATH": f"{python.parent}{os.pathsep}{env['PATH']}"}


@contextlib.contextmanager
def server(
    command: Sequence[str], folder: Path, env: dict[str, str]
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a server, given its port and loopback; yield its address and its process.

    Raises:
        RuntimeError: it does not start.
    """
    port, log = free_port(), folder / "server.log"
    options = ("--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1")
    with log.open("w") as out:
        running = subprocess.Popen(
            [*command, *options], cwd=folder, env=env, stdout=out, stderr=out
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, running, log)
            yield address, running
        finally:
            running.terminate()
            try:
                running.wait(60)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _wait_for(address: str, running: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while running.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start: {log.read_text()[-500:]}")


@contextlib.contextmanager
def browser_page(picture: Path | None = None) -> Iterator[tuple[Page, str]]:
    """Yield a page of a Chromium, and its version; leave a picture of it behind.

    Raises:
        RuntimeError: there is no Chromium.
    """
    with sync_playwright() as playwright:
        path = find(playwright.chromium.executable_path)
        if path is None:
            raise RuntimeError(MISSING)
        browser = playwright.chromium.launch(executable_path=path, args=list(LAUNCH_ARGS))
        page = browser.new_page(viewport={"width": 1400, "height": 1500})
        page.on("dialog", lambda dialog: dialog.accept())
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        try:
            yield page, browser.version
        finally:
            if picture is not None:
                page.screenshot(path=picture, full_page=True)
            browser.close()
