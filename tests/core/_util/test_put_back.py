"""What a run has changed on a model is put back in a forked child, whose copy nobody trains."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab._util.put_back import put_back_by
from tests.helpers.tiny_run import tiny_lm, tiny_task, until


def test_it_is_put_back_in_the_order_that_it_was_changed_in_once() -> None:
    undone: list[int] = []
    with put_back_by(lambda: undone.append(1)), put_back_by(lambda: undone.append(2)):
        assert not undone
    assert undone == [2, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_forked_child_trains_its_copy_of_a_model_as_a_fresh_one(
    tmp_path: Any, checkpointing: bool
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = {"max_length": 32, "eval_examples": 0, "gradient_checkpointing": checkpointing}
    config = ll.LoraConfig(r=2, target_modules=["q"], lora_dropout=0.1)

    def begin(lm: Any, steps: int) -> ll.Run:
        return ll.train(
            lm, tiny_task(8, 2), config, output_dir=tmp_path, max_steps=steps, **settings
        )

    alone = begin(tiny_lm(), 2).result(60).losses
    lm = tiny_lm()
    run = begin(lm, 10**6)
    until(lambda: run.snapshot.step > 1)
    child = os.fork()
    if child == 0:
        try:
            lm.model.double().float()  # which is refused beside a run
            ll.detach(lm.model)
            os._exit(0 if begin(lm, 2).result(60).losses == alone else 1)
        finally:
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    run.stop()
    assert run.wait(60)
    torch.set_num_threads(threads)
    assert status == 0
    assert lm.model.config.use_cache
