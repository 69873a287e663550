"""The model that comes with LoRA Lab: there without a network, small, and it has read something."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import islice, pairwise

import pytest
import torch
from safetensors import safe_open

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.models.entries import CATALOGUE
from lora_lab.tasks.embedded.world import World
from lora_lab.tasks.generation import generate
from pretraining.corpus import documents
from pretraining.mini_llama import SEED, make_model, make_tokenizer, pretrain

FOLDER = CATALOGUE["mini-llama"].shipped
UNREAD = SEED + 7  # documents that nobody has trained on


@pytest.fixture(scope="module")
def lm():
    return ll.load_model("mini-llama", device="cpu")


@pytest.mark.usefixtures("no_wheels", "no_network")
def test_it_loads_without_network_wheels_and_cache(cache):
    lm = ll.load_model("mini-llama", device="cpu")
    assert (lm.card.source, lm.card.license, lm.card.hub_id) == ("embedded", "Apache-2.0", None)
    assert lm.card.dtype == "float32"
    # Adapters record their base by this name, never by a path of this machine.
    assert lm.model.config._name_or_path == lm.model.name_or_path == "mini-llama"
    assert not cache.exists(), "nothing had to be unpacked"


def test_it_is_small_and_the_catalogue_knows_its_shape():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6
    config = json.loads((FOLDER / "config.json").read_text())
    for key, value in CATALOGUE["mini-llama"].config_values.items():
        assert config[key] == value, key
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        names = weights.keys()
        assert {weights.get_slice(name).get_dtype() for name in names} == {"F16"}


def test_its_tokenizer_is_the_scripts_and_loses_nothing(lm):
    made = make_tokenizer()
    assert made.backend_tokenizer.to_str() == lm.tokenizer.backend_tokenizer.to_str()
    for text in ("name[Café Zoë], 25 £", "  two  spaces\n\tand 漢字 🙂"):
        ids = lm.tokenizer(text)["input_ids"]
        assert lm.tokenizer.decode(ids) == text
    ends = lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id, lm.tokenizer.pad_token_id
    config = lm.model.generation_config
    assert ends == (config.bos_token_id, config.eos_token_id, config.pad_token_id)


def test_it_predicts_what_it_never_read(lm):
    """Better than counts of pairs of tokens do, in float64, on ten times as many documents."""
    rows = [tokens(lm, text) for text in islice(documents(UNREAD), 40)]
    count = sum(len(row) - 1 for row in rows)
    loss = sum(mean_loss(lm, row) * (len(row) - 1) for row in rows) / count
    pairs, firsts = Counter(), Counter()
    for text in islice(documents(SEED), 2000):
        row = tokens(lm, text)
        pairs.update(pairwise(row))
        firsts.update(row[:-1])
    size = len(lm.tokenizer)
    counted = sum(
        -math.log((pairs[pair] + 0.1) / (firsts[pair[0]] + 0.1 * size))
        for row in rows
        for pair in pairwise(row)
    )
    assert loss < 0.6 * counted / count


def tokens(lm, text):
    return lm.tokenizer(f"<s>{text}</s>")["input_ids"]


@torch.no_grad()
def mean_loss(lm, row):
    ids = torch.tensor([row])
    return lm.model(ids, labels=ids).loss.item()


def test_it_knows_little_facts_and_no_chats(lm):
    (written,) = generate(lm.model, lm.tokenizer, ["<s>The cow"], max_new_tokens=3)
    assert written.startswith("moos.")
    said = [[("user", f"{n}?"), ("assistant", f"{n}!")] for n in range(20)]
    turns = [[{"role": who, "content": text} for who, text in chat] for chat in said]
    chats = ll.load_task([{"messages": own} for own in turns])
    with pytest.raises(ConfigError, match="of mini-llama has no chat template"):
        ll.train(lm, chats, max_steps=1, start=False).start().result()


def test_lora_visibly_learns_mini_e2e(lm, tmp_path):
    config = ll.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    settings = {"max_steps": 40, "learning_rate": 1e-2, "eval_examples": 8, "kept_texts": 0}
    metrics = ll.train(lm, "mini-e2e", config, output_dir=tmp_path, **settings).result().metrics
    ll.detach(lm.model)
    assert metrics["loss_after"] < 0.6 * metrics["loss_before"]
    assert metrics["bleu_after"] > metrics["bleu_before"] + 3


def test_what_it_read_is_not_what_mini_e2e_asks_for():
    read = list(islice(documents(SEED + 1), 3000))
    names = {place.name for place in World(0, 100).restaurants}
    assert not [text for text in read if "name[" in text or "eatType" in text]
    assert not [name for name in names if any(name in text for text in read)]
    assert read == list(islice(documents(SEED + 1), 3000)), "the same seed, the same documents"
    assert len(set(read)) > 2950


def test_making_it_follows_from_the_seed(lm):
    before = torch.get_rng_state()
    losses = [list(pretrain(make_model(lm.tokenizer), lm.tokenizer, steps=2)) for _ in range(2)]
    assert losses[0] == losses[1]
    assert losses[0][0] == pytest.approx(math.log(len(lm.tokenizer)), abs=0.2), "it knows nothing"
    torch.set_rng_state(before)
