"""The workbench in a real marimo in a real Chromium: it paints, trains, and draws its figures."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.lab import ROOT, START_SECONDS, free_port

pytestmark = pytest.mark.browser
NOTEBOOK = """\
import marimo

app = marimo.App(width="full")


@app.cell
def _():
    import sys

    sys.path[:0] = [{root!r}, {widgets!r}]
    import torch

    torch.set_num_threads(1)
    from lora_lab_widgets import Workbench
    from tests.helpers.tiny_chat import tiny_chat_model

    wb = Workbench(
        *tiny_chat_model(), max_steps=4, per_device_train_batch_size=2, max_length=96,
        output_dir={runs!r},
    )
    wb
    return (wb,)


@app.cell
def _(wb):
    wb.grid
    return


if __name__ == "__main__":
    app.run()
"""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`marimo run` of a notebook with a small workbench; yields its address."""
    notebook, port = folder / "bench.py", free_port()
    names = {"root": str(ROOT), "widgets": str(ROOT / "widgets"), "runs": str(folder / "runs")}
    notebook.write_text(NOTEBOOK.format(**names))
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "marimo", "run", str(notebook), "--headless", "--no-token"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    places = {name: str(folder / "own") for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | places)
    try:
        _wait(address, server)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, "marimo did not start"
            assert time.monotonic() < end, "marimo does not answer"
            time.sleep(0.1)


def test_the_whole_bench_works(chromium: Browser, tmp_path: Path) -> None:
    own_page = contextlib.closing(chromium.new_page(viewport={"width": 1300, "height": 1600}))
    with own_page as page, serving(tmp_path) as address:
        page.set_default_timeout(60_000)
        page.goto(address)
        start = page.get_by_role("button", name="Start", exact=True).first
        expect(start).to_be_enabled(timeout=60_000)
        page.get_by_role("button", name="all linear").first.click()
        expect(page.get_by_text("28 of 28 matrices").first).to_be_visible(timeout=60_000)
        start.click()
        expect(page.get_by_text("step 4 / 4")).to_be_visible(timeout=120_000)
        expect(page.locator(".ll-delta-spectrum .main-svg").first).to_be_visible(timeout=60_000)
        expect(page.locator(".ll-delta-overlap .main-svg").first).to_be_visible()
        picker = page.locator("select").filter(has_text="layer 0 · q").first
        picker.select_option(label="layer 0 · q")
        expect(page.get_by_text("layer 0 · q · effective rank").first).to_be_visible()
        page.get_by_role("button", name="Open the analysis").click()
        expect(page.locator(".ll-lab-words").first).to_be_visible(timeout=60_000)
        expect(page.locator(".ll-laboratory .main-svg").first).to_be_visible()
        assert page.locator(".ll-error:visible").count() == 0
