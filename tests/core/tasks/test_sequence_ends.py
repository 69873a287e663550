"""What a text brings of begin- and end-of-sequence tokens stands once, whoever else sets it.

The right tokens are those of the same text without them, in the frame that the tokenizer's own
post-processor has.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tokenizers import processors

from lora_lab.models import LoadedModel
from lora_lab.tasks import Example, GenerationTask, LabeledText
from lora_lab.tasks.chat_template import Chat, chat_tokens
from lora_lab.tasks.encoding import chat_prompt_ids, encode, prompt_ids, task_prompt
from lora_lab.tasks.families.causal import Causal
from lora_lab.tasks.families.language_modeling import LanguageModeling, LanguageModelingTask
from lora_lab.tasks.seq2seq_encoding import encode_pairs, prompts_ids
from lora_lab.tasks.text_encoding import encode_texts
from tests.helpers.chat_templates import CHATML, chat_tokenizer, template, turns
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

BEGIN, END, IGNORED = 1, 2, -100
FRAMES = {"none": "$A", "begin": "<s> $A", "end": "$A </s>", "both": "<s> $A </s>"}
PROMPTS = ["<s>hi", "<s><s>hi", "<s> <s>hi", " <s>hi"]
COMPLETIONS = ["yes</s></s>", "yes</s> </s>", "<s>yes</s>", "<s> <s>yes"]


def tokenizer_with(frame: str) -> Any:
    tokenizer = tiny_tokenizer()
    single = FRAMES[frame]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=f"{single} {single.replace('$A', '$B')}",
        special_tokens=[("<s>", BEGIN), ("</s>", END)],
    )
    return tokenizer


def ids(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("around", ["{prompt}\n", "plain", "<s>[INST] {prompt} [/INST]"])
def test_of_prompt_and_completion(frame: str, around: str) -> None:
    tokenizer = tokenizer_with(frame)
    task = GenerationTask("t", False, (), (), template=around)
    between = around.replace("plain", "{prompt}").removeprefix("<s>").format(prompt="hi")
    for prompt in ["hi", *PROMPTS]:
        begins = frame in ("begin", "both") or "<s>" in prompt + around
        asked = [BEGIN] * begins + ids(between.replace("hi", prompt.rpartition("<s>")[2]))
        for completion in ["yes", *COMPLETIONS]:
            encoded = encode(Example(prompt, completion, ("yes",)), task, tokenizer, 64)
            wanted = ids(completion.replace("</s>", "").rpartition("<s>")[2].rstrip())
            assert encoded["input_ids"] == [*asked, *wanted, END], (prompt, completion)
            assert encoded["labels"] == [IGNORED] * len(asked) + [*wanted, END]
        seen = task_prompt(task, prompt, tokenizer)
        assert prompt_ids(str(seen), tokenizer, 64)[0] == asked, "as it is asked"


def test_what_is_scored_against_has_neither() -> None:
    lm = LoadedModel.given(tiny_llama(), tiny_tokenizer())
    family = Causal(lm, GenerationTask("t", False, (), ()), 64)
    example = Example("hi", "yes", ("yes</s></s>", "<s>no</s>\n", " as it is\n"))
    assert family._bare(example).references == ("yes", "no", " as it is\n")


@pytest.mark.parametrize("frame", FRAMES)
def test_of_a_text_alone(frame: str) -> None:
    lm = LoadedModel.given(tiny_llama(), tokenizer_with(frame))
    texts = ["hi", "<s>hi", "hi</s>", "<s>hi</s>", "<s><s>hi</s></s>", "hi</s>\n"]
    family = LanguageModeling(lm, LanguageModelingTask("t", False, (), ()), 64)
    for text, found in zip(texts, family.encode_each(texts), strict=True):
        begins = frame in ("begin", "both") or text.startswith("<s>")
        assert found["input_ids"] == [BEGIN] * begins + [*ids("hi"), END], text


@pytest.mark.parametrize("frame", FRAMES)
def test_of_both_sides_of_an_encoder_decoder(frame: str) -> None:
    tokenizer = tokenizer_with(frame)
    task = GenerationTask("t", False, (), ())
    begin, end = [BEGIN] * (frame in ("begin", "both")), [END] * (frame in ("end", "both"))
    for prompt in ["<s>hi", "<s>hi</s>", "<s><s>hi</s></s>", "hi</s>"]:
        for completion in ["<s>yes</s>", "yes</s>\n", "yes</s></s>"]:
            (found,), _ = encode_pairs([Example(prompt, completion, ())], task, tokenizer, 64)
            line = ids("hi" if prompt.endswith("</s>") else "hi\n")
            assert found["input_ids"] == [*begin, *line, *end], prompt
            assert found["labels"] == [*begin, *ids("yes"), END], completion
        (asked,) = prompts_ids([str(task_prompt(task, prompt, tokenizer))], tokenizer, 64)
        assert asked.ids == [*begin, *line, *end]


@pytest.mark.parametrize("frame", FRAMES)
def test_of_texts_with_a_class(frame: str) -> None:
    """As the frame that people have written themselves: "[CLS] … [SEP]"."""
    tokenizer = tokenizer_with(frame)
    begin, end = frame in ("begin", "both"), frame in ("end", "both")
    marked = "<s>" * begin + "hi" + "</s>" * end
    for pair in (None, f"{'<s>' * begin}yo{'</s>' * end}\n" if end else f"{'<s>' * begin}yo"):
        (found,), cut = encode_texts([LabeledText(marked, "a", pair)], [0], tokenizer, 64)
        plain = tokenizer("hi", None if pair is None else "yo")["input_ids"]
        assert (found["input_ids"], cut) == (plain, 0)


@pytest.mark.parametrize("marks", [True, False])
def test_of_a_chat_whose_template_writes_them(marks: bool) -> None:
    written = template("llama3_training", marks=marks).replace("<|eot_id|>", "</s>")
    tokenizer = chat_tokenizer(written, adds_bos=True)
    plain = Chat(tuple(turns("hi", "yo", "x", "y")))
    for said in (("<s>hi", "yo</s>", "x", "y</s>\n"), ("hi", "<s>yo</s></s>", "<s>x", "y")):
        chat = Chat(tuple(turns(*said)))
        assert chat_tokens(chat, tokenizer) == chat_tokens(plain, tokenizer)
        assert chat_prompt_ids(chat, 3, tokenizer) == chat_prompt_ids(plain, 3, tokenizer)
        asked = dataclasses.replace(chat, prompt=3)
        expected = dataclasses.replace(plain, prompt=3)
        assert chat_tokens(asked, tokenizer) == chat_tokens(expected, tokenizer)


def test_of_a_chat_whose_template_writes_neither_they_stay() -> None:
    tokenizer = chat_tokenizer(CHATML)
    found = chat_tokens(Chat(tuple(turns("hi", "yo</s>"))), tokenizer)
    assert str(tokenizer.decode(found.ids)).endswith("yo</s><|im_end|>\n")
