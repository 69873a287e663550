"""PreEmbed and PreLayer against learned tokens put around prompts by hand, and against peft."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

import lora_lab as ll
from tests.helpers.learned_tokens import (
    BOTH,
    CAUSAL,
    EMBED,
    HEADS,
    LAYER,
    SEQ2SEQ,
    adapted,
    peft_model,
)
from tests.helpers.plain_prompts import INFIX, PREFIX, ROWS, batch, padded, read_at, run
from tests.helpers.tiny_models import VOCABULARY, tiny

# Their own attention has no finite mask in float64: the base's logits of pads are NaN.
PADS_NEED_FLOAT32 = {"gemma2", "bloom"}


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, each place predicting the next; in the logits' dtype."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


# Decoders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
@BOTH
@pytest.mark.parametrize("name", CAUSAL)
def test_rows_of_a_batch_are_read_as_by_themselves(name: str, config: Any, left: bool) -> None:
    """Logits and gradients of a ragged batch against every row alone, unpadded."""
    dtype = torch.float32 if left and name in PADS_NEED_FLOAT32 else torch.float64
    tolerance = (
        {"atol": 2e-5, "rtol": 2e-4} if dtype == torch.float32 else {"atol": 1e-10, "rtol": 0}
    )
    model = tiny(name).to(dtype)
    adapter, learned = adapted(model, config)
    inputs = batch(left)
    mask, labels = inputs["attention_mask"], inputs["labels"]
    if left and "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(1) - 1) * mask  # as generate() gives them
    logits = model(**inputs).logits
    assert logits.shape[:2] == mask.shape
    token_loss(logits, labels).backward()

    ll.activate(model, None)
    total = torch.zeros((), dtype=dtype)
    for row, (prompt, answer) in enumerate(ROWS):
        own = run(model, learned, prompt, answer).logits[0, read_at(len(prompt), len(answer))]
        torch.testing.assert_close(logits[row][mask[row] == 1], own, **tolerance)
        predicted = own[len(prompt) - 1 : -1]
        total = total + F.cross_entropy(predicted, torch.tensor(answer), reduction="sum")
    (total / sum(len(answer) for _, answer in ROWS)).backward()
    for parameter, leaf in zip(adapter.parameters(), learned, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.abs().sum(1).all()  # every one of the tokens matters
        torch.testing.assert_close(parameter.grad, leaf.grad, **tolerance)


@BOTH
def test_only_prefix_or_only_infix(config: Any) -> None:
    model = tiny("llama").double()
    for changes in ({"prefix_length": 0}, {"infix_length": 0}):
        own = config.replace(**changes)
        adapter, learned = adapted(model, own)
        logits = model(**batch()).logits
        ll.activate(model, None)
        for row, (prompt, answer) in enumerate(ROWS):
            at = read_at(len(prompt), len(answer), own.prefix_length, own.infix_length)
            alone = run(model, learned, prompt, answer, own.infix_length).logits[0, at]
            torch.testing.assert_close(logits[row, : len(at)], alone, atol=1e-10, rtol=0)
        ll.detach(model)
        assert adapter.tokens == own.tokens


@BOTH
def test_without_labels_the_whole_input_is_the_prompt(config: Any) -> None:
    model = tiny("gpt2").double()
    _, learned = adapted(model, config)
    logits = model(input_ids=torch.tensor([[4, 5, 6]])).logits
    ll.activate(model, None)
    alone = run(model, learned, [4, 5, 6]).logits[0, read_at(3, 0)]
    torch.testing.assert_close(logits[0], alone, atol=1e-10, rtol=0)


def test_a_causal_classifier_reads_the_last_infix_token() -> None:
    model = (
        transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=64,
                pad_token_id=0,
            )
        )
        .eval()
        .double()
    )
    _, learned = adapted(model, EMBED)
    inputs = batch()
    classes = torch.tensor([0, 1, 1])
    output = model(inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=classes)
    ll.activate(model, None)
    for row, (prompt, answer) in enumerate(ROWS):
        text = [*prompt, *answer]
        hidden = run(model.transformer, learned, text).last_hidden_state[0, -1]
        torch.testing.assert_close(output.logits[row], model.score(hidden), atol=1e-10, rtol=0)


def test_hidden_states_lose_the_learned_places_too() -> None:
    model = tiny("llama")
    adapted(model, LAYER)
    output = model(**batch(), output_hidden_states=True)
    assert {state.shape[1] for state in output.hidden_states} == {8}
    as_tuple = model(**batch(), return_dict=False)
    assert torch.equal(as_tuple[1], output.logits)


# Encoders -----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", HEADS)
def test_an_encoders_head_sees_the_places_that_it_knows(name: str, config: Any) -> None:
    model = tiny(name).double()
    adapter, learned = adapted(model, config)
    inputs = batch()
    logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    logits.pow(2).mean().backward() if name != "modernbert" else logits[:, 0].pow(
        2
    ).mean().backward()
    ll.activate(model, None)
    expected = []
    for row, (prompt, answer) in enumerate(ROWS):
        text = [*prompt, *answer]
        hidden = run(model.base_model, learned, text)[0][:, PREFIX : PREFIX + len(text)]
        own = HEADS[name](model, hidden)
        got = logits[row : row + 1] if own.dim() == 2 else logits[row : row + 1, : len(text)]
        torch.testing.assert_close(got, own, atol=1e-10, rtol=0)
        expected.append(own if own.dim() == 2 else own[:, 0])
    torch.cat(expected).pow(2).mean().backward()
    for parameter, leaf in zip(adapter.parameters(), learned, strict=True):
        torch.testing.assert_close(parameter.grad, leaf.grad, atol=1e-10, rtol=0)


def test_labels_of_an_encoders_tokens_are_no_completion() -> None:
    model = tiny("modernbert")
    adapted(model, EMBED)
    inputs = batch()
    with_labels = model(**inputs).logits
    inputs.pop("labels")
    assert torch.equal(model(**inputs).logits, with_labels)


def test_left_pads_do_not_change_robertas_positions() -> None:
    """It counts them from its pad token on, and only where it is given ids."""
    model = tiny("roberta").double()
    adapted(model, EMBED)
    right, left = batch(), batch(left=True)
    outputs = [
        model.roberta(b["input_ids"], attention_mask=b["attention_mask"])[0][
            b["attention_mask"] == 1
        ]
        for b in (right, left)
    ]
    torch.testing.assert_close(*outputs, atol=1e-10, rtol=0)


def test_learned_tokens_belong_to_their_neighbours_segments() -> None:
    model = tiny("bert").double()
    _, learned = adapted(model, EMBED)
    ids, types = torch.tensor([[4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1]])
    logits = model(ids, token_type_ids=types).logits
    ll.activate(model, None)
    segments = torch.tensor([[0] * PREFIX + [0, 0, 1, 1] + [1] * INFIX])
    hidden = run(model.bert, learned, ids[0].tolist(), token_type_ids=segments)[0]
    own = HEADS["bert"](model, hidden[:, PREFIX : PREFIX + 4])
    torch.testing.assert_close(logits, own, atol=1e-10, rtol=0)


# Encoder-decoder models ---------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_a_decoder_attends_to_what_the_encoder_learned(name: str, config: Any) -> None:
    model = SEQ2SEQ[name]().double()
    adapter, learned = adapted(model, config)
    labels = padded([answer for _, answer in ROWS], -100)
    ids, mask = padded([p for p, _ in ROWS], 0), padded([[1] * len(p) for p, _ in ROWS], 0)
    logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
    F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    ll.activate(model, None)
    total = torch.zeros((), dtype=torch.float64)
    for row, (prompt, answer) in enumerate(ROWS):
        own = run(model, learned, prompt, labels=torch.tensor([answer])).logits[0]
        torch.testing.assert_close(logits[row, : len(answer)], own, atol=1e-10, rtol=0)
        total = total + F.cross_entropy(own, torch.tensor(answer), reduction="sum")
    (total / sum(len(answer) for _, answer in ROWS)).backward()
    for parameter, leaf in zip(adapter.parameters(), learned, strict=True):
        torch.testing.assert_close(parameter.grad, leaf.grad, atol=1e-10, rtol=0)


# peft's prompt tuning is PreEmbed without an infix ------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bloom", "gpt-neox"])
def test_prompt_tuning_is_pre_embed_without_an_infix(name: str) -> None:
    # peft takes words to be as wide as the blocks.
    changes = {"word_embed_proj_dim": 32} if name == "opt" else {}
    model, base = tiny(name, **changes), tiny(name, **changes)
    adapter, learned = adapted(model, EMBED.replace(infix_length=0))
    other = peft_model(base, "CAUSAL_LM", learned[0])
    inputs = batch()
    ours, theirs = model(**inputs), other(**inputs)
    real = inputs["attention_mask"] == 1
    shorter = theirs.logits[:, PREFIX:]
    torch.testing.assert_close(ours.logits[real], shorter[real], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss)
    ours.loss.backward()
    theirs.loss.backward()
    (parameter,) = adapter.parameters()
    expected = other.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)


def test_prompt_tuning_of_t5_is_pre_embed_without_an_infix() -> None:
    # generate()'s cache wants as many blocks in the decoder as in the encoder.
    model, base = tiny("t5", num_decoder_layers=2), tiny("t5", num_decoder_layers=2)
    adapter, learned = adapted(model, EMBED.replace(infix_length=0))
    other = peft_model(base, "SEQ_2_SEQ_LM", learned[0])
    inputs = {
        "input_ids": padded([p for p, _ in ROWS], 0),
        "attention_mask": padded([[1] * len(p) for p, _ in ROWS], 0),
        "labels": padded([a for _, a in ROWS], -100),
    }
    ours, theirs = model(**inputs), other(**inputs)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss)
    ours.loss.backward()
    theirs.loss.backward()
    (parameter,) = adapter.parameters()
    expected = other.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)
    for beams in (1, 3):
        options = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False}
        inputs.pop("labels", None)
        assert torch.equal(model.generate(**inputs, **options), other.generate(**inputs, **options))
