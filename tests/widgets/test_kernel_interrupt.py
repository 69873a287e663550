"""Ctrl-C in a real kernel: the cell that waits for a run ends and says so; the run goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipykernel")
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).parents[2]
BEGIN = f"""\
import sys
sys.path[:0] = [{str(ROOT)!r}]
import torch
torch.set_num_threads(1)
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task
from lora_lab.training import train
run = train(
    tiny_lm(), tiny_task(), CONFIG, output_dir="runs", max_steps=100_000, eval_examples=0,
    per_device_train_batch_size=2,
)"""


class Kernel:
    """A kernel, and who types cells into it."""

    def __init__(self, folder: Path) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder))
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def begin(self, code: str) -> str:
        """Return the name of a cell that has begun to run."""
        cell = str(self.client.execute(code))
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            if (message["parent_header"].get("msg_id"), message["msg_type"]) == (
                cell,
                "execute_input",
            ):
                return cell

    def end(self, cell: str) -> dict[str, Any]:
        """Return the reply to a cell; its value, if it has one, under "value"."""
        value = None
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != cell:
                continue
            if message["msg_type"] == "execute_result":
                value = message["content"]["data"]["text/plain"]
            elif message["content"].get("execution_state") == "idle":
                break
        while True:
            reply = self.client.get_shell_msg(timeout=120)
            if reply["parent_header"].get("msg_id") == cell:
                return {**reply["content"], "value": value}

    def value(self, code: str) -> str:
        reply = self.end(self.begin(code))
        assert reply["status"] == "ok", reply
        return str(reply["value"])

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.close()


def test_an_interrupt_leaves_the_run_alive_and_says_so(kernel: Kernel) -> None:
    assert kernel.end(kernel.begin(BEGIN))["status"] == "ok"
    waiting = kernel.begin("run.result()")
    time.sleep(0.5)
    kernel.manager.interrupt_kernel()
    reply = kernel.end(waiting)
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    assert re.fullmatch(
        r"run \S+ goes on in the background; run\.stop\(\) ends it", reply["evalue"]
    )
    goes_on = """\
import time
at, end = run.snapshot.step, time.monotonic() + 60
while run.snapshot.step < at + 10 and time.monotonic() < end:
    time.sleep(0.01)
(str(run.state), run.snapshot.step >= at + 10)"""
    assert kernel.value(goes_on) == "('running', True)"
    assert kernel.value("run.stop(); run.result(60); (str(run.state), run.error)") == (
        "('done', None)"
    )
