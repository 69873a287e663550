"""`resize_token_embeddings` on a model with adapters: it works, or is refused before anything."""

import copy
import pickle

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.lora_outputs import outputs
from tests.helpers.tiny_models import tiny, tiny_inputs

LEARNS_A_ROW_A_TOKEN = {
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied embedding": ("smollm", {"target_modules": ["q_proj", "embed_tokens"]}),
    "gpt2's": ("gpt2", {"target_modules": ["c_attn", "wte"]}),
    "t5's": ("t5", {"target_modules": ["q", "shared"]}),
    "output layer": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "saved output layer": ("llama", {"modules_to_save": ["lm_head"]}),
    "saved embedding": ("llama", {"modules_to_save": ["embed_tokens"]}),
    "saved tied": ("smollm", {"modules_to_save": ["lm_head", "embed_tokens"]}),
}


@pytest.mark.parametrize("size", [80, 110])
@pytest.mark.parametrize("case", LEARNS_A_ROW_A_TOKEN)
def test_it_is_refused_where_an_adapter_learns_a_row_a_token(case, size):
    name, fields = LEARNS_A_ROW_A_TOKEN[case]
    model = tiny(name)
    batch = tiny_inputs(model)
    ll.attach(model, ll.LoraConfig(r=2, init_lora_weights=False, **fields))
    before = outputs(model, batch)
    line = r"has a row for every token, and adapter 'default' learns it .* before attach, or call"
    for handle in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(AdapterError, match=line):
            handle.resize_token_embeddings(size)
        assert torch.equal(outputs(handle, batch), before)
    model.resize_token_embeddings(96)  # as many as there are
    ll.merge_and_unload(model)
    assert "resize_token_embeddings" not in vars(model)
    model.resize_token_embeddings(size)
    assert model.get_input_embeddings().weight.shape[0] == size


@pytest.mark.parametrize("name", ["llama", "smollm"])
def test_other_adapters_go_on_as_pefts_do(name):
    from peft import LoraConfig, get_peft_model

    model = tiny(name)
    theirs = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj"]))
    adapter = ll.attach(model, ll.LoraConfig(r=2, target_modules=["q_proj"]))
    by_name = dict(theirs.named_parameters())
    with torch.no_grad():
        for path, site in adapter.sites.items():
            site.B.normal_()
            for letter in "AB":
                key = f"base_model.model.{path}.lora_{letter}.default.weight"
                by_name[key].copy_(getattr(site, letter))
    for each in (model, theirs):
        torch.manual_seed(0)
        each.resize_token_embeddings(110)
    batch = {"input_ids": torch.tensor([[3, 109, 100, 5]])}
    torch.testing.assert_close(outputs(model, batch), outputs(theirs, batch))
    assert not any(p.requires_grad for p in model.lm_head.parameters())
    ll.detach(model)
    assert all(p.requires_grad for p in model.parameters())
    assert "resize_token_embeddings" not in vars(model)


def test_full_fine_tuning_is_asked_too():
    model = tiny("llama")
    ll.attach(model, ll.FullConfig())
    with pytest.raises(AdapterError, match="embed_tokens has a row for every token"):
        model.resize_token_embeddings(110)
    ll.detach(model)
    model.resize_token_embeddings(110)


def test_somebody_elses_resizing_comes_back():
    model = tiny("llama")
    called = []
    model.resize_token_embeddings = lambda *given: called.append(given)
    theirs = model.resize_token_embeddings
    ll.attach(model, ll.LoraConfig(r=2))
    model.resize_token_embeddings(110)
    assert called == [(110, None)]
    ll.detach(model)
    assert model.resize_token_embeddings is theirs
