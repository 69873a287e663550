"""DoRA's lengths follow the weights, whoever writes them: against the formula in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import lora_lab as ll
from lora_lab.checkpoint import load_adapter
from lora_lab.methods.lora import dora
from lora_lab.methods.lora.layers import owned_rows
from lora_lab.methods.steady_weights import steady_weights
from lora_lab.tasks.generation import generate
from tests.helpers.lora_outputs import stirred
from tests.helpers.made_up_hardware import cpu_can
from tests.helpers.recorded_fit import Recorded
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import CONFIG, logits, tiny_lm
from tests.helpers.weight_writers import WRITERS, by_address

LAYERS = {
    "llama": "model.layers.0.self_attn.q_proj",
    "gpt2": "transformer.h.0.attn.c_attn",  # stored (in, out), three sites
    "gpt-neox": "gpt_neox.layers.0.attention.query_key_value",  # sites of every third row
}


def adapted(name="llama", **changes):
    """A layer with DoRA of its own sites, and their adapter."""
    model = tiny(name).double().eval()
    fields = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "use_dora": True}
    adapter = ll.attach(model, ll.LoraConfig(**{**fields, **changes}))
    stirred(adapter)
    return model.get_submodule(LAYERS[name]), adapter


def formula(layer, x: Tensor) -> Tensor:
    """m·(W₀ + s·BA)/‖W₀ + s·BA‖·x + b with every matrix built (Liu et al., 2024, equation 5)."""
    weight = layer.weight.detach().clone()
    for site in layer.lora["default"].sites:
        own = owned_rows(weight, site.site)
        V = own.reshape(site.site.out_features, -1) + site.scale * site.B.detach() @ site.A.detach()
        V = V * (site.magnitude.detach() / V.norm(dim=1))[:, None]
        own.copy_(V.view(own.shape))
    return torch.nn.functional.linear(x, weight.T if layer.transposed else weight, layer.bias)


PASSES = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "grad": torch.enable_grad}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_follow_factors_and_base_whoever_wrote_them(name, writer):
    layer, _ = adapted(name)
    x = torch.randn(4, layer.lora["default"].sites[0].A.shape[1], dtype=torch.float64)
    written = {
        "A": [site.A for site in layer.lora["default"].sites],
        "B": [site.B for site in layer.lora["default"].sites],
        "all": list(layer.lora.parameters()),
        "base": [layer.weight],
    }
    for parameters in written.values():
        layer(x)  # an evaluation before, whose lengths must not stay
        WRITERS[writer](parameters)
        for mode in PASSES.values():
            with mode():
                found = layer(x)
            torch.testing.assert_close(found, formula(layer, x), rtol=1e-9, atol=1e-9)


def test_a_pass_between_backward_and_step_leaves_nothing_behind():
    layer, adapter = adapted()
    x = torch.randn(4, 32, dtype=torch.float64)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        layer(x).square().sum().backward()
        with torch.no_grad():
            layer(x)
        optimizer.step()
        torch.testing.assert_close(layer(x), formula(layer, x), rtol=1e-9, atol=1e-9)
        optimizer.zero_grad()


def test_a_compiled_layer_follows_too():
    layer, _ = adapted()
    x = torch.randn(4, 32, dtype=torch.float64)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), formula(layer, x), rtol=1e-9, atol=1e-9)
        by_address(list(layer.lora.parameters()))


def test_lengths_are_exact_under_autocast(monkeypatch):
    layer, _ = adapted()
    layer.float()
    found = []
    real = dora.updated_row_norms
    monkeypatch.setattr(dora, "updated_row_norms", lambda *a: found.append(real(*a)) or found[-1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(4, 32))
    (site,) = layer.lora["default"].sites
    W, A, B = (t.detach().double() for t in (layer.weight, site.A, site.B))
    torch.testing.assert_close(found[0].double(), (W + site.scale * B @ A).norm(dim=1))


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_fused_run_trains_what_it_saves(tmp_path, monkeypatch, accumulated, checkpointing):
    cpu_can(monkeypatch, fused_optimizer=True)
    lm = tiny_lm()
    blank = copy.deepcopy(lm.model)
    run = Recorded(
        tmp_path,
        lm,
        CONFIG.replace(use_dora=True),
        gradient_accumulation_steps=accumulated,
        gradient_checkpointing=checkpointing,
        learning_rate=0.05,
        warmup_steps=0,
    ).run()
    trained = logits(lm.model.eval())
    ll.save_adapter(lm.model, tmp_path / "adapter")
    load_adapter(blank, tmp_path / "adapter")
    assert len(run.losses) == 6
    torch.testing.assert_close(trained, logits(blank.eval()), rtol=1e-4, atol=1e-4)
    ll.merge(lm.model)
    torch.testing.assert_close(trained, logits(lm.model), rtol=1e-4, atol=1e-4)


def counted_norms(monkeypatch) -> list[int]:
    calls: list[int] = []
    real = dora.updated_row_norms
    monkeypatch.setattr(dora, "updated_row_norms", lambda *a: calls.append(1) or real(*a))
    return calls


def test_a_run_takes_the_lengths_once_a_step(tmp_path, monkeypatch):
    calls = counted_norms(monkeypatch)
    more = {"gradient_accumulation_steps": 3, "gradient_checkpointing": True, "max_steps": 2}
    run = Recorded(tmp_path, config=CONFIG.replace(use_dora=True), **more).run()
    assert len(calls) == 2 * len(run.adapter.sites)


def test_generating_takes_the_lengths_once(monkeypatch):
    lm = tiny_lm()
    adapter = ll.attach(lm.model, CONFIG.replace(use_dora=True))
    stirred(adapter)
    calls = counted_norms(monkeypatch)
    generate(lm.model, lm.tokenizer, ["a b", "c"], max_new_tokens=5)
    assert len(calls) == len(adapter.sites)


def test_steady_blocks_end():
    layer, adapter = adapted()
    x = torch.randn(4, 32, dtype=torch.float64)
    with steady_weights():
        layer(x)
        with steady_weights():
            layer(x)
    by_address(list(adapter.parameters()))
    with steady_weights():
        torch.testing.assert_close(layer(x), formula(layer, x), rtol=1e-9, atol=1e-9)
