"""Generation with learned tokens: against greedy choices made by hand, and against peft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lora_lab as ll
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError
from lora_lab.tasks.generation import generate
from tests.helpers.learned_tokens import BOTH, CAUSAL, EMBED, SEQ2SEQ, adapted, peft_model
from tests.helpers.plain_prompts import PREFIX, PROMPTS, greedy, padded
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

STEPS = 6


def endless(model: Any) -> Any:
    """Have a model go on after its end token."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def answers(
    model: Any, prompts: Sequence[Sequence[int]] = PROMPTS, **options: Any
) -> list[list[int]]:
    """Return what generate() adds to prompts, padded on the left."""
    ids, mask = padded(prompts, 0, left=True), padded([[1] * len(p) for p in prompts], 0, left=True)
    options = {"max_new_tokens": STEPS, "do_sample": False} | options
    output = model.generate(input_ids=ids, attention_mask=mask, **options)
    return output[:, ids.shape[1] :].tolist()


def by_hand(model: nn.Module, learned: Sequence[Tensor], prompts: Any = PROMPTS) -> list[list[int]]:
    return [greedy(model, [v.detach() for v in learned], prompt, STEPS) for prompt in prompts]


@BOTH
@pytest.mark.parametrize("name", [*CAUSAL, "mpt", "codegen"])
def test_rows_are_completed_as_by_themselves(name: str, config: Any) -> None:
    model = endless(tiny(name))
    _, learned = adapted(model, config)
    found = answers(model)
    if name in ("gpt2", "llama", "bloom", "opt", "gemma3", "mpt"):
        assert answers(model, use_cache=False) == found
    ll.activate(model, None)
    assert found == by_hand(model, learned)
    assert found != answers(model)


def test_sliding_windows_count_the_learned_tokens() -> None:
    """A window of 7 leaves some of the learned tokens behind, in the cache as in the mask."""
    model = endless(tiny("mistral", sliding_window=7))
    _, learned = adapted(model, EMBED)
    found = answers(model)
    ll.activate(model, None)
    assert found == by_hand(model, learned)


@BOTH
def test_one_prompt_without_a_mask(config: Any) -> None:
    model = endless(tiny("gpt2"))
    _, learned = adapted(model, config)
    output = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=STEPS, do_sample=False)
    ll.activate(model, None)
    assert [output[0, len(PROMPTS[0]) :].tolist()] == by_hand(model, learned, PROMPTS[:1])


def embedded(model: Any, tokens: Tensor, prompt: Sequence[int]) -> Tensor:
    """Return a prompt's embeddings with PreEmbed's around them."""
    words = model.get_input_embeddings()(torch.tensor([prompt]))
    tokens = tokens.detach()[None]
    return torch.cat([tokens[:, :PREFIX], words, tokens[:, PREFIX:]], 1)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "gemma3"])
def test_beams_are_those_of_the_bare_model_on_embeddings(name: str, use_cache: bool) -> None:
    """transformers' own beam search, given the embeddings that PreEmbed stands for."""
    model = endless(tiny(name))
    _, (tokens,) = adapted(model, EMBED)
    options = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.8}
    found = answers(model, use_cache=use_cache, **options)
    ll.activate(model, None)
    expected = []
    for prompt in PROMPTS:
        x = embedded(model, tokens, prompt)
        expected += model.generate(
            inputs_embeds=x, max_new_tokens=STEPS, do_sample=False, **options
        ).tolist()
    assert found == expected


@pytest.mark.parametrize("prompt", PROMPTS)
def test_samples_are_those_of_the_bare_model_on_embeddings(prompt: list[int]) -> None:
    model = endless(tiny("llama"))
    _, (tokens,) = adapted(model, EMBED)
    options = {"do_sample": True, "top_k": 20, "num_return_sequences": 3}
    torch.manual_seed(3)
    found = answers(model, [prompt], **options)
    ll.activate(model, None)
    torch.manual_seed(3)
    x = embedded(model, tokens, prompt)
    assert found == model.generate(inputs_embeds=x, max_new_tokens=STEPS, **options).tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_prompt_tuning_writes_the_same_without_pads(name: str) -> None:
    """With pads it need not: peft's tokens stand in front of them, at another distance."""
    model, base = endless(tiny(name)), endless(tiny(name))
    _, (tokens,) = adapted(model, EMBED.replace(infix_length=0))
    other = peft_model(base, "CAUSAL_LM", tokens.detach())
    ids = torch.tensor([[5, 9, 7, 11], [8, 4, 6, 6]])
    options = {"max_new_tokens": STEPS, "do_sample": False}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(**inputs, **options), other.generate(**inputs, **options))


@BOTH
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_model_writes_row_by_row_the_same(
    name: str, beams: int, config: Any
) -> None:
    model = tiny("t5", num_decoder_layers=2) if name == "t5" else SEQ2SEQ[name]()
    _, learned = adapted(model, config)
    options = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False}
    found = model.generate(
        input_ids=padded(PROMPTS, 0),
        attention_mask=padded([[1] * len(p) for p in PROMPTS], 0),
        **options,
    )
    alone = [model.generate(input_ids=torch.tensor([p]), **options)[0] for p in PROMPTS]
    for row, own in zip(found, alone, strict=True):
        assert row[: len(own)].tolist() == own.tolist()
    if config is EMBED:
        ll.activate(model, None)
        for own, prompt in zip(alone, PROMPTS, strict=True):
            x = embedded(model, learned[0], prompt)
            assert model.generate(inputs_embeds=x, **options)[0].tolist() == own.tolist()


@BOTH
def test_with_lora(config: Any) -> None:
    model, other = endless(tiny("llama")), endless(tiny("llama"))
    adapter: Any = ll.attach(model, [LoraConfig(r=2), config])
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.3)
    lora, tokens = adapter.adapters
    ll.attach(other, lora.config).restore(lora.snapshot())
    assert answers(model) == by_hand(other, list(tokens.parameters()))


@BOTH
def test_the_labs_own_generation(config: Any) -> None:
    """Texts of different lengths in batches, through `tasks.generation`."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    _, learned = adapted(model, config)
    texts = ["Alimentum", "The Eagle is", "x"]
    found = generate(model, tokenizer, texts, max_new_tokens=STEPS, batch_size=2)
    ll.activate(model, None)
    for text, answer in zip(texts, found, strict=True):
        ids = by_hand(model, learned, [tokenizer(text)["input_ids"]])[0]
        ids = ids[: ids.index(2)] if 2 in ids else ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == answer


def test_a_decode_step_by_hand_goes_on_from_the_cache() -> None:
    model = tiny("llama").double()
    _, learned = adapted(model, EMBED)
    ids, mask = padded(PROMPTS, 0, left=True), padded([[1] * len(p) for p in PROMPTS], 0, left=True)
    positions = (mask.cumsum(1) - 1) * mask
    first = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
    token = first.logits[:, -1:].argmax(-1)
    mask = torch.cat([mask, torch.ones_like(token)], 1)
    positions = mask.sum(1, keepdim=True) - 1
    second = model(
        token, attention_mask=mask, position_ids=positions, past_key_values=first.past_key_values
    )
    ll.activate(model, None)
    for row, prompt in enumerate(PROMPTS):
        tokens = learned[0].detach()
        x = embedded(model, tokens, prompt)
        answer = model.get_input_embeddings()(token[row : row + 1])
        alone = model(inputs_embeds=torch.cat([x, answer], 1)).logits[0]
        torch.testing.assert_close(first.logits[row, -1], alone[-2], atol=1e-10, rtol=0)
        torch.testing.assert_close(second.logits[row, -1], alone[-1], atol=1e-10, rtol=0)


REFUSED = r"past_key_values does not go with PreEmbed's learned tokens here: .* give the whole text"


@pytest.mark.parametrize("padding", [True, False], ids=["padded", "unpadded"])
def test_a_second_turn_on_the_same_cache_is_refused(padding: bool) -> None:
    """generate() would leave out as many of the second turn's tokens as were learned."""
    model = endless(tiny("llama"))
    adapted(model, EMBED)
    ids = torch.tensor([PROMPTS[0]] if not padding else [[0, *PROMPTS[0]], [3, *PROMPTS[0]]])
    mask = (ids != 0).long()
    first = model.generate(
        ids, attention_mask=mask, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    for more in (1, 2, 4, 7, 9):
        turn = torch.cat([first.sequences, torch.full((len(ids), more), 9)], 1)
        mask = (turn != 0).long()
        cache = first.past_key_values
        with pytest.raises(AdapterError, match=REFUSED):
            model.generate(turn, attention_mask=mask, past_key_values=cache, max_new_tokens=2)


def test_a_cache_from_elsewhere_is_refused() -> None:
    model = tiny("llama")
    cache = model(torch.tensor([PROMPTS[0]]), use_cache=True).past_key_values
    adapted(model, EMBED)
    with pytest.raises(AdapterError, match=REFUSED):
        model(torch.tensor([[5]]), past_key_values=cache)


def test_a_prompt_in_pieces_is_refused() -> None:
    model = tiny("llama")
    adapted(model, EMBED)
    with pytest.raises(AdapterError, match="leave prefill_chunk_size out"):
        answers(model, prefill_chunk_size=2)


def test_a_static_cache_is_refused() -> None:
    model = tiny("llama")
    adapted(model, EMBED)
    with pytest.raises(AdapterError, match="leave prepared masks and static caches out"):
        answers(model, cache_implementation="static")


def test_generation_leaves_nothing_for_the_next_forward() -> None:
    """Without a cache generate() keeps the prompt's end; a later forward has its own."""
    model = endless(tiny("llama"))
    adapted(model, EMBED)
    ids = torch.tensor([[5, 9, 7, 11, 20, 30, 31, 32]])
    before = model(ids).logits
    answers(model, use_cache=False)
    assert torch.equal(model(ids).logits, before)
