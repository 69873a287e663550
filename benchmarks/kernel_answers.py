"""A kernel that trains: how soon it answers `1+1`, what it tells the browser, what that costs.

A real ipykernel with SmolLM2 on two cores. This process plays the notebook's page: it asks as
`run_clock.js` does, on a subshell like JupyterLab. The browser itself takes no core here;
`workbench_showing` has it on the same two.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks._measure import Row, print_table
from benchmarks._whole_states import row_of_states, whole_states

REACH_MS = 100.0
REACH_COST = 1.02
REACH_RATE = 5
REACH_BYTES = 64 * 1024
BENCH = """\
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from lora_lab_widgets import Workbench
wb = Workbench("smollm2-135m", max_steps=100_000, per_device_train_batch_size=4,
               eval_examples=0, save_steps=0, output_dir={folder!r})
wb"""
FIGURES_MADE = "wb.delta_w._overlap.figure is not None and wb.run.snapshot.step > 3"
TIMED = """\
wb.panel.settings = {{**wb.panel.settings, "max_steps": {steps}}}
wb.start()
{watch}
wb.run.wait()
import json
_lines = (wb.run.folder / "metrics.jsonl").read_text().splitlines()
_at = [json.loads(line)["seconds"] for line in _lines]
(_at[-1] - _at[0]) / (len(_at) - 1)"""


@dataclass(frozen=True)
class Message:
    """One message of a widget to the browser."""

    at: float  # seconds, monotonic
    size: int  # bytes: JSON and buffers
    comm: str
    kind: str  # "comm_open", "update" …
    keys: tuple[str, ...]  # of the state


class Kernel:
    """An ipykernel, and the person who types cells into it.

    Args:
        folder: for its sockets.
    """

    def __init__(self, folder: str) -> None:
        from jupyter_client.manager import KernelManager

        self.manager = KernelManager(kernel_name="python3", transport="ipc", ip=f"{folder}/ipc")
        self.manager.start_kernel()
        self.client = self.connect()

    def connect(self) -> Any:
        """Return a client of its own session, ready."""
        from jupyter_client.blocking.client import BlockingKernelClient

        client = BlockingKernelClient(connection_file=self.manager.connection_file)
        client.load_connection_file()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        return client

    def close(self) -> None:
        """End it."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code: str, timeout: float = 600) -> tuple[str, float, float]:
        """Run a cell.

        Returns:
            Its value as text, and after how many seconds reply and value were there.

        Raises:
            RuntimeError: the cell failed.
        """
        start = time.perf_counter()
        id_ = self.client.execute(code)
        value, valued = "", 0.0
        while True:
            message = self.client.get_iopub_msg(timeout=timeout)
            if message["parent_header"].get("msg_id") != id_:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "execute_result":
                value, valued = content["data"]["text/plain"], time.perf_counter() - start
            elif kind == "error":
                raise RuntimeError("\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                break
        while self.client.get_shell_msg(timeout=timeout)["parent_header"].get("msg_id") != id_:
            pass
        # The reply leaves before the kernel says that it is idle.
        return value, time.perf_counter() - start, valued

    def value(self, code: str) -> str:
        """Return what a cell's last line is, as text."""
        return self.run(code)[0]

    def until(self, condition: str, timeout: float = 300) -> None:
        """Wait until an expression is true in the kernel."""
        end = time.monotonic() + timeout
        while self.value(condition) != "True":
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.25)


class Page:
    """The page's side of the widgets: asks at the pace of `run_clock.js`, and keeps all it hears.

    Attributes:
        heard: every message of a widget, in order.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.heard: list[Message] = []
        self._panel = ""
        self._looks = False
        self._over = False
        self._count = 0
        self._waiting = ""
        self._asked_at = 0.0
        self._pace = 1.0
        self._client = kernel.connect()
        self._subshell = self._make_subshell()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def look(self, panel: str) -> None:
        """Come into sight, and ask from now on."""
        self._panel, self._waiting, self._looks = panel, "", True

    def hide(self) -> None:
        """Go out of sight: nothing is asked any more."""
        self._looks = False

    def close(self) -> None:
        """End the thread."""
        self._over = True
        self._thread.join(10)
        self._client.stop_channels()

    def _make_subshell(self) -> str:
        channel = self._client.control_channel
        channel.send(self._client.session.msg("create_subshell_request"))
        return str(channel.get_msg(timeout=30)["content"]["subshell_id"])

    def _live(self) -> None:
        while not self._over:
            self._listen()
            now = time.monotonic()
            lost = now - self._asked_at > 10.0
            if self._looks and now >= self._asked_at + self._pace and (not self._waiting or lost):
                self._count += 1
                self._waiting, self._asked_at = f"page-{self._count}", now
                tick = {"type": "tick", "seq": self._waiting, "theme": "light", "width": 1340}
                self._send(self._panel, {"method": "custom", "content": tick})

    def _listen(self) -> None:
        socket = self._client.iopub_channel.socket
        if not socket.poll(20):
            return
        session = self._client.session
        _, parts = session.feed_identities(socket.recv_multipart())
        message = session.deserialize(parts)
        if message["msg_type"] not in ("comm_open", "comm_msg", "comm_close"):
            return
        content = message["content"]
        data, comm = content.get("data", {}), content["comm_id"]
        state = data.get("state", {})
        kind = data.get("method", "") if message["msg_type"] == "comm_msg" else message["msg_type"]
        size = sum(len(part) for part in parts[1:])  # without the signature
        self.heard.append(Message(time.monotonic(), size, comm, kind, tuple(state)))
        if kind == "update":
            self._take(comm, state)

    def _take(self, comm: str, state: Mapping[str, Any]) -> None:
        if comm == self._panel and (shown := state.get("snapshot")):
            if shown["seq"] == self._waiting:
                self._waiting = ""
            rate = shown["rate"]
            active = shown["state"] in ("running", "pausing", "stopping")
            self._pace = min(1.0, max(0.6, 1.5 / rate if rate else 0.0)) if active else 1.0

    def _send(self, comm: str, data: Mapping[str, Any]) -> None:
        message = self._client.session.msg("comm_msg", {"comm_id": comm, "data": data})
        message["header"]["subshell_id"] = self._subshell
        self._client.shell_channel.send(message)


@contextmanager
def notebook() -> Iterator[tuple[Kernel, Page, str]]:
    """Yield a kernel that shows a workbench, the page, and the comm of its run panel."""
    with tempfile.TemporaryDirectory() as folder:
        kernel = Kernel(folder)
        try:
            page = Page(kernel)
            kernel.run(BENCH.format(folder=folder))
            yield kernel, page, kernel.value("wb.panel.model_id").strip("'")
            page.close()
        finally:
            kernel.close()


def answers(kernel: Kernel, cells: int) -> tuple[list[float], list[float]]:
    """Return after how many ms reply and value of `1+1` came, at random moments."""
    pauses = random.Random(0)
    replies, values = [], []
    for done in range(cells):
        time.sleep(pauses.uniform(0.1, 0.9))
        _, replied, valued = kernel.run("1+1")
        replies.append(replied * 1e3)
        values.append(valued * 1e3)
        if (done + 1) % 20 == 0:
            print(f"  {done + 1} cells, the slowest {max(replies):.0f} ms", flush=True)
    return replies, values


def busiest(moments: list[float], span: float = 1.0) -> int:
    """Return the most messages in any window of `span` seconds."""
    most = first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - span:
            first += 1
        most = max(most, last - first + 1)
    return most


def cost(kernel: Kernel, page: Page, panel: str, pairs: int, steps: int) -> list[float]:
    """Return the ratios of seconds a step, looked at against hidden, of alternating runs."""
    ratios = []
    for pair in range(pairs + 1):  # the first is a warm-up
        seconds = {}
        for shown in (True, False) if pair % 2 else (False, True):
            if shown:
                page.look(panel)
            else:
                page.hide()
            # Hidden, it is to be a run that nobody looks at in any way.
            watch = "" if shown else "wb.run.watch = None"
            time.sleep(1.0)
            seconds[shown] = float(kernel.value(TIMED.format(steps=steps, watch=watch)))
        if pair:
            ratios.append(seconds[True] / seconds[False])
            print(
                f"  pair {pair} of {pairs}: {seconds[True]:.3f} s a step looked at, "
                f"{seconds[False]:.3f} hidden, {ratios[-1]:.3f}×",
                flush=True,
            )
    return ratios


def rows_of_answers(replies: list[float], values: list[float]) -> list[Row]:
    """Return the table's lines on `1+1`."""
    rows = []
    for what, times in (("its reply", replies), ("its value", values)):
        p95 = float(np.percentile(times, 95))
        rows.append(
            Row(
                f"`1+1` while training, until {what}",
                f"p95 {p95:.0f} ms",
                f"p95 < {REACH_MS:.0f} ms",
                p95 < REACH_MS,
                f"median {statistics.median(times):.0f}, slowest {max(times):.0f} ms, "
                f"{len(times)} cells at random moments",
            )
        )
    return rows


def rows_of_messages(heard: Sequence[Message], seconds: float) -> list[Row]:
    """Return the table's lines on what went to the browser meanwhile."""
    most = busiest([message.at for message in heard])
    largest = max(heard, key=lambda message: message.size)
    return [
        Row(
            "widgets' messages in the busiest second",
            str(most),
            f"≤ {REACH_RATE}",
            most <= REACH_RATE,
            f"{len(heard) / seconds:.1f} a second in the mean of {seconds:.0f} s",
        ),
        Row(
            "largest of them",
            f"{largest.size / 1024:.1f} KB",
            f"< {REACH_BYTES // 1024} KB",
            largest.size < REACH_BYTES,
            f"{largest.kind} of {', '.join(largest.keys)}; all {len(heard)}: "
            f"{sum(message.size for message in heard) / seconds / 1024:.1f} KB a second",
        ),
    ]


def rows_of_opening(heard: Sequence[Message]) -> list[Row]:
    """Return the table's line on a run's first seconds, in which the figures are made."""
    most = busiest([message.at for message in heard])
    largest = max(heard, key=lambda message: message.size)
    return [
        Row(
            "busiest second before, in which the run starts and its figures are first drawn",
            str(most),
            f"≤ {REACH_RATE}",
            most <= REACH_RATE,
            f"of {len(heard)} messages, the largest {largest.size / 1024:.1f} KB: {largest.kind}",
        )
    ]


def row_of_cost(ratios: list[float]) -> Row:
    """Return the table's line on the seconds of a step."""
    ratio = statistics.median(ratios)
    return Row(
        "seconds a step, workbench looked at against hidden",
        f"{ratio:.3f}×",
        f"≤ {REACH_COST}×",
        ratio <= REACH_COST,
        f"median of {len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f}; "
        "the browser itself takes no core here",
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="of a timed run")
    args = parser.parse_args(argv)
    rows: list[Row] = []
    with notebook() as (kernel, page, panel):
        print("a workbench is on show; a run starts", flush=True)
        page.look(panel)
        time.sleep(2)
        resting, _ = whole_states(kernel.connect(), 20)
        before = len(page.heard)
        kernel.run("wb.start();")
        kernel.until(FIGURES_MADE)
        time.sleep(2)
        opening, before = page.heard[before:], len(page.heard)
        start = time.monotonic()
        replies, values = answers(kernel, args.cells)
        heard, seconds = page.heard[before:], time.monotonic() - start
        rows += rows_of_answers(replies, values)
        rows.append(row_of_states(*whole_states(kernel.connect(), 20), resting=resting))
        rows += rows_of_messages(heard, seconds) + rows_of_opening(opening)
        for row in rows:
            print(f"  {row.what}: {row.measured} ({row.note})", flush=True)
        kernel.run("wb.run.stop(); wb.run.wait();")
        if args.pairs:
            print("runs looked at and hidden take turns", flush=True)
            rows.append(row_of_cost(cost(kernel, page, panel, args.pairs, args.steps)))
    print_table("A kernel that trains SmolLM2-135M on two cores, q and v at r=8, batch 4", rows)


if __name__ == "__main__":
    main()
