"""Every method on models of which accelerate keeps a part, or all, on the CPU or the disk."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import remove_hook_from_module

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.dispatched import METHODS, OWN_WEIGHTS, SPREAD, moved, spread
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_text import tiny_llama

IDS = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
PLAIN = {"rtol": 1e-5, "atol": 1e-5}


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def gradients(model, adapter):
    for parameter in adapter.parameters():
        parameter.grad = None
    model(input_ids=IDS, labels=IDS).loss.backward()
    return [parameter.grad for parameter in adapter.parameters()]


CASES = [
    *((method, "a block on the disk") for method in METHODS),
    ("LoRA", "all but the embedding"),
    ("LoRA", "everything"),
    *((method, "everything") for method in ("embedding", "tokens", "IA3", "PreEmbed", "Adapter^H")),
]


@pytest.mark.parametrize(("method", "places"), CASES)
def test_a_method_learns_as_on_a_model_in_one_piece(method, places, tmp_path):
    # In float32 PiSSA's logits are 1.6e-5 from float64's on either model, on different sides.
    dtype = torch.float64
    plain = tiny_llama().to(dtype)
    model = spread(tmp_path / "base", SPREAD[places], dtype=dtype)
    base = logits(plain)
    assert torch.equal(logits(model), base)
    expected, adapter = moved(plain, METHODS[method]), moved(model, METHODS[method])
    assert not any(parameter.is_meta for parameter in adapter.parameters())
    tuned = logits(plain)
    assert not torch.allclose(tuned, base, atol=1e-3)
    for _ in range(2):
        torch.testing.assert_close(logits(model), tuned, **PLAIN)
        found = gradients(model, adapter)
        torch.testing.assert_close(found, gradients(plain, expected), rtol=1e-4, atol=1e-5)
    ll.save_adapter(model, tmp_path / "adapter")
    again = tiny_llama().to(dtype)
    ll.load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(logits(again), tuned, **PLAIN)
    adapter.restore(adapter.snapshot())
    ll.activate(model, None)
    assert torch.equal(logits(model), base)
    ll.activate(model, "default")
    with pytest.raises(
        AdapterError,
        match=r"offloaded, so that nothing can|no bias that|cannot be merged",
    ):
        ll.merge(model)
    torch.testing.assert_close(logits(model), tuned, **PLAIN)
    ll.detach(model)
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("method", OWN_WEIGHTS)
def test_what_is_kept_away_is_not_trained_in_place(method, tmp_path):
    model = spread(tmp_path, SPREAD["all but the embedding"])
    base = logits(model)
    with pytest.raises(AdapterError, match=r"is offloaded, so that (it|there)"):
        ll.attach(model, OWN_WEIGHTS[method])
    assert ll.attached(model) == {}
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize(
    ("method", "offload"), [*((m, cpu_offload) for m in METHODS), ("LoRA", disk_offload)]
)
def test_offloading_after_the_adapter_is_refused_in_the_first_pass(method, offload, tmp_path):
    model = tiny_llama()
    moved(model, METHODS[method])
    offload(model, *([str(tmp_path)] if offload is disk_offload else []), execution_device="cpu")
    with pytest.raises(AdapterError, match=r"offload the model first, then attach"):
        model(input_ids=IDS)


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("config", [ll.FullConfig(), ll.LoraConfig(r=2, bias="all")])
def test_own_weights_that_were_offloaded_after_the_adapter_are_nobodys_any_more(config, gone):
    model = tiny("gpt2")
    moved(model, config)
    cpu_offload(model, "cpu")
    if gone:
        remove_hook_from_module(model, recurse=True)
    with pytest.raises(AdapterError, match="offload it first, then attach"):
        ll.detach(model)


TIED = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4, 5]},
}


@pytest.mark.parametrize("kept", ["model.embed_tokens", "lm_head", "both"])
@pytest.mark.parametrize("case", TIED)
@pytest.mark.parametrize("passes", [0, 1])
def test_tied_ends_stay_one_also_where_an_end_is_kept_away(case, kept, passes):
    """accelerate gives each end a tensor of its own, at the latest in the first pass."""
    plain = tiny("smollm")
    model, batch = copy.deepcopy(plain), tiny_inputs(plain)
    for path in ("model.embed_tokens", "lm_head") if kept == "both" else (kept,):
        cpu_offload(model.get_submodule(path), "cpu")
    for _ in range(passes):
        model(**batch)
    config = ll.LoraConfig(r=2, **TIED[case])
    expected, adapter = moved(plain, config), moved(model, config)
    assert adapter.trainable == expected.trainable
    torch.testing.assert_close(model(**batch).logits, plain(**batch).logits, **PLAIN)


@pytest.mark.parametrize("method", ["LoRA", "OFT", "PreEmbed", "PreLayer", "Adapter^L"])
def test_what_is_brought_for_a_whole_module_takes_nothing_in(method):
    model = tiny_llama()
    cpu_offload(model, "cpu", preload_module_classes=["LlamaDecoderLayer", "LlamaModel"])
    with pytest.raises(AdapterError, match="preload_module_classes"):
        ll.attach(model, METHODS[method])
    assert ll.attached(model) == {}
