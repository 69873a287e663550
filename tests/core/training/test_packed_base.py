"""Packed layers that hand no gradient on are refused before a run begins."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.anatomy.packed import held_beside, packing
from lora_lab.errors import ConfigError
from lora_lab.models import LoadedModel
from lora_lab.training import processes
from lora_lab.training.packed_base import check_packed
from lora_lab.training.sharding import settle
from tests.helpers.quantized_layers import KINDS, Dynamic, OfScaleAlone, quantize, torchao
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_run import tiny_task
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_trained_through_passes_and_stays_as_it_is(kind: str) -> None:
    model = quantize(tiny("llama"), KINDS[kind])
    with torch.no_grad():
        model(**tiny_inputs(model))  # evaluated before: on a CPU that repacks bitsandbytes' weights
        before = torch.get_rng_state()
        check_packed(model)
        assert torch.equal(torch.get_rng_state(), before)
    ll.attach(model, ll.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    check_packed(model)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", [Dynamic, OfScaleAlone])
@pytest.mark.parametrize("leaf", ["down_proj", "v_proj"])
def test_a_layer_without_a_gradient_is_refused_by_name(kind: type, leaf: str, tmp_path) -> None:
    model = quantize(tiny_llama(), KINDS["torchao"])
    path = f"model.layers.1.{'mlp' if leaf == 'down_proj' else 'self_attn'}.{leaf}"
    plain = nn.Linear(48 if leaf == "down_proj" else 32, 32 if leaf == "down_proj" else 16)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, functools.partial(torchao, kind=kind)(plain))
    lm = LoadedModel.given(model, tiny_tokenizer(), "packed")
    with pytest.raises(ConfigError) as caught:
        # Of the last block alone: its gradients come by other ways, and nothing would look wrong.
        ll.train(
            lm, tiny_task(), ll.LoraConfig(r=2, target_modules=["q_proj"]), output_dir=tmp_path
        )
    assert str(caught.value) == (
        f"{path} (Linear, {kind.__name__} weights) hands no gradient on to what it reads, so that "
        "nothing below it would be trained right; load the base unquantized, or quantized in its "
        "weights only"
    )
    assert not ll.attached(model)
    assert not list(tmp_path.iterdir())


def test_a_kernel_that_cannot_be_tried_is_left_to_the_first_step() -> None:
    model = quantize(tiny("llama"), KINDS["HQQ"])
    model.model.layers[0].mlp.down_proj.forward = None
    check_packed(model)


@pytest.mark.parametrize("trainable", [False, True])
def test_what_transformers_cannot_train_is_refused_where_it_has_put_in_its_layers(
    trainable,
) -> None:
    class Mxfp4GptOssExperts(nn.Module):
        """Experts whose packed weights are no parameters."""

    model = tiny("llama")
    model.hf_quantizer = SimpleNamespace(is_trainable=trainable, is_qat_trainable=False)
    check_packed(model)  # unpacked while it was loaded, as GGUF files are
    Mxfp4GptOssExperts.__module__ = "transformers.integrations.mxfp4"
    model.model.layers[1].mlp.experts = Mxfp4GptOssExperts()
    if trainable:
        check_packed(model)
        return
    with pytest.raises(ConfigError, match=r"1\.mlp\.experts \(Mxfp4GptOssExperts\) computes"):
        check_packed(model)


def test_shards_of_packed_weights_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(processes, "sharded", lambda: True)
    check_packed(tiny("llama"))
    with pytest.raises(ConfigError, match="4-bit weights, which FSDP cannot cut; load"):
        check_packed(quantize(tiny("llama"), KINDS["bitsandbytes, 4 bits"]))


@pytest.mark.parametrize("kind", ["HQQ", "GPTQ", "AWQ", "bitsandbytes, 4 bits"])
def test_a_base_that_comes_to_another_device_brings_all_that_it_is_read_by(kind: str) -> None:
    """HQQ keeps its scales in a dictionary, which `model.to` passes by."""
    model = quantize(tiny("llama"), KINDS[kind])
    adapter = ll.attach(model, ll.LoraConfig(r=2, target_modules="all-linear"))
    layers = [layer for layer in model.modules() if packing(layer)]
    held = [t for layer in layers for t in held_beside(layer)]
    assert bool(held) == (kind == "HQQ")
    settle(model, adapter, torch.device("cpu"), torch.device("meta"))
    held = [t for layer in layers for t in held_beside(layer)]
    assert {t.device.type for t in (*held, *model.parameters(), *model.buffers())} == {"meta"}
