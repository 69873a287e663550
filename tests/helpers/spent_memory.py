"""A run whose memory somebody else takes between its first and its second step."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Protocol

import pytest

import lora_lab as ll
from lora_lab.configs import TrainingConfig
from lora_lab.errors import RunError
from lora_lab.models import LoadedModel
from lora_lab.tasks import GenerationTask
from lora_lab.tasks.families.api import longest_example
from lora_lab.training.gpu_memory import Forecast

CONFIG = ll.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
ASKED, FITS = 16, 4  # examples a pass
SLACK = 1.3  # a forecast is no promise; the next divisor, FITS * 2, needs far more


class Machine(Protocol):
    """The device's memory.

    Attributes:
        taken: bytes that `take_all_but` holds, as `allocated` counts them.
        slack: bytes by which `allocated` may be off.
    """

    taken: int
    slack: int

    def allocated(self) -> int:
        """Return the bytes of live tensors."""

    def take_all_but(self, free: int) -> None:
        """Leave so many bytes to whoever asks from now on."""


def ordeal(lm: LoadedModel, task: GenerationTask, folder: Path, machine: Machine) -> None:
    """Train out of memory; assert that all is freed, and that what is proposed then fits."""
    ll.train(lm, task, CONFIG, output_dir=folder, max_steps=1, eval_examples=0).result(120)
    ll.detach(lm.model)  # libraries have what they keep for good
    before = machine.allocated()

    training = TrainingConfig(max_steps=3, eval_examples=0, per_device_train_batch_size=ASKED)
    length = longest_example(lm, task, training.max_length).read
    forecast = Forecast(lm.model, CONFIG, training, length, lm.model.device)
    free = int(SLACK * forecast(FITS))
    assert forecast(2 * FITS) > free, "the test's own numbers: one batch only is to fit"

    calls = itertools.count(1)

    def others_come(*_: object) -> None:
        if next(calls) == 2:  # there are moments by then
            machine.take_all_but(free)

    hook = lm.model.register_forward_pre_hook(others_come)
    run = ll.train(lm, task, CONFIG, output_dir=folder, **training.to_dict())
    with pytest.raises(RunError, match="out of memory"):
        run.result(300)
    hook.remove()

    assert run.adapter is not None
    kept = sum(each.nbytes for each in run.adapter.parameters())
    assert abs(machine.allocated() - before - machine.taken - kept) <= machine.slack
    problem = run.snapshot.failure
    assert problem is not None
    assert problem.proposal == {
        "per_device_train_batch_size": FITS,
        "gradient_accumulation_steps": ASKED // FITS,
    }
    assert "the dry run says it fits" in problem.remedy

    ll.detach(lm.model)
    taken = training.replace(**problem.proposal).to_dict()
    again = ll.train(lm, task, CONFIG, output_dir=folder, **taken)
    assert len(again.result(300).losses) == 3
