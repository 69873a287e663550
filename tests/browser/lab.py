"""A real JupyterLab in a real Chromium: start it, open notebooks, run cells, read what they print.

>>> with JupyterLab(folder) as lab:
...     notebook = lab.open(page, ["1 + 1"])
...     notebook.run(0)
...     notebook.output(0)
'2'
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from playwright.sync_api import Error, Locator, Page, expect

from tests.helpers.clear_kernel import CLEAR

ROOT = Path(__file__).parents[2]
START_SECONDS = 180
_ENDLESS = 100_000
_SMALL_BENCH = """\
import sys; sys.path[:0] = [{here!r}]
import torch; torch.set_num_threads(1)
from tests.helpers.tiny_chat import tiny_chat_model
from lora_lab_widgets import Workbench
tiny = tiny_chat_model({pause}, {layers})
wb = Workbench(*tiny, max_steps={steps}, per_device_train_batch_size=4, max_length=96)
wb"""
_PANEL = "window.jupyterapp?.shell?.currentWidget"
_KERNEL = f"{_PANEL}?.sessionContext?.session?.kernel"
_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


def small_bench(steps: int, hurries: bool = False, layers: int = 4) -> str:
    """Return a cell that shows a workbench of a tiny model as `wb`.

    Args:
        steps: of a run; one of so many that nobody waits for its end takes a core for as long as
            the page is looked at, so it sleeps between them.
        hurries: it does not, and the page has to do with what it leaves.
        layers: of the model.
    """
    pause = 0.1 if steps >= _ENDLESS and not hurries else 0
    return _SMALL_BENCH.format(here=str(ROOT), steps=steps, pause=pause, layers=layers)


def busy_until(file: str) -> str:
    """Return a cell that keeps the kernel's main thread until its folder has that file."""
    wait = f"while not pathlib.Path({file!r}).exists(): time.sleep(0.1)"
    return f"import pathlib, time\n{wait}\nprint('ran to its end')"


class JupyterLab:
    """A server of its own: own folder, own settings, free port, no token (loopback only).

    Attributes:
        port: where it listens.
    """

    def __init__(self, folder: Path, theme: str = "JupyterLab Light", **overrides: Any) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {**_SETTINGS, "@jupyterlab/apputils-extension:themes": {"theme": theme}}
        self._settings = {**settings, **overrides}
        self.port = free_port()
        self._log = (folder / "jupyter.log").open("w")
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        app_settings = self.folder / ".app-settings"
        app_settings.mkdir(exist_ok=True)
        (app_settings / "overrides.json").write_text(json.dumps(self._settings))
        home = self.folder / ".jupyter-home"
        environment = {
            **os.environ,
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "IPYTHONDIR": str(home / "ipython"),
            "HF_HUB_OFFLINE": "1",
        }
        self._server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                f"--ServerApp.port={self.port}",
                "--ServerApp.port_retries=0",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.root_dir={self.folder}",
                "--IdentityProvider.token=",
                "--ServerApp.disable_check_xsrf=True",
                "--LabApp.expose_app_in_browser=True",
                f"--LabApp.app_settings_dir={app_settings}",
                f"--LabApp.user_settings_dir={home / 'user-settings'}",
                f"--LabApp.workspaces_dir={home / 'workspaces'}",
            ],
            env=environment,
            stdout=self._log,
            stderr=self._log,
            cwd=self.folder,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                log = (self.folder / "jupyter.log").read_text()
                raise RuntimeError(f"JupyterLab did not start:\n{log[-3000:]}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        if self._server:
            self._server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(15)
            self._server.kill()
        self._log.close()

    def open(
        self, page: Page, cells: Sequence[str], name: str = "test.ipynb", seconds: float = 60
    ) -> Notebook:
        """Open these cells, kernel started: in the notebook that the page shows, or a new one."""
        shown = Notebook(page)
        if shown.is_open():
            shown.replace(cells)
            return shown
        (self.folder / name).write_text(json.dumps(_notebook(cells)), encoding="utf-8")
        return self.visit(page, name, seconds=seconds)

    def visit(
        self, page: Page, name: str, port: int | None = None, seconds: float = 60
    ) -> Notebook:
        """Open a notebook of the folder, or open it again after a reload; by another port's way."""
        page.goto(f"http://127.0.0.1:{port or self.port}/lab/tree/{name}?reset")
        opened = Notebook(page)
        opened.wait_until_ready(seconds)
        return opened

    def shut_down_kernels(self) -> None:
        """End every kernel: what a test left training would slow the next one."""
        for kernel in json.loads(self._ask("kernels")):
            self._ask(f"kernels/{kernel['id']}", method="DELETE")

    def _ask(self, path: str, method: str = "GET") -> bytes:
        url = f"http://127.0.0.1:{self.port}/api/{path}"
        with urllib.request.urlopen(
            urllib.request.Request(url, method=method), timeout=20
        ) as answer:
            return bytes(answer.read())

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            self._ask("")
            return True
        return False


class Notebook:
    """The open notebook of a page."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def wait_until_ready(self, seconds: float = 60) -> None:
        """Wait until the notebook is shown and its kernel is idle."""
        self.page.wait_for_function(
            f"() => {_PANEL}?.content?.widgets?.length && {_KERNEL}?.status === 'idle'",
            timeout=seconds * 1000,
        )

    def replace(self, cells: Sequence[str]) -> None:
        """Put these cells in the place of all that the notebook has; its kernel stays as it is."""
        # The metadata too: what the kernel says of its language it says once.
        change = f"""cells => {{
            const {{ model }} = {_PANEL}.context;
            model.fromJSON({{ ...cells, metadata: model.toJSON().metadata }});
        }}"""
        self.page.evaluate(change, _notebook(cells))

    def clear_outputs(self) -> None:
        """Take away what the cells show, and wait until no widget is on show."""
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
        expect(self.page.locator(".jp-OutputArea .lm-Widget")).to_have_count(0)

    def restart(self) -> None:
        """Restart the kernel, and wait until it is there again."""
        self.page.evaluate(f"() => {_KERNEL}.restart()")
        self.wait_until_ready()

    def is_open(self) -> bool:
        """Return whether the page is there and shows a notebook."""
        return not self.page.is_closed() and self.page.evaluate(f"() => Boolean({_PANEL})")

    def clear(self) -> bool:
        """End the kernel's run and take its widgets away; return whether that was possible.

        A kernel that has shown a workbench has imported what takes it seconds, and a page that
        shows a notebook has loaded JupyterLab: the next test may have both.
        """
        if not self.is_open() or self.page.locator(".jp-Dialog").count():  # a failed test's
            return False
        try:
            self.wait_until_ready(20)
        except Error:  # a failed test's cell is still at work
            return False
        said = self.page.evaluate(
            f"""async code => {{
                const asked = {_KERNEL}.requestExecute({{code, silent: true}});
                return (await asked.done).content.status;
            }}""",
            CLEAR,
        )
        self.replace([""])
        return bool(said == "ok")

    def run(self, index: int, seconds: float = 60) -> None:
        """Run a cell and wait until it has ended."""
        self.start(index)
        self.wait_for(index, seconds)

    def start(self, index: int) -> None:
        """Run a cell and do not wait."""
        self.page.evaluate(
            """index => {
                const panel = jupyterapp.shell.currentWidget;
                panel.content.activeCellIndex = index;
                panel.content.widgets[index].model.executionCount = null;
                jupyterapp.commands.execute("notebook:run-cell");
            }""",
            index,
        )

    def start_all(self) -> None:
        """Run every cell, as the menu's "Run all" does, and do not wait."""
        self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")

    def wait_for(self, index: int, seconds: float = 60) -> None:
        """Wait until a started cell has ended; fail with its traceback if it raised."""
        self.page.wait_for_function(
            """index => {
                const cell = jupyterapp.shell.currentWidget.content.widgets[index].model;
                return cell.executionCount !== null && cell.executionState !== "running";
            }""",
            arg=index,
            timeout=seconds * 1000,
        )
        errors = [out for out in self.outputs(index) if out["output_type"] == "error"]
        assert not errors, "\n".join(errors[0]["traceback"])

    def save(self) -> None:
        """Save the notebook, as JupyterLab does by itself every two minutes."""
        self.page.evaluate("jupyterapp.commands.execute('docmanager:save')")

    def outputs(self, index: int) -> list[dict[str, Any]]:
        """Return a cell's outputs as the notebook file would hold them."""
        return self.page.evaluate(
            "i => jupyterapp.shell.currentWidget.content.widgets[i].model.outputs.toJSON()", index
        )

    def output(self, index: int) -> str:
        """Return the plain text that a cell printed or returned."""
        parts = []
        for out in self.outputs(index):
            text = out.get("text") or out.get("data", {}).get("text/plain", "")
            parts.append(text if isinstance(text, str) else "".join(text))
        return "".join(parts).strip()

    def cell(self, index: int) -> Locator:
        """Return the cell's element."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)


def blank_notebook() -> str:
    """Return the text of a notebook's file, with one empty cell."""
    return json.dumps(_notebook([""]))


def _notebook(cells: Sequence[str]) -> dict[str, Any]:
    """Return a notebook of code cells, as its file has it."""
    empty = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "cells": [{**empty, "id": f"cell-{i}", "source": cell} for i, cell in enumerate(cells)],
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
