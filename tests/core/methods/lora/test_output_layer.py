"""LoRA on the layer that makes logits: one with a weight of its own is a matrix like any other."""

import copy

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from tests.helpers.lora_outputs import outputs, stirred
from tests.helpers.peft_files import EXACT, assert_changed, peft_model, peft_trained, random_config
from tests.helpers.tiny_models import tiny, tiny_inputs

UNTIED = {"tie_word_embeddings": False}
VARIANTS = {
    "plain": {},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "with the embedding": {"target_modules": ["q", "lm_head", "embed_tokens"]},
}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_it_is_adapted_merged_and_read_by_peft(name, tmp_path):
    model = tiny(name, **UNTIED).double()
    batch, bare, twin = tiny_inputs(model), copy.deepcopy(model), copy.deepcopy(model)
    before = outputs(model, batch)
    adapter = ll.attach(model, random_config(target_modules=["lm_head"]))
    stirred(adapter)
    assert [*adapter.sites] == ["lm_head"]
    y = outputs(model, batch)
    assert_changed(y, before)
    ll.save_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(peft_model(bare, tmp_path), batch), y, **EXACT)
    ll.load_adapter(twin, tmp_path)
    torch.testing.assert_close(outputs(twin, batch), y, **EXACT)
    ll.merge(model)
    torch.testing.assert_close(outputs(model, batch), y, **EXACT)
    ll.detach(model)
    assert torch.equal(outputs(model, batch), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_reaches_peft(variant, tmp_path):
    model = tiny("llama", **UNTIED).double()
    batch, bare = tiny_inputs(model), copy.deepcopy(model)
    fields = {"target_modules": ["q", "lm_head"], **VARIANTS[variant]}
    stirred(ll.attach(model, random_config(**fields)))
    y = outputs(model, batch)
    ll.save_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(peft_model(bare, tmp_path), batch), y, **EXACT)


@pytest.mark.parametrize(
    "targets", [["q_proj", "lm_head"], ["lm_head"], ["embed_tokens", "lm_head"]]
)
def test_what_peft_trains_there_is_loaded(targets, tmp_path):
    model = tiny("llama", **UNTIED).double()
    batch = tiny_inputs(model)
    theirs = peft_trained(model, tmp_path, r=4, target_modules=targets)
    ll.load_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(model, batch), outputs(theirs, batch), **EXACT)


def test_it_is_not_among_all_linear_as_in_peft_and_has_no_cell_of_the_grid():
    found = ll.anatomy(tiny("llama", **UNTIED))
    assert "lm_head" not in {site.name for site in found.sites}
    adapter = ll.attach(tiny("llama", **UNTIED), random_config(target_modules="all-linear"))
    assert "lm_head" not in adapter.sites


def test_its_price_is_r_times_in_plus_out_and_close_to_the_step():
    model, plan = tiny("llama", **UNTIED), ll.LoraConfig(r=4, target_modules=["lm_head"])
    r, d, vocabulary = 4, model.config.hidden_size, model.config.vocab_size
    forecast = ll.budget(model, plan, batch_size=2, sequence_length=16)
    assert forecast.parameters_trainable == r * (d + vocabulary) == ll.attach(model, plan).trainable
    step = ll.dry_run(tiny("llama", **UNTIED), plan, batch_size=2, sequence_length=16)
    assert forecast.adapted.total == pytest.approx(step.peak, rel=0.05)


def test_loaders_without_patterns_get_it_too(tmp_path):
    model = tiny("llama", **UNTIED).double()
    batch, bare = tiny_inputs(model), copy.deepcopy(model)
    stirred(
        ll.attach(
            model, random_config(target_modules=["q", "lm_head"], rank_pattern={"lm_head": 5})
        )
    )
    y = outputs(model, batch)
    ll.export_uniform(model, tmp_path / "out")
    torch.testing.assert_close(outputs(peft_model(bare, tmp_path / "out"), batch), y, **EXACT)


def test_a_tied_one_is_refused_where_it_is_named_and_where_a_file_names_it(tmp_path):
    tied = tiny("llama", tie_word_embeddings=True).double()
    peft_trained(tied, tmp_path, r=4, target_modules=["lm_head"])
    with pytest.raises(ConfigError, match=r"lm_head and model\.embed_tokens share one weight"):
        ll.attach(tied, random_config(target_modules=["q", "lm_head"]))
    with pytest.raises(AdapterError, match="share one weight"):
        ll.load_adapter(tied, tmp_path)
    assert ll.attached(tied) == {}
    tied.lm_head.weight = nn.Parameter(tied.lm_head.weight.detach().clone())  # as the line says
    ll.attach(tied, random_config(target_modules=["q", "lm_head"]))
