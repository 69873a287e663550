"""bitsandbytes' layout for inference on a CPU, which a stand-in plays here."""

from __future__ import annotations

import torch
from torch import nn

import lora_lab as ll
from lora_lab.training.fingerprints import base_fingerprint
from tests.helpers.quantized_layers import CpuLayout, quantize
from tests.helpers.tiny_models import tiny, tiny_inputs


def layouts(model: nn.Module) -> set[bool]:
    layers = [m for m in model.modules() if isinstance(m, CpuLayout)]
    return {layer.weight.quant_state.packing_format_for_cpu for layer in layers}


def test_an_adapted_model_hands_gradients_on_after_it_was_asked_something() -> None:
    model = quantize(tiny("llama"), CpuLayout)
    untouched = base_fingerprint(model)
    batch = tiny_inputs(model)
    with torch.no_grad():
        model(**batch)
    assert layouts(model) == {True}
    assert base_fingerprint(model) == untouched
    with torch.no_grad():
        model(**batch)
    # One site alone: the others of the model have to hand its gradient on.
    adapter = ll.attach(model, ll.LoraConfig(r=2, target_modules=["layers.0.self_attn.v_proj"]))
    for _ in range(2):
        with torch.no_grad():
            model(**batch)  # "Try it", a held-out loss
        assert layouts(model) == {False}
    model(**batch).logits.square().sum().backward()
    (site,) = adapter.sites.values()
    got = site.B.grad.clone()
    for path, layer in model.named_modules():
        if isinstance(layer, CpuLayout):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight.data = layer.dequantize()
            layer.forward = plain.forward if "v_proj" not in path else layer.forward
    site.B.grad = None
    model(**batch).logits.square().sum().backward()
    torch.testing.assert_close(site.B.grad, got)


def test_the_layers_are_as_they_were_when_the_adapter_is_off() -> None:
    model = quantize(tiny("llama"), CpuLayout)
    ll.attach(model, ll.LoraConfig(r=2, target_modules="all-linear"))
    ll.detach(model)
    with torch.no_grad():
        model(**tiny_inputs(model))
    assert layouts(model) == {True}
