"""LoRA beside bitsandbytes' layers, which stand-ins of their names and shapes play here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from tests.helpers.quantized_layers import Linear4bit, Linear8bitLt, quantized
from tests.helpers.tiny_models import tiny, tiny_inputs

CONFIG = ll.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
LEVELS = 15


def built(model: nn.Module, adapter) -> nn.Module:
    """The model in floating point, ΔW built into it in float64."""
    plain = tiny("llama")
    for path, module in model.named_modules():
        if isinstance(module, Linear4bit):
            W = module.dequantize().double()
            site = adapter.sites[path] if adapter else None
            if site is not None:
                W = W + site.scale * site.B.detach().double() @ site.A.detach().double()
            plain.get_submodule(path).weight.data = W.float()
    return plain.eval()


def test_the_adapter_stands_beside_packed_weights():
    model = quantized()
    batch = tiny_inputs(model, batch=2)
    layers = {p: m for p, m in model.named_modules() if isinstance(m, Linear4bit)}
    packed = {path: layer.weight.clone() for path, layer in layers.items()}
    bare = model(**batch).logits
    adapter = ll.attach(model, CONFIG)
    assert adapter.sites.keys() == layers.keys()
    site = adapter.sites["model.layers.0.mlp.down_proj"]
    assert (site.A.shape, site.B.shape) == ((3, 48), (32, 3))
    assert site.A.dtype == site.B.dtype == torch.float32
    torch.testing.assert_close(
        model(**batch).logits, built(model, adapter)(**batch).logits, rtol=1e-4, atol=1e-4
    )
    model(**batch).logits.sum().backward()
    assert all(p.grad.any() for p in adapter.parameters())
    for path, layer in layers.items():
        assert torch.equal(layer.weight, packed[path])
        torch.testing.assert_close(adapter.base_weight(path), layer.dequantize())
    assert ll.analyze(model).rows[0].amplification > 0
    ll.detach(model)
    assert all(type(layer) is Linear4bit for layer in layers.values())
    assert torch.equal(model(**batch).logits, bare)


def test_merging_is_refused_and_done_when_asked_for():
    model = quantized()
    batch = tiny_inputs(model)
    layers = {p: m for p, m in model.named_modules() if isinstance(m, Linear4bit)}
    adapter = ll.attach(model, CONFIG)
    adapted = model(**batch).logits
    with pytest.raises(AdapterError) as caught:
        ll.merge(model)
    assert str(caught.value) == (
        "model.layers.0.self_attn.q_proj holds quantized weights, which no sum can be written "
        "into; merge(model, dequantize=True) puts floating-point layers in their place"
    )
    assert torch.equal(model(**batch).logits, adapted)
    ll.merge(model, dequantize=True)
    assert all(type(model.get_submodule(path)) is nn.Linear for path in layers)
    merged = model(**batch).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        adapter.base_weight("model.layers.1.mlp.up_proj"),
        layers["model.layers.1.mlp.up_proj"].dequantize(),
    )
    ll.unmerge(model)
    assert all(model.get_submodule(path) is layer for path, layer in layers.items())
    assert torch.equal(model(**batch).logits, adapted)
    ll.merge(model, dequantize=True, keep_original=False)
    with pytest.raises(AdapterError, match="load the model again"):
        ll.unmerge(model)
    ll.merge_and_unload(model)
    torch.testing.assert_close(model(**batch).logits, adapted, rtol=1e-4, atol=1e-4)
    ll.attach(model, CONFIG, "second")
    ll.merge_and_unload(model)  # nothing is packed any more


def test_a_merged_layer_has_the_models_dtype_and_its_bias():
    model = quantized("qwen2")
    model.model.embed_tokens.to(torch.bfloat16)
    bias = model.model.layers[0].self_attn.q_proj.bias.detach().clone()
    adapter = ll.attach(model, CONFIG)
    site = adapter.sites["model.layers.0.self_attn.q_proj"]
    exact = adapter.base_weight(site.site.name).double() + site.delta().double()
    with pytest.warns(DeprecationWarning, match="dequantise is now called dequantize"):
        ll.merge(model, dequantise=True)
    layer = model.model.layers[0].self_attn.q_proj
    assert torch.equal(layer.weight, exact.float().to(torch.bfloat16))
    assert torch.equal(layer.bias, bias.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ],
)
def test_what_needs_w0_itself_is_refused(changes, option):
    model = quantized()
    message = f"{option} starts from W₀ in floating point, and model.* holds 4-bit weights; leave"
    with pytest.raises(ConfigError, match=message):
        ll.attach(model, CONFIG.replace(**changes))
    assert not ll.attached(model)


@pytest.mark.parametrize("used", [False, True])
def test_eight_bit_rows_are_read_by_their_scales(used):
    W = torch.randn(6, 8)
    layer = nn.Linear(8, 6)
    layer.weight.data = W
    model = nn.Sequential(Linear8bitLt(layer, used))
    adapter = ll.attach(model, ll.LoraConfig(r=2, target_modules="0"))
    found = adapter.base_weight("0")
    assert found.dtype == torch.float32
    # Half a step of each row's own grid, at most.
    assert ((found - W).abs() <= W.abs().amax(1, keepdim=True) / 127 / 2 * 1.001).all()


def test_four_bits_are_read_by_bitsandbytes(monkeypatch):
    layer = Linear4bit(nn.Linear(8, 6))
    W = layer.dequantize()
    layer.weight.quant_state = "state"
    monkeypatch.delattr(Linear4bit, "dequantize")
    adapter = ll.attach(nn.Sequential(layer), ll.LoraConfig(r=2, target_modules="0"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(AdapterError, match=r"^0 holds 4-bit weights, .* pip install bitsandbytes$"):
        adapter.base_weight("0")

    def dequantize_4bit(packed, state):
        assert (packed.dtype, state) == (torch.uint8, "state")
        return W

    functional = SimpleNamespace(dequantize_4bit=dequantize_4bit)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(functional=functional))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
    assert torch.equal(adapter.base_weight("0"), W)


def test_other_packed_weights_are_refused():
    layer = nn.Linear(8, 6)
    layer.weight = nn.Parameter(torch.zeros(6, 8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(AdapterError, match="not floating-point weights; load it unquantized"):
        ll.attach(nn.Sequential(layer), ll.LoraConfig(r=2, target_modules="0"))
