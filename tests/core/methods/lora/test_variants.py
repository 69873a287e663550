"""DoRA, PiSSA, OLoRA, LoRA-FA: against PEFT and against the formula with every matrix built."""

import copy

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.dora import updated_row_norms
from lora_lab.methods.lora.init import olora
from tests.helpers.lora_outputs import stirred
from tests.helpers.tiny_models import ARCHITECTURES, tiny, tiny_inputs

VARIANTS = {
    "dora": {"use_dora": True, "init_lora_weights": False},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "lorafa": {"use_lorafa": True, "init_lora_weights": False},
}


def config(**changes) -> ll.LoraConfig:
    return ll.LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": "all-linear", **changes})


def logits(model: nn.Module, batch) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    result = model(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()})
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_merging_gives_the_same_outputs_and_detaching_every_bit(variant, name):
    model = tiny(name).double().eval()
    batch = tiny_inputs(model)
    before = copy.deepcopy(model.state_dict())
    bare = logits(model, batch)
    adapter = ll.attach(model, config(**VARIANTS[variant]))
    if variant.startswith(("pissa", "olora")):
        torch.testing.assert_close(logits(model, batch), bare, rtol=1e-12, atol=1e-12)
    stirred(adapter)
    adapted = logits(model, batch)
    assert not torch.allclose(adapted, bare, atol=1e-4)
    ll.merge(model)
    torch.testing.assert_close(logits(model, batch), adapted, rtol=1e-7, atol=1e-7)
    ll.unmerge(model)
    torch.testing.assert_close(logits(model, batch), adapted, rtol=0, atol=0)
    ll.detach(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
@pytest.mark.parametrize("r", [1, 5, 24])
def test_olora_starts_at_the_first_columns_of_the_whole_qr(shape, r):
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    Q, R = torch.linalg.qr(W.double())
    A, B = olora(W, r)
    torch.testing.assert_close(B.double(), Q[:, :r], rtol=0, atol=1e-6)
    torch.testing.assert_close(A.double(), R[:r], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["dora", "pissa", "olora"])
def test_outputs_and_gradients_are_pefts(variant):
    from peft import LoraConfig, get_peft_model

    ours, theirs = tiny("llama").train(), tiny("llama").train()
    settings = VARIANTS[variant] | {"use_dora": variant == "dora"}
    peft_config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **settings
    )
    peer = get_peft_model(theirs, peft_config)
    adapter = ll.attach(ours, config(target_modules=["q", "down"], **VARIANTS[variant]))
    torch.manual_seed(5)
    pairs = []
    for site in adapter.sites.values():
        layer = peer.base_model.model.get_submodule(site.site.module)
        theirs_ = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        own = [site.A, site.B]
        if variant == "dora":
            theirs_.append(layer.lora_magnitude_vector["default"].weight)
            own.append(site.magnitude)
        pairs += zip(own, theirs_, strict=True)
    with torch.no_grad():
        for own_one, their_one in pairs:
            if variant != "dora":  # the starts agree, up to the signs of singular vectors
                torch.testing.assert_close(own_one.abs(), their_one.abs(), rtol=1e-3, atol=1e-4)
            moved = their_one + 0.05 * torch.randn_like(their_one)
            their_one.copy_(moved)
            own_one.copy_(moved)
    if variant != "dora":
        # The part that PEFT took out of W₀ is ours times the same signs: ΔW₀ is equal.
        for site in adapter.sites.values():
            layer = peer.base_model.model.get_submodule(site.site.module)
            A0, B0 = site.initial
            taken = adapter.base_weight(site.site.name) - layer.base_layer.weight
            torch.testing.assert_close(site.scale * B0 @ A0, taken, rtol=1e-3, atol=1e-4)
    batch = tiny_inputs(ours)
    y, z = logits(ours, batch), peer(**batch).logits
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)
    pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (y * pull).sum().backward()
    (z * pull).sum().backward()
    for own_one, their_one in pairs:
        torch.testing.assert_close(own_one.grad, their_one.grad, rtol=1e-3, atol=1e-4)


def test_doras_norm_is_that_of_the_built_matrix():
    torch.manual_seed(0)
    W, A, B = (torch.randn(*s, dtype=torch.float64) for s in ((20, 12), (3, 12), (20, 3)))
    expected = (W + 1.7 * B @ A).norm(dim=1)
    torch.testing.assert_close(updated_row_norms(W, A, B, 1.7), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dora_reaches_every_architecture(name):
    model = tiny(name).double().train()
    adapter = ll.attach(model, config(use_dora=True, init_lora_weights=False))
    logits(model, tiny_inputs(model)).double().pow(2).sum().backward()
    # GPT-2's cross-attention is not called without an encoder.
    sites = [site for site in adapter.sites.values() if "cross" not in site.site.role]
    assert all(p.grad is not None for site in sites for p in site.parameters())


def test_with_lora_fa_a_stays_and_x_is_not_kept():
    model = tiny("llama").train()
    adapter = ll.attach(model, config(use_lorafa=True))
    trained = set(map(id, adapter.parameters()))
    assert trained == {id(site.B) for site in adapter.sites.values()}
    layer = model.model.layers[0].self_attn.o_proj
    x = torch.randn(50, layer.in_features, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    assert x.data_ptr() not in {t.data_ptr() for t in kept}
    y.sum().backward()
    assert adapter.sites["model.layers.0.self_attn.o_proj"].A.grad is None


def test_dora_does_not_start_from_the_base():
    with pytest.raises(ConfigError, match="choose one"):
        config(use_dora=True, init_lora_weights="pissa")
