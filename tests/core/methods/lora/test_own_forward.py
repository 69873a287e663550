"""Layers whose `forward` stands on the instance: accelerate's hooks, and what else patches."""

import copy
import functools
import types

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import (
    AlignDevicesHook,
    SequentialHook,
    add_hook_to_module,
    attach_align_device_hook_on_blocks,
    remove_hook_from_module,
)
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.quantized_layers import Linear4bit
from tests.helpers.tiny_models import tiny, tiny_inputs

BLOCKS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head")


def hook_leaves(model, *_):
    for layer in list(model.modules()):
        if not list(layer.children()):
            add_hook_to_module(layer, AlignDevicesHook("cpu"))


def hook_twice(model, *_):
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            add_hook_to_module(layer, SequentialHook(AlignDevicesHook("cpu")))
            add_hook_to_module(layer, AlignDevicesHook("cpu"), append=True)


def hook_blocks(model, *_):
    places = dict.fromkeys((*BLOCKS, "model.rotary_emb"), "cpu")
    attach_align_device_hook_on_blocks(model, places, offload=dict.fromkeys(places, False))


def wrap(model, *_):
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            layer.forward = functools.wraps(layer.forward)(functools.partial(layer.forward))


def bind(model, *_):
    def linear(self, x):
        return nn.functional.linear(x, self.weight, self.bias)

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.forward = types.MethodType(linear, layer)
        if isinstance(layer, nn.Embedding):
            layer.forward = functools.partial(nn.functional.embedding, weight=layer.weight)


def offload_to_cpu(model, _):
    cpu_offload(model, "cpu")


def offload_to_disk(model, folder):
    disk_offload(model, str(folder), "cpu")


def dispatch(model, folder):
    places = dict.fromkeys((*BLOCKS, "model.rotary_emb"), "cpu") | {"model.layers.0": "disk"}
    dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


WHOLE = (hook_leaves, hook_twice, hook_blocks, wrap, bind)
OFFLOADED = (offload_to_cpu, offload_to_disk, dispatch)
TARGETS = {
    "linear": {"target_modules": ["q_proj", "down_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "lengths": {"target_modules": ["q_proj", "up_proj"], "use_dora": True},
    "from the base": {"target_modules": ["k_proj"], "init_lora_weights": "pissa"},
}


def attached(model, **fields):
    common = {"r": 2, "lora_alpha": 6, "init_lora_weights": False}
    adapter = ll.attach(model, ll.LoraConfig(**{**common, **fields}))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapter


def built(model, adapter):
    """The plain model with W₀ + ΔW, or with m · (W₀ + ΔW)/‖W₀ + ΔW‖, written in by hand."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for site in adapter.sites.values():
            weight = model.get_submodule(site.site.module).weight
            start = 0 if site.initial is None else site.initial[1] @ site.initial[0]
            delta = site.scale * (site.B @ site.A - start)
            weight.add_(delta.T if site.site.kind == "embedding" else delta)
            if site.magnitude is not None:
                weight.mul_((site.magnitude / weight.norm(dim=1))[:, None])
    return model


@pytest.mark.parametrize("patch", [*WHOLE, *OFFLOADED])
@pytest.mark.parametrize("kind", TARGETS)
def test_an_adapter_acts_whoever_has_the_forward(patch, kind, tmp_path):
    plain = tiny("llama").double()
    model, batch = copy.deepcopy(plain), tiny_inputs(plain)
    patch(model, tmp_path)
    forwards = [part.__dict__.get("forward") for part in model.modules()]
    adapter = attached(model, **TARGETS[kind])
    assert not any(p.is_meta for p in adapter.parameters())
    expected = built(plain, adapter)(**batch)
    found = model(**batch)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-9, atol=1e-9)
    found.logits.sum().backward()
    assert all(p.grad.any() for p in adapter.parameters())
    ll.save_adapter(model, tmp_path / "adapter")
    again = copy.deepcopy(plain)
    ll.load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(again(**batch).logits, expected.logits, rtol=1e-6, atol=1e-6)
    ll.detach(model)
    assert forwards == [part.__dict__.get("forward") for part in model.modules()]
    assert torch.equal(model(**batch).logits, plain(**batch).logits)


@pytest.mark.parametrize("patch", WHOLE)
def test_a_patch_may_come_after_the_adapter(patch):
    plain = tiny("llama").double()
    model, batch = copy.deepcopy(plain), tiny_inputs(plain)
    adapter = attached(model, target_modules=["q_proj", "down_proj", "embed_tokens"])
    patch(model)
    expected = built(plain, adapter)(**batch).logits
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-9, atol=1e-9)
    ll.merge(model)
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-9, atol=1e-9)
    ll.detach(model)
    assert torch.equal(model(**batch).logits, plain(**batch).logits)
    adapter = attached(model, target_modules=["v_proj"])
    expected = built(plain, adapter)(**batch).logits
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("after", [False, True])
def test_a_hook_may_go_while_an_adapter_is_there(after):
    plain = tiny("llama").double()
    model, batch = copy.deepcopy(plain), tiny_inputs(plain)
    if not after:
        hook_leaves(model)
    adapter = attached(model, target_modules=["q_proj", "down_proj", "embed_tokens"])
    if after:
        hook_twice(model)
    remove_hook_from_module(model, recurse=True)
    expected = built(plain, adapter)(**batch).logits
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-9, atol=1e-9)
    ll.detach(model)
    assert torch.equal(model(**batch).logits, plain(**batch).logits)


def test_a_patch_runs_once_a_pass_and_two_adapters_take_turns():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Conv1d(3, 3, 1)).double()
    calls = []
    for layer in model:

        def counted(x, own=layer.forward):
            calls.append(own)
            return own(x)

        layer.forward = counted
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    common = {"r": 2, "init_lora_weights": False, "target_modules": ["0", "1"]}
    base = model(x)
    outputs = {}
    for name in ("a", "b"):
        sites = ll.attach(model, ll.LoraConfig(**common), name).sites
        first, second = sites["0"], sites["1"]
        W = model[0].weight + first.scale * first.B @ first.A
        kernel = model[1].weight + (second.scale * second.B @ second.A)[..., None]
        outputs[name] = nn.functional.conv1d(x @ W.T, kernel, model[1].bias)
    for name, expected in outputs.items():
        ll.activate(model, name)
        calls.clear()
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
        assert len(calls) == 2
    with ll.mixed_batch(model, ["a", "b"]):
        mixed = model(x)
    torch.testing.assert_close(mixed[0], outputs["a"][0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixed[1], outputs["b"][1], rtol=1e-10, atol=1e-10)
    ll.activate(model, None)
    assert torch.equal(model(x), base)


def test_a_quantized_layers_patched_forward_still_runs():
    model = nn.Sequential(Linear4bit(nn.Linear(8, 8)))
    x, ran = torch.randn(3, 8), []
    forward = model[0].forward

    def patched(x):
        ran.append(x)
        return forward(x)

    model[0].forward = patched
    base = model(x)
    (site,) = attached(model, target_modules=["0"]).sites.values()
    expected = base + site.scale * x @ site.A.T @ site.B.T
    torch.testing.assert_close(model(x), expected)
    assert len(ran) == 2


def test_what_is_offloaded_is_not_merged_nor_copied(tmp_path):
    model = tiny("llama")
    offload_to_disk(model, tmp_path)
    attached(model, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=r"q_proj is offloaded, so that nothing can be merged"):
        ll.merge(model)
    with pytest.raises(AdapterError, match="not in memory"):
        ll.export_merged(model, tmp_path / "merged")
    ll.detach(model)
    with pytest.raises(AdapterError, match="lm_head is offloaded, so that there is nothing"):
        attached(model, target_modules=["q_proj"], modules_to_save=["lm_head"])


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("offload", OFFLOADED)
def test_offloading_after_the_adapter_is_refused_in_the_first_pass(offload, kind, tmp_path):
    model = tiny("llama")
    attached(model, **TARGETS[kind])
    offload(model, tmp_path)
    with pytest.raises(AdapterError, match="offload the model first, then attach"):
        model(**tiny_inputs(model))


def test_what_is_brought_for_a_whole_module_is_refused():
    model = tiny("llama")
    cpu_offload(model, "cpu", preload_module_classes=["LlamaMLP"])
    with pytest.raises(AdapterError, match=r"offloaded as a part of model\.layers\.0\.mlp"):
        attached(model, target_modules=["q_proj", "down_proj"])
    attached(model, target_modules=["q_proj"])
    model(**tiny_inputs(model))
