"""From examples to tensors: what is learned, what is cut, what is padded."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lora_lab.errors import TaskError
from lora_lab.tasks import Example, GenerationTask, load_task
from lora_lab.tasks.encoding import collate, encode, encode_all, pad_id, task_prompt
from tests.helpers.chat_templates import CHATML, chat_tokenizer, learned_text
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

TASK = GenerationTask("t", False, (), ())
EXAMPLE = Example("name[A]", "A is here.", ("A is here.",))
EOS = 2


def test_the_prompt_ends_its_line():
    assert TASK.prompt_text("name[A]") == "name[A]\n"


def test_loss_is_on_the_completion_and_its_end_only():
    tokenizer = tiny_tokenizer()
    encoded = encode(EXAMPLE, TASK, tokenizer, 64)
    assert tokenizer.decode(encoded["input_ids"]) == "name[A]\nA is here.</s>"
    learned = [label for label in encoded["labels"] if label != -100]
    assert tokenizer.decode(learned) == "A is here.</s>"
    prompt = len("name[A]\n")  # one token a byte
    assert encoded["labels"] == [-100] * prompt + encoded["input_ids"][prompt:]
    assert encoded["cut"] == 0


def test_a_beginning_is_set_where_the_tokenizer_sets_one():
    encoded = encode(EXAMPLE, TASK, tiny_tokenizer(adds_bos=True), 64)
    plain = encode(EXAMPLE, TASK, tiny_tokenizer(), 64)
    assert encoded["input_ids"] == [1, *plain["input_ids"]]
    assert encoded["labels"] == [-100, *plain["labels"]]


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("end", ["</s>", "</s>\n"])
def test_no_beginning_and_no_end_twice(adds_bos: bool, end: str) -> None:
    """A chat template wrote the one, and a formatting function the other."""
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    encoded = encode(Example("<s>hi", f"yes{end}", ("yes",)), TASK, tokenizer, 64)
    assert tokenizer.decode(encoded["input_ids"]) == f"<s>hi\nyes{end}"
    assert [label for label in encoded["labels"] if label != -100].count(EOS) == 1
    cut = encode(Example("<s>hi", f"yes{end}", ("yes",)), TASK, tokenizer, 7)
    assert tokenizer.decode(cut["input_ids"]) == f"<s>{'i' * (end == '</s>')}\nyes{end}"
    assert cut["cut"] == (1 if end == "</s>" else 2)


def test_an_example_as_a_chat_is_its_two_turns_in_the_models_template() -> None:
    tokenizer = chat_tokenizer(CHATML, adds_bos=True)
    task = dataclasses.replace(TASK, template="chat")
    encoded = encode(EXAMPLE, task, tokenizer, 500)
    asked = "<|im_start|>user\nname[A]<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encoded["input_ids"]) == f"{asked}A is here.<|im_end|>\n"
    assert learned_text(tokenizer, encoded) == "A is here.<|im_end|>\n"
    assert tokenizer.decode(task_prompt(task, "name[A]", tokenizer)) == asked


def test_the_prompt_is_tokenized_apart():
    """A merge over the boundary would make training see other tokens than generation."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["\nA"])  # one token that spans the boundary, if they were joined
    assert len(tokenizer("\nA")["input_ids"]) == 1
    encoded = encode(EXAMPLE, TASK, tokenizer, 64)
    prompt = tokenizer("name[A]\n")["input_ids"]
    assert encoded["input_ids"][: len(prompt)] == prompt


@pytest.mark.parametrize("adds_bos", [False, True])
def test_many_are_what_each_is_alone(adds_bos: bool) -> None:
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    texts = ["a", "", "longer than the others", " b ", "<s>c", "d</s>", "é"]
    examples = [Example(asked, written, ("",)) for asked in texts for written in texts]
    together, cut = encode_all(examples, TASK, tokenizer, 32)
    assert together == [encode(example, TASK, tokenizer, 32) for example in examples]
    assert cut == sum(item["cut"] > 0 for item in together) > 0
    assert encode_all([], TASK, tokenizer, 32) == ([], 0)


@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_half_of_a_character_is_named(field: str) -> None:
    """What JSON's "\\ud83d" alone is, the rest of an emoji having been cut off."""
    rows = [EXAMPLE, dataclasses.replace(EXAMPLE, **{field: "so \ud83d"})]
    with pytest.raises(TaskError, match=r"^'so \\ud83d.*' has half of a character"):
        encode_all(rows, TASK, tiny_tokenizer(), 64)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_what_is_too_long_is_cut_from_the_start_of_the_prompt(adds_bos):
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    encoded = encode(EXAMPLE, TASK, tokenizer, 15)
    assert len(encoded["input_ids"]) == 15
    text = tokenizer.decode(encoded["input_ids"])
    assert text == ("<s>A]\n" if adds_bos else "[A]\n") + "A is here.</s>"
    assert encoded["cut"] == (5 if adds_bos else 4)


def test_cut_examples_are_counted():
    long = Example("x" * 40, "short", ("short",))
    encoded, cut = encode_all([EXAMPLE, long, long], TASK, tiny_tokenizer(), 32)
    assert cut == 2
    assert [len(item["input_ids"]) for item in encoded] == [19, 32, 32]


def test_a_completion_that_does_not_fit():
    for length in (8, 11):  # 10 bytes and the end leave nothing for the prompt
        with pytest.raises(TaskError, match=rf"11 tokens .* max_length={length}; raise max_length"):
            encode(EXAMPLE, TASK, tiny_tokenizer(), length)


def test_no_tokenizer_and_no_end():
    with pytest.raises(TaskError, match="the model has no tokenizer"):
        encode(EXAMPLE, TASK, None, 64)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TaskError, match="no end-of-sequence token"):
        encode(EXAMPLE, TASK, tokenizer, 64)


def test_padding_is_on_the_right_and_not_learned():
    tokenizer = tiny_tokenizer()
    short = Example("a", "b", ("b",))
    batch = [encode(e, TASK, tokenizer, 64) for e in (EXAMPLE, short)]
    tensors = collate(batch, pad_id=EOS)
    assert {key: value.shape for key, value in tensors.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), (2, 19)
    )
    assert all(value.dtype == torch.int64 for value in tensors.values())
    assert tensors["input_ids"][1].tolist() == batch[1]["input_ids"] + [EOS] * 15
    assert tensors["attention_mask"].sum(1).tolist() == [19, 4]
    # Padded with the end of sequence, the one real end is still attended to and learned.
    assert tensors["labels"][1].tolist() == batch[1]["labels"] + [-100] * 15
    assert tensors["labels"][1][3] == EOS
    assert tensors["attention_mask"][1][3] == 1


def test_the_loss_of_a_batch_is_that_of_its_completions():
    """Against cross-entropy in float64, example by example; transformers takes it in float32."""
    tokenizer, model = tiny_tokenizer(), tiny_llama().double()
    examples = [EXAMPLE, Example("a", "bb", ("bb",)), Example("name[C]", "See.", ("See.",))]
    batch = [encode(e, TASK, tokenizer, 64) for e in examples]
    with torch.no_grad():
        loss = model(**collate(batch, pad_id(tokenizer))).loss
        terms = []
        for example in examples:
            ids = tokenizer(f"{example.prompt}\n{example.completion}")["input_ids"] + [EOS]
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            start = len(f"{example.prompt}\n")
            terms += [-logs[i - 1, ids[i]].item() for i in range(start, len(ids))]
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)


def test_the_pad_token_falls_back_to_the_end():
    assert pad_id(tiny_tokenizer()) == 0
    assert pad_id(tiny_tokenizer(pad=False)) == EOS


def test_mini_e2e_fits_the_default_length():
    """With one token a byte a meaning and its sentence stay short enough for any tokenizer."""
    task = load_task("mini-e2e")
    _, cut = encode_all(task.train[:200], task, tiny_tokenizer(), 512)
    assert cut == 0
