"""What the tests of runs share."""

from __future__ import annotations

import pytest
import torch

from lora_lab.training.api import train
from lora_lab.training.snapshot import RunState
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task


@pytest.fixture
def one_thread():
    """Have torch use one thread, so that the same numbers come in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def begin(tmp_path):
    """Start runs in a temporary folder, and end those that a failed test leaves."""
    runs = []

    def start(lm=None, config=CONFIG, task=None, **training):
        settings = {"max_steps": 12, "learning_rate": 1e-2, "eval_examples": 0, **training}
        run = train(lm or tiny_lm(), task or tiny_task(), config, output_dir=tmp_path, **settings)
        runs.append(run)
        return run

    yield start
    for run in runs:
        if run.state is not RunState.IDLE:
            run.stop()
            run.wait(60)
