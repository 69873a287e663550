"""A few tokens whose vectors are learned: PEFT's trainable_token_indices, both ways."""

import copy

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from tests.helpers.lora_outputs import outputs, stirred
from tests.helpers.peft_files import EXACT, assert_changed, peft_model, peft_trained
from tests.helpers.tiny_models import tiny, tiny_inputs

FIELDS = {"r": 2, "lora_alpha": 6}
TARGETS = {
    "llama": "q_proj",
    "smollm": "q_proj",
    "gpt2": "c_attn",
    "gemma": "q_proj",
    "bert": "query",
}


def tokens_of(batch):
    """Two tokens that are read, and one that is not."""
    read = batch["input_ids"].unique().tolist()
    return [read[1], read[-1], next(n for n in range(90) if n not in read)]


@pytest.mark.parametrize("name", TARGETS)  # smollm, gpt2 and gemma tie their output layer
def test_the_rows_are_learned_at_both_ends_and_files_go_both_ways(name, tmp_path):
    model = tiny(name).double()
    batch = tiny_inputs(model)
    twin, before = copy.deepcopy(model), outputs(model, batch)
    tokens = tokens_of(batch)
    fields = {**FIELDS, "target_modules": [TARGETS[name]], "trainable_token_indices": tokens}
    adapter = ll.attach(model, ll.LoraConfig(**fields))
    torch.testing.assert_close(outputs(model, batch), before, **EXACT)
    theirs = peft_trained(twin, tmp_path / "theirs", **fields)
    stirred(adapter)
    y = outputs(model, batch)
    assert_changed(y, before)
    ll.save_adapter(model, tmp_path / "ours")
    read = peft_model(copy.deepcopy(twin), tmp_path / "ours")
    torch.testing.assert_close(outputs(read, batch), y, **EXACT)
    ll.merge(model)
    torch.testing.assert_close(outputs(model, batch), y, **EXACT)
    ll.detach(model)
    assert torch.equal(outputs(model, batch), before)
    ll.load_adapter(twin, tmp_path / "theirs")
    torch.testing.assert_close(outputs(twin, batch), outputs(theirs, batch), **EXACT)


def test_only_the_rows_learn_and_they_are_counted():
    model = tiny("smollm")
    width = model.config.hidden_size
    plain = ll.attach(copy.deepcopy(model), ll.LoraConfig(**FIELDS)).trainable
    config = ll.LoraConfig(**FIELDS, trainable_token_indices={"embed_tokens": [3, 5]})
    adapter = ll.attach(model, config)
    assert adapter.trainable == plain + 2 * width
    assert ll.budget(model, config).parameters_trainable == adapter.trainable
    table = model.get_input_embeddings().weight
    before = table.clone()
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.square().mean().backward()
    optimizer.step()
    rows = adapter.tokens.rows["model.embed_tokens"].weight
    assert (rows != before[[3, 5]]).any(1).all()
    assert torch.equal(table, before)
    ll.merge(model)
    changed = (table != before).any(1).nonzero().flatten().tolist()
    assert changed == [3, 5]
    assert ll.dry_run(tiny("smollm"), config, batch_size=1, sequence_length=8).peak


def test_samples_of_one_batch_have_their_own_rows():
    model = tiny("smollm").double()
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = ll.LoraConfig(**FIELDS, trainable_token_indices=[3, 4 + seed])
        stirred(ll.attach(model, config, name))
    ids = torch.tensor([[3, 4, 5], [5, 4, 3], [3, 3, 4]])
    with ll.mixed_batch(model, ["a", None, "b"]):
        mixed = model(input_ids=ids).logits
    for row, name in enumerate(["a", None, "b"]):
        ll.activate(model, name)
        torch.testing.assert_close(mixed[row], model(input_ids=ids).logits[row], **EXACT)


def test_what_cannot_be_is_named(tmp_path):
    model = tiny("llama")
    for given, message in (
        ([], None),
        ([1, 1], "each once"),
        ([-1], "trainable_token_indices is -1"),
        (["a"], "trainable_token_indices is 'a'"),
        ({"embed_tokens": []}, "name at least one"),
    ):
        if message is None:
            assert ll.LoraConfig(trainable_token_indices=given) == ll.LoraConfig()
            continue
        with pytest.raises(ConfigError, match=message):
            ll.LoraConfig(trainable_token_indices=given)
    for fields, message in (
        ({"trainable_token_indices": [96]}, "has 96 rows; call model.resize_token_embeddings"),
        ({"trainable_token_indices": {"q_proj": [1]}}, "'q_proj', which is no embedding"),
        (
            {"trainable_token_indices": [1], "target_modules": ["q", "embed_tokens"]},
            "names it elsewhere too",
        ),
        (
            {"trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]},
            "names it elsewhere too",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            ll.attach(model, ll.LoraConfig(**fields))
    assert ll.attached(model) == {}
    stirred(ll.attach(model, ll.LoraConfig(**FIELDS, trainable_token_indices=[95])))
    ll.save_adapter(model, tmp_path)
    with pytest.raises(AdapterError, match="for another base"):
        ll.load_adapter(tiny("llama", vocab_size=90), tmp_path)


def test_forms_without_a_place_for_them_are_refused(tmp_path):
    model = tiny("llama")
    ll.attach(model, ll.LoraConfig(**FIELDS, trainable_token_indices=[1]), "a")
    with pytest.raises(AdapterError, match=r"learns the vectors of tokens in model\.embed"):
        ll.export_uniform(model, tmp_path / "out")
    with pytest.raises(AdapterError, match="is not a sum of products"):
        ll.combine(model, {"a": 1.0}, "b")
