""" "all-linear" means what PEFT's does; where it is less, it says so."""

import warnings

import pytest
import torch
import transformers
from peft import LoraConfig as PeftConfig
from peft import get_peft_model

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.targets import all_linear_notes, select
from tests.helpers.tiny_experts import tiny_experts, tokens
from tests.helpers.tiny_models import tiny

_USUAL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
_BERT = transformers.BertConfig(vocab_size=99, **_USUAL)
_IMAGES = {**_USUAL, "image_size": 8, "patch_size": 4}
_CLIP = transformers.CLIPConfig(
    text_config={**_USUAL, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2},
    vision_config=_IMAGES,
)
ALL = ll.LoraConfig(r=2, target_modules="all-linear")
# With poolers, prediction heads, projections, classifiers of images, and gates a row high.
MODELS = {
    "llama": lambda: tiny("llama"),
    "gpt2": lambda: tiny("gpt2"),
    "t5": lambda: tiny("t5"),
    "a pooler": lambda: transformers.BertModel(_BERT),
    "a language model's head": lambda: transformers.BertForMaskedLM(_BERT),
    "a head for tokens": lambda: transformers.BertForTokenClassification(_BERT),
    "projections": lambda: transformers.CLIPModel(_CLIP),
    "vit": lambda: tiny("vit"),
    "qwen2-moe": lambda: tiny_experts("qwen2-moe"),
    "mixtral": lambda: tiny_experts("mixtral"),
}


@pytest.mark.parametrize("word", ["all-linear", "All-Linear"])
@pytest.mark.parametrize("name", MODELS)
def test_it_means_what_it_means_in_peft(name, word):
    ours = {site.module for site in select(ll.anatomy(MODELS[name]()), word)}
    peft = get_peft_model(MODELS[name](), PeftConfig(target_modules=word))
    assert ours == set(peft.targeted_module_names)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_classifiers_head_is_peft_s_too_where_that_trains_it_whole(kind):
    model = tiny(kind)
    ours = {site.module for site in select(ll.anatomy(model), "all-linear")}
    peft = get_peft_model(model, PeftConfig(target_modules="all-linear", task_type="SEQ_CLS"))
    assert ours == {n for n in peft.targeted_module_names if not n.startswith("classifier")}
    with pytest.warns(UserWarning, match=r"leaves the head alone \(classifier\); to train it"):
        ll.attach(tiny(kind), ALL)
    whole = ALL.replace(modules_to_save=["classifier"])
    assert not all_linear_notes(ll.anatomy(tiny(kind)), whole)


def test_a_matrix_that_is_too_thin_has_the_rank_that_it_has_room_for():
    model = tiny_experts("qwen2-moe")
    config = ll.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    gate = "model.layers.1.mlp.shared_expert_gate"
    with pytest.warns(UserWarning, match="all-linear|some layers") as caught:
        adapter = ll.attach(model, config)
    told = [str(warning.message) for warning in caught]
    assert any(f"above min(out, in) of some layers; the rank is 1 at {gate}" in t for t in told)
    assert adapter.sites[gate].r == 1
    assert {n: site.r for n, site in adapter.sites.items() if site.r != 8} == {gate: 1}
    assert {site.scale for site in adapter.sites.values()} == {2.0}
    # The plan, the workbench's ranks and the dry run are of the same ranks.
    budget = ll.budget(model.config, config)
    assert budget.parameters_trainable == adapter.trainable
    assert any(gate in note for note in budget.notes)
    ll.detach(model)
    plain = tiny_experts("qwen2-moe")
    adapter = ll.attach(model, config)
    expected = model(input_ids=tokens()).logits
    with torch.no_grad():
        for site in adapter.sites.values():
            plain.get_submodule(site.site.module).weight.add_(2.0 * site.B @ site.A)
    torch.testing.assert_close(expected, plain(input_ids=tokens()).logits, rtol=1e-3, atol=1e-3)


def test_a_rank_that_was_asked_for_by_name_is_refused_where_there_is_no_room():
    model = tiny_experts("qwen2-moe")
    for fields in (
        {"target_modules": ["shared_expert_gate", "q"], "r": 8},
        {"target_modules": "all-linear", "r": 2, "rank_pattern": {"shared_expert_gate": 4}},
        {"target_modules": "all-linear", "r": 1000},
    ):
        with pytest.raises(ConfigError, match=r"is above min\(out, in\); use at most"):
            ll.attach(model, ll.LoraConfig(**fields))
    assert not ll.attached(model)


def test_adaloras_budget_counts_the_triplets_that_are_there():
    model = tiny_experts("qwen2-moe")
    config = ll.AdaLoraConfig(
        target_r=2, init_r=4, target_modules="all-linear", tinit=1, tfinal=1, deltaT=1
    )
    with pytest.warns(UserWarning, match="some layers; the rank is 1 at"):
        adapter = ll.attach(model, config)
    count = len(adapter.sites)
    assert sum(adapter.ranks.values()) == 4 * (count - 1) + 1
    optimizer = torch.optim.AdamW(adapter.parameters(), 1e-2)
    adapter.begin_training(optimizer, 4)
    for _ in range(4):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(adapter.ranks.values()) == 2 * (count - 1) + 1


@pytest.mark.parametrize(
    ("name", "lacking"), [("mixtral", "experts.gate_up_proj"), ("llama4", "feed_forward.router")]
)
def test_what_it_does_not_reach_is_said_with_its_share(name, lacking):
    model = tiny_experts(name)
    with pytest.warns(UserWarning, match="does not reach") as caught:
        adapter = ll.attach(model, ALL)
    (told,) = (str(w.message) for w in caught if "does not reach" in str(w.message))
    reached = {path: model.get_submodule(path) for path in adapter.sites}
    known = {id(m.weight) for m in (*reached.values(), *embeddings(model))}
    ours = {id(p) for p in adapter.parameters()}
    beyond = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in known | ours)
    assert f"{beyond / ll.anatomy(model).parameters:.1%} of the model's weights" in told
    assert lacking in told


def test_a_router_that_is_left_alone_is_named_once():
    experts = ("experts.gate_up_proj", "experts.down_proj")
    config = ll.LoraConfig(r=2, target_modules="all-linear", target_parameters=experts)
    (told,) = all_linear_notes(ll.anatomy(tiny_experts("llama4")), config)
    assert "feed_forward.router" in told
    assert "router.weight" not in told


def embeddings(model):
    return model.get_input_embeddings(), model.get_output_embeddings()


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "a pooler"])
def test_it_says_nothing_where_it_is_every_linear_layer(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ll.attach(MODELS[name](), ALL)
