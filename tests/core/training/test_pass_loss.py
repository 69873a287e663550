"""The loss that is said is the mean cross-entropy of the learned tokens, whatever a model adds.

Oracles: cross-entropy in float64; gradients of the cross-entropy and of the router's loss of
transformers, added up by hand.
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
)

from lora_lab import train
from lora_lab.configs import LoraConfig
from lora_lab.models import LoadedModel
from lora_lab.tasks.families.seq2seq import step_loss
from lora_lab.tasks.own_loss import summed_loss
from lora_lab.training.pass_loss import PassLosses
from lora_lab.training.step import AUX_NOTE
from tests.helpers.tiny_architectures import small, tiny_architecture
from tests.helpers.tiny_run import tiny_task
from tests.helpers.tiny_text import tiny_tokenizer

ROUTED = [
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "phimoe", "jetmoe", "gpt_oss"),
    *("jamba", "ernie4_5_moe"),
]
OWN_WAY = ("bart", "mbart", "pegasus", "plbart", "blenderbot", "trocr", "bigbird_pegasus")


def batch_of(seed=0, learned=(3, 5)):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 90, (2, 9), generator=generator)
    labels = torch.full_like(ids, -100)
    for row, count in enumerate(learned):
        labels[row, -count:] = ids[row, -count:]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def exact(model, batches, shift=True):
    """The mean over the learned tokens of all batches, float64."""
    total, count = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            logits, labels = model(**inputs).logits.double(), batch["labels"]
        if shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        total += cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count, count


def taken(model, batches, share=None, shift=True):
    """What the passes of one step say and add, and the gradients of what is trained."""
    _, count = exact(model, batches, shift)
    model.zero_grad()
    said = beside = 0.0
    losses = PassLosses(model, share)
    for batch in batches:
        items, learned = torch.tensor(float(count)), int((batch["labels"] != -100).sum())
        trained, told, _ = losses(model, dict(batch), items, len(batches), labels=learned)
        trained.backward()
        said += (trained if told is None else told).item()
        beside += trained.item() - (trained if told is None else told).item()
    return said, beside, {name: p.grad.clone() for name, p in with_gradients(model)}


def with_gradients(model):
    return [(name, p) for name, p in model.named_parameters() if p.grad is not None]


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("name", ROUTED)
def test_a_routers_loss_is_trained_with_and_shown_apart(name, passes):
    model = tiny_architecture(name)
    model.config.output_router_logits = True
    coefficient = getattr(model, "aux_loss_coef", None) or model.router_aux_loss_coef
    batches = [batch_of(), batch_of(1, (1, 8))][:passes]
    said, beside, gradients = taken(model, batches)
    mean, count = exact(model, batches)
    assert said == pytest.approx(mean, rel=1e-5)

    model.zero_grad()
    aux = 0.0
    for batch in batches:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        own = cross_entropy(
            output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )
        (own / count + coefficient * output.aux_loss / passes).backward()
        aux += coefficient * output.aux_loss.item() / passes
    assert beside == pytest.approx(aux, rel=1e-3, abs=1e-5)
    assert aux > 0
    for key, parameter in with_gradients(model):
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-5)

    with torch.no_grad():
        sums = [summed_loss(model, batch) for batch in batches]
    assert sum(loss for loss, _ in sums) / sum(n for _, n in sums) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("name", OWN_WAY)
def test_a_decoder_that_does_not_shift_its_labels_learns_the_next_token_all_the_same(name, passes):
    seq2seq = tiny_architecture(name)
    kind = getattr(
        transformers, type(seq2seq).__name__.replace("ForConditionalGeneration", "ForCausalLM")
    )
    config = seq2seq.config.__class__(**{**seq2seq.config.to_dict(), "is_decoder": True})
    config.is_encoder_decoder = False
    torch.manual_seed(0)
    model = kind(config).eval()
    batches = [batch_of(), batch_of(1, (1, 8))][:passes]
    said, beside, gradients = taken(model, batches)
    mean, count = exact(model, batches)
    assert (said, beside) == (pytest.approx(mean, rel=1e-5), 0)
    model.zero_grad()
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:].flatten()
        (cross_entropy(logits[:, :-1].flatten(0, 1), labels, reduction="sum") / count).backward()
    for key, parameter in with_gradients(model):
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("passes", [1, 2])
def test_an_encoder_decoders_routers_are_trained_too(passes):
    sparse = {"encoder_sparse_step": 1, "decoder_sparse_step": 1, "output_router_logits": True}
    torch.manual_seed(0)
    config = NllbMoeConfig(**small(NllbMoeConfig, sparse))
    model = NllbMoeForConditionalGeneration(config).eval()
    batches = [batch_of(), batch_of(1, (1, 8))][:passes]
    for batch in batches:
        batch["decoder_input_ids"] = batch["labels"].masked_fill(batch["labels"] == -100, 2)
    said, beside, _ = taken(model, batches, step_loss, shift=False)
    mean, _ = exact(model, batches, shift=False)
    assert said == pytest.approx(mean, rel=1e-5)
    with torch.no_grad():
        outputs = [model(**batch) for batch in batches]
    aux = [o.encoder_aux_loss + o.decoder_aux_loss for o in outputs]
    expected = model.router_aux_loss_coef * sum(aux).item() / passes
    assert beside == pytest.approx(expected, rel=1e-3)
    assert expected > 0


def test_a_z_loss_of_the_logits_is_shown_apart():
    model = tiny_architecture("bamba")
    model.config.z_loss_coefficient = model.z_loss_coefficient = 0.5
    batch = batch_of()
    said, beside, _ = taken(model, [batch])
    assert said == pytest.approx(exact(model, [batch])[0], rel=1e-5)
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double()
    assert beside == pytest.approx(0.5 * logits.logsumexp(-1).square().mean().item(), rel=1e-4)


def test_a_loss_function_that_somebody_set_is_trained_with_and_the_truth_is_said():
    model = tiny_architecture("llama")

    def smoothed(logits, labels, vocab_size, num_items_in_batch, **_):
        total = cross_entropy(
            logits[:, :-1].reshape(-1, vocab_size).float(),
            labels[:, 1:].flatten(),
            reduction="sum",
            label_smoothing=0.3,
        )
        return total / num_items_in_batch

    model.loss_function = smoothed
    batch = batch_of()
    said, beside, gradients = taken(model, [batch])
    mean, count = exact(model, [batch])
    assert said == pytest.approx(mean, rel=1e-5)
    model.zero_grad()
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = smoothed(logits, batch["labels"], logits.shape[-1], count)
    loss.backward()
    assert said + beside == pytest.approx(loss.item(), rel=1e-6)
    for key, parameter in with_gradients(model):
        torch.testing.assert_close(gradients[key], parameter.grad)


def test_most_models_own_loss_is_taken_as_it_is():
    model, batch = tiny_architecture("llama"), batch_of()
    said, beside, _ = taken(model, [batch])
    with torch.no_grad():
        own = model(**batch, num_items_in_batch=torch.tensor(8.0)).loss.item()
    assert (said, beside) == (own, 0)


# A run -------------------------------------------------------------------------------------------


def mixtral(asks):
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        vocab_size=259,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_local_experts=2,
        output_router_logits=asks,
        router_aux_loss_coef=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LoadedModel.given(MixtralForCausalLM(config).eval(), tiny_tokenizer())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_says_the_cross_entropy_in_steps_and_evaluation(tmp_path, accumulation):
    options = {"max_steps": 2, "max_length": 32, "eval_examples": 2, "warmup_steps": 1}
    options["gradient_accumulation_steps"] = accumulation
    runs = [
        train(mixtral(asks), tiny_task(), LoraConfig(r=2), output_dir=tmp_path, **options)
        for asks in (False, True)
    ]
    results = [run.result(60) for run in runs]
    # The first step's rate is 0: both steps see the same model.
    assert dict(results[1].losses) == pytest.approx(dict(results[0].losses), rel=1e-6)
    before = [result.metrics["loss_before"] for result in results]
    assert before[1] == pytest.approx(before[0], rel=1e-6)
    rows = [
        [json.loads(row) for row in (run.folder / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    ]
    assert not any("aux_loss" in row for row in rows[0])
    assert all(0.4 < row["aux_loss"] < 2.5 for row in rows[1])
    assert [AUX_NOTE in run.notes for run in runs] == [False, True]
