"""A run on a quantized base: each library's layers, from `train` to a resumed run and a merge.

The oracle is the same model in floating point, with the values that the packed weights stand for.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import lora_lab as ll
from lora_lab.models import LoadedModel
from tests.helpers import stopped_at
from tests.helpers.quantized_layers import KINDS, quantize, values
from tests.helpers.tiny_run import logits, tiny_task
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

CONFIG = ll.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")


def packed(kind: str) -> LoadedModel:
    """What `from_pretrained(quantization_config=…)` leaves: layers, and two marks on the model."""
    model: Any = quantize(tiny_llama(num_hidden_layers=1), KINDS[kind])
    model.is_quantized = True
    model.hf_quantizer = SimpleNamespace(
        is_trainable=True,
        is_qat_trainable=False,
        is_compileable=False,
        is_serializable=lambda: False,
    )
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    return LoadedModel.given(model, tiny_tokenizer(), "packed")


def twin(kind: str) -> LoadedModel:
    """The same model in floating point."""
    model = tiny_llama(num_hidden_layers=1)
    for path, layer in packed(kind).model.named_modules():
        plain = dict(model.named_modules()).get(path)
        if type(plain) is nn.Linear and "lm_head" not in path:
            plain.weight.data = values(layer)
    return LoadedModel.given(model, tiny_tokenizer(), "plain")


def trained(lm: LoadedModel, folder: Path, stop_at: int | None = None) -> ll.Run:
    return stopped_at.trained(
        lm, tiny_task(16, 1), CONFIG, folder, stop_at, max_steps=3, eval_examples=1
    )


def losses(run: ll.Run) -> list[float]:
    return [loss for _, loss in run.losses]


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_as_the_same_model_in_floating_point_does(kind: str, tmp_path: Path) -> None:
    lm, plain = packed(kind), twin(kind)
    bare = logits(lm.model)  # in evaluation, before anything trains
    torch.testing.assert_close(bare, logits(plain.model), rtol=1e-4, atol=1e-4)
    run, other = trained(lm, tmp_path), trained(plain, tmp_path)
    torch.testing.assert_close(losses(run), losses(other), rtol=1e-4, atol=1e-4)
    learned = logits(lm.model)
    torch.testing.assert_close(learned, logits(plain.model), rtol=1e-3, atol=1e-3)

    stopped = trained(packed(kind), tmp_path, stop_at=2)
    again = ll.resume(stopped.folder, packed(kind), tiny_task(16, 1))
    again.result(60)
    assert losses(again) == losses(run)

    fresh = packed(kind).model
    ll.load_adapter(fresh, run.folder / "adapter")
    assert torch.equal(logits(fresh), learned)
    peft = PeftModel.from_pretrained(twin(kind).model, str(run.folder / "adapter"))
    torch.testing.assert_close(logits(peft), learned, rtol=1e-3, atol=1e-3)

    ll.merge(lm.model, dequantize=True)
    torch.testing.assert_close(logits(lm.model), learned, rtol=1e-3, atol=1e-3)
    ll.unmerge(lm.model)
    assert torch.equal(logits(lm.model), learned)
    ll.merge_and_unload(fresh, dequantize=True)
    fresh.save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(merged), logits(fresh))
    ll.detach(lm.model)
    assert torch.equal(logits(lm.model), bare)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_layers_cannot_be_trained_whole_and_a_part_of_them_stays_packed(kind: str) -> None:
    model = packed(kind).model
    for config in (
        ll.LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["q_proj"]),
        ll.FullConfig(),
        ll.FullConfig(top_layers=1),
        ll.BitFitConfig(new_biases=True),
    ):
        with pytest.raises(ll.LoraLabError, match="not floating-point weights; l"):
            ll.attach(model, config)
        assert not ll.attached(model)
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["v_proj"]))
    ll.merge_and_unload(model, dequantize=True)
    assert model.is_quantized
    assert model.hf_quantizer is not None
