"""Greedy answers: exact in a padded batch, stoppable, leaving no trace on the model."""

from __future__ import annotations

import pytest
import torch
import transformers

from lora_lab.configs import PrefixEmbedConfig
from lora_lab.errors import TaskError
from lora_lab.methods.api import attach
from lora_lab.tasks import Example, GenerationTask
from lora_lab.tasks.generation import generate
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_seq2seq import framing_tokenizer, tiny_seq2seq
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

PROMPTS = ["name[A]\n", "a much longer prompt, which pads the others\n", "b\n", "xyz\n", "q"]


def _greedy(model, ids: list[int], count: int) -> list[int]:
    """One prompt, no padding, no cache: the argmax of every step."""
    start = len(ids)
    with torch.no_grad():
        for _ in range(count):
            ids = [*ids, model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()]
            if ids[-1] == 2:
                break
    return ids[start:]


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("pad", [False, True])
def test_a_padded_batch_answers_as_each_alone(adds_bos, pad):
    model, tokenizer = tiny_llama(), tiny_tokenizer(adds_bos=adds_bos, pad=pad)
    answers = generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=3)
    for text, answer in zip(PROMPTS, answers, strict=True):
        expected = _greedy(model, tokenizer(text)["input_ids"], 12)
        assert answer == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert len(set(answers)) > 1


def test_an_answer_ends_at_the_learned_end():
    """After a few steps of learning one sentence, generation stops right behind it."""
    from lora_lab.tasks.encoding import collate, encode

    example = Example("a", "  yes, b.", ("yes, b.",))
    task = GenerationTask("t", False, (), (example,))
    tokenizer, model = tiny_tokenizer(), tiny_llama(initializer_range=0.05)
    batch = collate([encode(example, task, tokenizer, 32)], 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    # Stripped, and a task stands for its validation prompts.
    assert generate(model, tokenizer, task, max_new_tokens=40) == ["yes, b."]


def test_the_model_is_left_as_it_was(capfd):
    model = tiny_llama().train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    model.generation_config.update(temperature=0.2, do_sample=True, top_p=0.9)
    before = model.generation_config.to_dict()
    generate(model, tiny_tokenizer(pad=False), PROMPTS[:2], max_new_tokens=4)
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config.to_dict() == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert capfd.readouterr() == ("", "")


def test_the_mode_comes_back_after_an_error():
    model = tiny_llama().train()

    def fail() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, tiny_tokenizer(), PROMPTS, should_stop=fail)
    assert all(module.training for module in model.modules())


def test_it_stops_between_tokens_and_gives_whole_batches_only():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    tokenizer.eos_token_id = None  # answers run to the full length
    model.generation_config.eos_token_id = None
    asked = []

    def after_ten() -> bool:
        asked.append(1)
        return len(asked) > 10

    # Batch 1: asked once before and once a token (6); batch 2 is broken off at its third token.
    answers = generate(
        model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=2, should_stop=after_ten
    )
    assert len(answers) == 2
    assert len(asked) == 11
    assert generate(model, tokenizer, PROMPTS, should_stop=lambda: True) == []


def test_prompts_of_like_length_go_together_and_equal_ones_are_answered_once(monkeypatch):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    prompts = [*PROMPTS, PROMPTS[1], "r\n", PROMPTS[0], PROMPTS[1]]
    shapes, whole = [], model.generate

    def counted(**inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return whole(**inputs)

    monkeypatch.setattr(model, "generate", counted)
    answers = generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=2)
    for text, answer in zip(prompts, answers, strict=True):
        expected = _greedy(model, tokenizer(text)["input_ids"], 12)
        assert answer == tokenizer.decode(expected, skip_special_tokens=True).strip()
    lengths = sorted({text: len(tokenizer(text)["input_ids"]) for text in prompts}.values())[::-1]
    assert shapes == [(2, lengths[0]), (2, lengths[2]), (2, lengths[4])]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_and_a_decoder_answer_a_batch_as_each_alone(kind):
    lm = tiny_seq2seq(kind)
    prompts = [*PROMPTS, PROMPTS[1], PROMPTS[0]]
    answers = generate(lm.model, lm.tokenizer, prompts, max_new_tokens=6, batch_size=2)
    alone = [generate(lm.model, lm.tokenizer, [text], max_new_tokens=6)[0] for text in prompts]
    assert answers == alone
    assert len(set(answers)) > 1


def test_a_long_prompt_keeps_its_end():
    model, tokenizer = tiny_llama(), tiny_tokenizer()  # 128 positions
    long = "x" * 300 + "the end\n"
    [answer] = generate(model, tokenizer, [long], max_new_tokens=8)
    expected = _greedy(model, tokenizer(long)["input_ids"][-120:], 8)
    assert answer == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_what_cannot_write_says_so():
    bert = transformers.BertModel(
        transformers.BertConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=259,
        )
    )
    with pytest.raises(TaskError, match=r"BertModel does not write text.*smollm2-135m"):
        generate(bert, tiny_tokenizer(), PROMPTS)
    with pytest.raises(TaskError, match="no tokenizer"):
        generate(tiny_llama(), None, PROMPTS)
    with pytest.raises(TaskError, match="give a list"):
        generate(tiny_llama(), tiny_tokenizer(), "one prompt")
    with pytest.raises(TaskError, match="max_new_tokens=128 leaves no room"):
        generate(tiny_llama(), tiny_tokenizer(), PROMPTS, max_new_tokens=128)


def _seq2seq_greedy(model, ids: list[int], count: int) -> list[int]:
    """One prompt, no padding, no cache: the argmax of every step."""
    written = [model.config.decoder_start_token_id]
    with torch.no_grad():
        for _ in range(count):
            logits = model(
                input_ids=torch.tensor([ids]),
                decoder_input_ids=torch.tensor([written]),
                use_cache=False,
            ).logits
            written.append(logits[0, -1].argmax().item())
            if written[-1] == 2:
                break
    return written[1:]


@pytest.mark.parametrize("kind", ["t5", "t5-gated", "bart"])
def test_an_encoder_decoder_answers_in_a_padded_batch_as_alone(kind):
    lm = tiny_seq2seq(kind)
    model, tokenizer = lm.model, lm.tokenizer
    # What a summariser's files ask for is not greedy.
    model.generation_config.update(num_beams=3, min_length=9, no_repeat_ngram_size=1)
    answers = generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=3)
    for text, answer in zip(PROMPTS, answers, strict=True):
        expected = _seq2seq_greedy(model, tokenizer(text)["input_ids"], 12)
        assert answer == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert len(set(answers)) > 1


def test_a_long_prompt_of_an_encoder_keeps_its_end_and_its_frame():
    lm = tiny_seq2seq("bart")  # 64 positions a side
    long = "x" * 300 + "the end\n"
    [answer] = generate(lm.model, lm.tokenizer, [long], max_new_tokens=8)
    ids = lm.tokenizer(long)["input_ids"]
    expected = _seq2seq_greedy(lm.model, [ids[0], *ids[-63:]], 8)
    assert answer == lm.tokenizer.decode(expected, skip_special_tokens=True).strip()
    generate(lm.model, lm.tokenizer, ["a"], max_new_tokens=64)
    with pytest.raises(TaskError, match="max_new_tokens=65 leaves no room"):
        generate(lm.model, lm.tokenizer, ["a"], max_new_tokens=65)


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_learned_tokens_take_their_positions_from_the_prompt(kind):
    if kind == "bart":
        model, tokenizer = tiny_seq2seq("bart").model, framing_tokenizer("bart")
    else:
        model, tokenizer = tiny("gpt2", vocab_size=259), tiny_tokenizer()
    attach(model, PrefixEmbedConfig(prefix_length=3, infix_length=2))
    # 64 positions: a prompt that fills them all would be refused by the learned tokens.
    assert len(generate(model, tokenizer, ["x" * 300], max_new_tokens=8)) == 1
    if kind == "gpt2":
        with pytest.raises(TaskError, match=r"max_new_tokens=59 leaves no room .* 59 p"):
            generate(model, tokenizer, ["x"], max_new_tokens=59)
