"""A run on a model that `from_pretrained(device_map=…)` has spread; the CPU plays the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload

import lora_lab as ll
from lora_lab.errors import RunError
from lora_lab.models import LoadedModel
from lora_lab_widgets.answers import answers
from tests.helpers import stopped_at
from tests.helpers.dispatched import METHODS, SPREAD, spread_lm
from tests.helpers.tiny_run import logits, tiny_lm, tiny_task

TASK = tiny_task(16, 2)


def trained(lm: LoadedModel, folder: Path, config: Any, stop_at: int | None = None) -> ll.Run:
    return stopped_at.trained(
        lm, TASK, config, folder, stop_at, max_steps=4, max_length=64, eval_examples=2
    )


def exact_lm() -> LoadedModel:
    """`tiny_lm` in float64: AdamW's first steps make much of a gradient's last bits."""
    lm = tiny_lm()
    return LoadedModel.given(lm.model.double(), lm.tokenizer, "tiny-llama")


@pytest.mark.parametrize(
    ("method", "places"),
    [("LoRA", "a block on the disk"), ("PreEmbed", "everything"), ("AdaLoRA", "everything")],
)
def test_it_trains_stops_resumes_and_answers_as_in_one_piece(
    method: str, places: str, tmp_path: Path
) -> None:
    config = METHODS[method]
    if method == "AdaLoRA":
        config = config.replace(tinit=1, tfinal=1, deltaT=1)
    plain, lm = exact_lm(), spread_lm(tmp_path / "base", SPREAD[places], dtype=torch.float64)
    expected, run = trained(plain, tmp_path, config), trained(lm, tmp_path, config)
    close: Any = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(run.losses, expected.losses, **close)
    torch.testing.assert_close(run.snapshot.metrics, expected.snapshot.metrics, **close)
    torch.testing.assert_close(logits(lm.model), logits(plain.model), **close)
    asked = TASK, TASK.validation[0].prompt, 4, 64, "default"
    assert answers(lm, *asked) == answers(plain, *asked)
    (note,) = (note for note in run.notes if "are kept on the CPU or the disk" in note)
    away = sum(p.numel() for p in lm.model.parameters() if p.is_meta)
    assert note.startswith(f"{away:,} weights")
    assert run.snapshot.memory is not None
    here = sum(p.nbytes for p in lm.model.parameters() if not p.is_meta)
    assert run.snapshot.memory.weights < here + 2_000  # buffers

    other = spread_lm(tmp_path / "again", SPREAD[places], dtype=torch.float64)
    stopped = trained(other, tmp_path, config, stop_at=2)
    again = ll.resume(stopped.folder, exact_lm(), TASK)  # the same base, in one piece
    again.result(60)
    torch.testing.assert_close(again.losses, expected.losses, **close)


def test_a_model_that_is_offloaded_while_the_run_rests_does_not_train_on(tmp_path: Path) -> None:
    lm = tiny_lm()
    run = ll.train(lm, TASK, ll.BitFitConfig(new_biases=True), output_dir=tmp_path, max_steps=9)
    with run.paused() as model:
        cpu_offload(model, "cpu")
    with pytest.raises(RunError, match="offload it first, then attach or train"):
        run.result(60)
