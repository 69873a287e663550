"""The curve over λ, and the text and losses that it is made of."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lora_lab.analysis import losses
from lora_lab.analysis.intruders import find_intruders
from lora_lab.analysis.scaled_intruders import intruder_curve, scaled_intruders
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError, TaskError
from lora_lab.methods.api import attach
from lora_lab.methods.attached import activate, active
from lora_lab.models import LoadedModel
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

EXAMPLES = tiny_task().validation
TEXTS = ["a b c d >", "to be or not to be", "x"]


def adapted(alpha=4, **changes):
    lm = tiny_lm()
    torch.manual_seed(1)
    adapter = attach(
        lm.model, LoraConfig(r=4, lora_alpha=alpha, init_lora_weights=False, **changes)
    )
    found = find_intruders(adapter.sites.values(), adapter.base_weight, epsilon=0.8)
    return lm, found


def cross_entropy(model, ids, first):
    """Mean −ln p of tokens first, first + 1 …, one sequence at a time, in float64."""
    with torch.no_grad():
        p = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return [-float(p[i - 1, ids[i]]) for i in range(first, len(ids))]


def task_loss(lm, examples):
    found = []
    for example in examples:
        prompt = lm.tokenizer(example.prompt + "\n")["input_ids"]
        completion = [*lm.tokenizer(example.completion)["input_ids"], lm.tokenizer.eos_token_id]
        found += cross_entropy(lm.model, prompt + completion, len(prompt))
    return np.mean(found)


def text_loss(lm, texts):
    return np.mean(
        [
            loss
            for text in texts
            for loss in cross_entropy(lm.model, lm.tokenizer(text)["input_ids"], 1)
        ]
    )


def test_both_losses_at_every_factor():
    lm, found = adapted(alpha=16)
    done = []
    curve = intruder_curve(
        lm,
        EXAMPLES,
        found,
        factors=(0, 0.5, 1),
        base_texts=TEXTS,
        on_progress=lambda *at: done.append(at),
    )
    assert curve.factors.tolist() == [0, 0.5, 1]
    for i, factor in enumerate(curve.factors):
        with scaled_intruders(lm.model, found, factor):
            assert curve.task_losses[i] == pytest.approx(task_loss(lm, EXAMPLES), rel=1e-5)
            assert curve.base_losses[i] == pytest.approx(text_loss(lm, TEXTS), rel=1e-5)
    assert len(set(curve.task_losses)) == len(set(curve.base_losses)) == 3
    activate(lm.model, None)
    assert curve.base_reference == pytest.approx(text_loss(lm, TEXTS), rel=1e-5)
    count = sum(item.count for item in found)
    assert curve.count == count > 0
    assert curve.note.startswith(f"{count} intruders at ")
    assert "4 examples" in curve.note
    assert "3 texts given" in curve.note
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_task_is_measured_in_its_own_framing():
    """The same tokens as of prompts that have the frame in them."""
    lm, _ = adapted()
    task = dataclasses.replace(tiny_task(), template="Q: {prompt} A:")
    found = losses.Losses(lm, task, TEXTS, lambda: False).of_task()
    framed = [dataclasses.replace(e, prompt=f"Q: {e.prompt} A:") for e in EXAMPLES]
    plain = dataclasses.replace(task, validation=framed, template="plain")
    assert found == losses.Losses(lm, plain, TEXTS, lambda: False).of_task()
    assert found != losses.Losses(lm, EXAMPLES, TEXTS, lambda: False).of_task()


def test_the_bases_own_text_costs_an_adapter_more_than_the_base():
    lm, found = adapted()
    curve = intruder_curve(lm, EXAMPLES, found, factors=(1,))
    assert "16 texts that the base model wrote" in curve.note
    assert curve.base_losses[0] > curve.base_reference + 0.05
    # An adapter that does nothing has forgotten nothing.
    same = tiny_lm()
    attach(same.model, LoraConfig(r=2))
    idle = intruder_curve(same, EXAMPLES, [], factors=(0, 1))
    assert idle.base_reference == curve.base_reference  # the same text: the seed is fixed
    np.testing.assert_allclose(idle.base_losses, curve.base_reference, rtol=1e-6)
    assert idle.count == 0


def test_the_text_is_drawn_from_the_models_own_distribution(monkeypatch):
    count, length = 400, 12
    monkeypatch.setattr(losses, "_TEXTS", count)
    monkeypatch.setattr(losses, "_TEXT_TOKENS", length)
    lm = tiny_lm()
    measured = losses.Losses(lm, EXAMPLES, None, lambda: False)
    rows = [row["input_ids"] for row in measured._base]
    assert all(row[0] == lm.tokenizer.bos_token_id for row in rows)
    assert all(len(row) == length + 1 or row[-1] == lm.tokenizer.eos_token_id for row in rows)
    surplus, variance = [], []
    for row in rows:
        with torch.no_grad():
            p = torch.log_softmax(lm.model(torch.tensor([row])).logits[0].double(), -1)
        for i in range(1, len(row)):
            at = p[i - 1]
            entropy = float(-(at.exp() * at).sum())
            surplus.append(-float(at[row[i]]) - entropy)
            variance.append(float((at.exp() * (at + entropy) ** 2).sum()))
    # What a drawn token costs is its distribution's entropy on average.
    assert abs(sum(surplus)) < 4 * math.sqrt(sum(variance))
    # The first tokens, against their probabilities.
    with torch.no_grad():
        start = torch.tensor([[lm.tokenizer.bos_token_id]])
        p = torch.softmax(lm.model(start).logits[0, 0].double(), -1).numpy()
    seen = np.bincount([row[1] for row in rows], minlength=len(p))
    likely = p > 0.02
    assert likely.sum() >= 5
    z = (seen - count * p)[likely] / np.sqrt(count * p * (1 - p))[likely]
    assert np.abs(z).max() < 4


def test_a_model_without_a_cache_writes_the_same():
    lm = tiny_lm()
    expected = losses.Losses(lm, EXAMPLES, None, lambda: False).base_reference
    whole = lm.model.forward
    calls = []

    def forgetful(**inputs):
        calls.append(inputs.get("input_ids").shape)
        output = whole(**{**inputs, "past_key_values": None, "use_cache": False})
        output.past_key_values = None
        return output

    lm.model.forward = forgetful
    found = losses.Losses(lm, EXAMPLES, None, lambda: False).base_reference
    assert calls[5] == (16, 6)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_model_and_the_random_state_are_as_before():
    lm, found = adapted()
    lm.model.train()
    lm.model.model.layers[0].eval()
    modes = [module.training for module in lm.model.modules()]
    values = {name: value.clone() for name, value in lm.model.state_dict().items()}
    random = torch.random.get_rng_state()
    intruder_curve(lm, EXAMPLES, found, factors=(0, 1))
    assert [module.training for module in lm.model.modules()] == modes
    assert all(torch.equal(values[name], value) for name, value in lm.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert active(lm.model) == "default"
    assert all(p.grad is None for p in lm.model.parameters())


def test_a_stop_leaves_what_was_done():
    lm, found = adapted()
    done = []
    curve = intruder_curve(
        lm,
        EXAMPLES,
        found,
        base_texts=TEXTS,
        should_stop=lambda: len(done) >= 3,
        on_progress=lambda *at: done.append(at),
    )
    assert curve.factors.tolist() == [0, 0.25]
    assert len(curve.task_losses) == len(curve.base_losses) == 2
    nothing = intruder_curve(lm, EXAMPLES, found, should_stop=lambda: True)
    assert len(nothing.factors) == len(nothing.task_losses) == 0
    assert math.isnan(nothing.base_reference)
    assert active(lm.model) == "default"


def test_long_prompts_are_cut_and_said_to_be():
    lm, found = adapted()
    long = [type(EXAMPLES[0])("word " * 60, "yes .", ("yes .",))]
    curve = intruder_curve(lm, long, found, factors=(1,), base_texts=TEXTS)
    assert "1 prompts cut" in curve.note
    assert np.isfinite(curve.task_losses).all()


def test_what_cannot_be_measured_is_refused():
    lm, found = adapted()
    with pytest.raises(TaskError, match="examples hold no token"):
        intruder_curve(lm, [], found)
    with pytest.raises(TaskError, match="base_texts hold no token"):
        intruder_curve(lm, EXAMPLES, found, base_texts=["", "x"])
    activate(lm.model, None)
    with pytest.raises(AdapterError, match="no adapter is active"):
        intruder_curve(lm, EXAMPLES, found)
    classifier = LoadedModel.given(tiny("bert", vocab_size=300), tiny_tokenizer())
    attach(classifier.model, LoraConfig(r=2))
    with pytest.raises(TaskError, match="BertForSequenceClassification does not write text"):
        intruder_curve(classifier, EXAMPLES, [])
    silent = tiny_tokenizer()
    silent.bos_token = None
    lm = LoadedModel.given(tiny_llama(), silent)
    attach(lm.model, LoraConfig(r=2))
    assert len(intruder_curve(lm, EXAMPLES, [], factors=(1,)).factors) == 1  # begins with the end
