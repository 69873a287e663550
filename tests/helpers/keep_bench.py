"""A workbench of a tiny model, and the buttons of its "Keep" panel pressed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_lab_widgets import Workbench
from lora_lab_widgets.panel import Tick
from tests.helpers.tiny_run import tiny_lm, tiny_task

QUICK: dict[str, Any] = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "max_length": 64,
    "learning_rate": 0.01,
    "eval_examples": 0,
}


@contextlib.contextmanager
def keep_bench(folder: Path) -> Iterator[Any]:
    """Yield a workbench whose runs go to a folder; end the last one if a test left it."""
    made = Workbench(tiny_lm(), task=tiny_task(), output_dir=folder, **QUICK)
    yield made
    if made.run is not None:
        made.run.stop()
        made.run.wait(60)


def send(wb: Any, **content: Any) -> None:
    wb.keep._handle_custom_msg(content, [])


def settle(wb: Any) -> None:
    deadline = time.monotonic() + 60
    wb.keep.update(Tick())
    while wb.keep.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        wb.keep.update(Tick())


def do(wb: Any, kind: str, **content: Any) -> str:
    """Press a button, wait for its end; return what it says, or what went wrong."""
    send(wb, type=kind, **content)
    settle(wb)
    problem = wb.keep.problem
    return problem["message"] if problem else "\n".join(wb.keep.done.get("lines", []))


def trained(wb: Any) -> Any:
    run = wb.start()
    assert run.wait(60)
    run.result()
    settle(wb)
    return run
