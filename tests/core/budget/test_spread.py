"""What a step takes on each device of a model that lies on two."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_lab.budget.dry_run import dry_run
from lora_lab.budget.spread import places_of
from lora_lab.configs import FullConfig, LoraConfig
from tests.helpers.measured_step import BATCH, LENGTH, gpt2, llama

ALL = LoraConfig(r=4, target_modules="all-linear")
STEP: dict[str, Any] = {"batch_size": BATCH, "sequence_length": LENGTH}
CPU, META = torch.device("cpu"), torch.device("meta")  # which every build of torch has
HIDDEN = BATCH * LENGTH * 64 * 4  # bytes of the residual stream


def spread_llama(layers: int = 4) -> Any:
    """The upper half of the layers, the final norm and the output layer are elsewhere."""
    model = llama(layers=layers)
    for part in (*model.model.layers[layers // 2 :], model.model.norm, model.lm_head):
        part.to(META)
    return model


def test_the_largest_parts_on_one_device() -> None:
    assert places_of(spread_llama()) == {
        "model.embed_tokens": CPU,
        "model.layers.0": CPU,
        "model.layers.1": CPU,
        "model.layers.2": META,
        "model.layers.3": META,
        "model.norm": META,
        "lm_head": META,
    }
    assert places_of(llama()) == places_of(llama().to(META)) == {}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", [ALL, LoraConfig(r=4, target_modules=["q"], use_dora=True)])
def test_each_takes_what_its_own_layers_do(config: LoraConfig, checkpointing: bool) -> None:
    """The upper half is a model of two layers that gets its input, and its gradient, from afar."""
    options = {"gradient_checkpointing": checkpointing, **STEP}
    found = dry_run(spread_llama(), config, **options)
    half = dry_run(llama(layers=2), config, **options)
    upper, lower = found.devices[META], found.devices[CPU]
    copied = 0 if checkpointing else HIDDEN  # a block that is recomputed keeps its input anyway
    assert upper == pytest.approx(half.peak - half.weights + copied, rel=0.01)
    whole = dry_run(llama(layers=4), config, **options)
    assert lower < upper < whole.peak - whole.weights < lower + upper + 2 * HIDDEN
    assert whole.devices == {}


def test_a_model_on_one_device_by_another_way_is_counted_the_same() -> None:
    """Everything but one layer norm is here: what that takes is all that is missing."""
    model = gpt2(layers=2)
    model.transformer.ln_f.to(META)
    found = dry_run(model, ALL, **STEP).devices
    whole = dry_run(gpt2(layers=2), ALL, **STEP)
    assert found[CPU] == pytest.approx(whole.peak - whole.weights, rel=0.02)
    assert found[META] < 6 * HIDDEN


def test_full_fine_tuning_has_gradients_and_state_with_its_weights() -> None:
    found = dry_run(spread_llama(), FullConfig(), **STEP)
    model = llama(layers=4)
    upper = [*model.model.layers[2:], model.model.norm, model.lm_head]
    weights = sum(p.numel() * 4 for part in upper for p in part.parameters())
    whole = sum(p.numel() * 4 for p in model.parameters())
    assert found.devices[META] > 3 * weights
    assert found.devices[CPU] > 3 * (whole - weights)


def test_weights_that_are_tied_across_devices_count_once() -> None:
    model = llama(layers=2, tie_word_embeddings=True)
    model.model.layers[1].to(META)
    found = dry_run(model, ALL, **STEP)
    assert set(found.devices) == {CPU, META}


def test_masters_are_where_their_parameters_are() -> None:
    """In 16 bits full fine-tuning has 4 bytes more a number, and float32 moments and gradients."""
    found = dry_run(spread_llama(), FullConfig(), dtype="bfloat16", **STEP)
    model = llama(layers=4)
    upper = [*model.model.layers[2:], model.model.norm, model.lm_head]
    numbers = sum(p.numel() for part in upper for p in part.parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert found.devices[META] > 16 * numbers
    assert found.devices[CPU] > 16 * (whole - numbers)
