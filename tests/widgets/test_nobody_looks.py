"""A browser that is closed, reloaded or throttled changes nothing: looking takes no part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab_widgets import Workbench
from tests.helpers.tiny_chat import tiny_chat_model

STEPS = 25
# Dropout draws from torch's random numbers all the time: a view that drew some would show.
CONFIG = ll.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q", "v"])
Ending = tuple[tuple[tuple[int, float], ...], list[torch.Tensor]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tick(wb: Workbench, page: str = "a") -> dict[str, Any]:
    wb.panel._handle({"type": "tick", "seq": f"{page}-1", "theme": "light", "width": 1000})
    return dict(wb.panel.snapshot)


def train(folder: Path, pace: float | None, pages: int = 1) -> tuple[Ending, int]:
    """Train while `pages` pages ask every `pace` seconds; None: nobody looks from start to end.

    Returns:
        Losses and adapter, and how many ticks met the run in training.
    """
    wb = Workbench(
        *tiny_chat_model(),
        config=CONFIG,
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        max_length=96,
        learning_rate=1e-2,
        eval_examples=2,
        kept_texts=0,
    )
    run, met = wb.start(), 0
    while pace is not None and not run.state.final:
        for page in range(pages):
            shown = tick(wb, f"page{page}")
            met += shown["phase"] == "training" and shown["step"] > 0
        time.sleep(pace)
    result = run.result(120)
    assert run.adapter is not None
    return (result.losses, [each.detach().clone() for each in run.adapter.parameters()]), met


def test_a_run_that_nobody_looks_at_ends_as_one_that_two_pages_look_at(tmp_path: Path) -> None:
    (losses, values), none = train(tmp_path / "alone", None)
    assert none == 0
    assert len(losses) == STEPS
    assert any(value.any() for value in values)
    for name, pace, pages in (("throttled", 0.3, 1), ("watched", 0.0, 2)):
        (seen_losses, seen_values), met = train(tmp_path / name, pace, pages)
        assert met >= 1, name
        assert seen_losses == losses, name
        assert all(map(torch.equal, seen_values, values)), name
