"""`load_state_dict` in a cell beside a run: refused before anything of the run's is written."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_file
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.beside import outcome
from tests.helpers.tiny_run import tiny_lm, tiny_task, until
from tests.stories.test_beside_a_run import LEARNED, one_thread  # noqa: F401 (a fixture)


class Around(nn.Module):
    """Somebody's own module, with the model in it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.first, self.model = nn.Linear(2, 2), model


def doubled(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a state dict of other values, the adapter's among them."""
    return {name: 2 * tensor + 1 for name, tensor in module.state_dict().items()}


def adapters_alone(model: Any) -> dict[str, torch.Tensor]:
    learned = {name for name, own in model.named_parameters() if own.requires_grad}
    return {name: tensor for name, tensor in doubled(model).items() if name in learned}


LOADS = {
    "all": lambda model: model.load_state_dict(doubled(model)),
    "what learns": lambda model: model.load_state_dict(adapters_alone(model), strict=False),
    "the base": lambda model: model.load_state_dict(
        {n: t for n, t in doubled(model).items() if n not in adapters_alone(model)}, strict=False
    ),
    "others assigned": lambda model: model.load_state_dict(doubled(model), assign=True),
    "into a block": lambda model: model.model.layers[0].load_state_dict(
        doubled(model.model.layers[0])
    ),
    "into a module around it": lambda model: Around(model).load_state_dict(doubled(Around(model))),
    "as a file": lambda model: load_model(model, saved_doubled(model), strict=False),
}


def saved_doubled(model: Any) -> Path:
    path = Path(tempfile.mkdtemp()) / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in doubled(model).items()}, path)
    return path


@pytest.mark.filterwarnings("ignore:the model's state dict")
@pytest.mark.parametrize("name", LEARNED)
def test_a_cell_that_loads_a_state_dict_is_refused_before_anything_is_written(name, tmp_path):
    def loads(model: Any) -> None:
        for load in LOADS.values():
            with pytest.raises(AdapterError, match=r"loading a state dict .* that run .* trains o"):
                load(model)
        copied = copy.deepcopy(model)
        copied.load_state_dict(doubled(copied))

    calm, beside = (
        outcome(tiny_lm(), tiny_task(8, 2), LEARNED[name], tmp_path, each, max_steps=3)
        for each in (None, loads)
    )
    assert beside == calm


@pytest.mark.filterwarnings("ignore:the model's state dict")
def test_a_pause_may_load_a_state_dict_and_the_run_goes_on_with_it(tmp_path):
    """As with any other write in a pause; after the run nobody refuses either."""
    lm = tiny_lm()
    run = ll.train(
        lm, tiny_task(8, 2), LEARNED["LoRA"], output_dir=tmp_path, max_steps=100_000,
        max_length=32, eval_examples=0, save_steps=1,
    )  # fmt: skip
    until(lambda: run.snapshot.step > 1)
    with run.paused() as model:
        model.load_state_dict(doubled(model))
    step = run.snapshot.step
    until(lambda: run.snapshot.step > step + 1)
    run.stop()
    run.result(120)
    lm.model.load_state_dict(doubled(lm.model))


def test_the_vocabulary_stays_as_large_as_it_is(tmp_path):
    def resizes(model: Any) -> None:
        with pytest.raises(AdapterError, match=r"trains adapter 'default' of this model now"):
            model.resize_token_embeddings(model.config.vocab_size + 8)
        model.resize_token_embeddings(model.config.vocab_size)

    calm, beside = (
        outcome(tiny_lm(), tiny_task(8, 2), LEARNED["LoRA"], tmp_path, each, eval_examples=0)
        for each in (None, resizes)
    )
    assert beside == calm
