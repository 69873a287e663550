"""Examples that are too long: cut, left out, and counted over the whole set."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import TaskError
from lora_lab.tasks import Example, GenerationTask, Task
from lora_lab.tasks.chats import Chat, ChatTask
from lora_lab.tasks.classification import ClassificationTask, LabeledText
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.families.base import NO_LIMIT, encoded_apart
from lora_lab.tasks.too_long import token_count
from lora_lab.training.data import RunData
from tests.helpers.chat_templates import CHATML, chat_tokenizer, turns
from tests.helpers.tiny_classes import tiny_classifier
from tests.helpers.tiny_run import tiny_lm
from tests.helpers.tiny_seq2seq import tiny_seq2seq
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

SHORT = [Example(f"p{i}", "c", ("c",)) for i in range(10)]
LONG_PROMPTS = [Example("p" * 40, f"c{i}", ("c",)) for i in range(4)]
LONG_ANSWERS = [Example(f"p{i}", "c" * 50, ("c",)) for i in range(3)]


def data(rows: list[Example], **settings: Any) -> RunData:
    task = GenerationTask("t", True, rows, SHORT[:2])
    training = ll.TrainingConfig(
        max_length=24, max_steps=2, per_device_train_batch_size=4, eval_examples=0, **settings
    )
    return RunData(tiny_lm(), task, training, notes=[])


def texts(found: RunData) -> list[str]:
    decode = found.family.tokenizer.decode
    return [decode(item["input_ids"]) for item in found.training_examples()]


def test_cut_keeps_every_answer_whole_and_says_once_what_was_done() -> None:
    found = data([*SHORT, *LONG_PROMPTS, *LONG_ANSWERS])
    seen = texts(found)
    assert len(seen) == 8
    assert all(text.endswith("</s>") and len(text) <= 24 + 3 for text in seen)
    found.training_examples()
    assert found._notes == [
        "4 of 17 training prompts were cut at their start to fit max_length=24; 3 of 17 training "
        "examples were left out: what is learned of them leaves no room in max_length=24; "
        "max_length=54 would do"
    ]


def test_drop_leaves_out_all_of_them() -> None:
    found = data([*SHORT, *LONG_PROMPTS, *LONG_ANSWERS], too_long="drop")
    assert {text.partition("\n")[0] for text in texts(found)} <= {row.prompt for row in SHORT}
    assert found._notes == [
        "7 of 17 training examples were left out: they are longer than max_length=24; "
        "max_length=54 would do"
    ]


def test_the_order_is_that_of_before_where_all_fits() -> None:
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3)).tolist()
    assert texts(data(SHORT, seed=3)) == [f"p{i}\nc</s>" for i in order[:8]]


def test_what_fits_at_another_length_is_nothing_to_speak_of() -> None:
    rows = [*SHORT, *LONG_PROMPTS, *LONG_ANSWERS]
    task = GenerationTask("t", True, rows, SHORT[:2])
    notes: list[str] = []

    def read(max_length: int) -> None:
        training = ll.TrainingConfig(max_length=max_length, eval_examples=0)
        RunData(tiny_lm(), task, training, notes).training_examples()

    read(54)
    assert notes == []
    read(53)
    assert notes == [
        "3 of 17 training prompts were cut at their start to fit max_length=53; max_length=54 "
        "would do"
    ]


def test_of_a_large_set_only_the_first_are_looked_at_for_the_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tokenizing 41,000 rows took longer than training ten steps on 80 of them."""
    monkeypatch.setattr("lora_lab.tasks.too_long.CHUNK", 20)
    rows = [Example("p" * (40 if i % 10 == 0 else 4), "c", ("c",)) for i in range(5000)]
    seen: list[int] = []
    found = data(rows)
    kind = type(found.family)
    encode = kind.encode

    def counted(self: Any, examples: Any) -> Any:
        seen.append(len(examples))
        return encode(self, examples)

    monkeypatch.setattr(kind, "encode", counted)
    assert len(texts(found)) == 8
    assert sum(seen) == 2000
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0)).tolist()
    long = sum(i % 10 == 0 for i in order[:2000])
    (note,) = found._notes
    assert note == (
        f"{long} of the first 2000 training prompts were cut at their start to fit max_length=24; "
        "max_length=43 would do"
    )


def test_where_it_is_an_error_all_are_looked_at() -> None:
    rows = [Example("p", "c", ("c",)) for _ in range(3000)]
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0)).tolist()
    rows[order[-1]] = Example("p" * 40, "c", ("c",))
    with pytest.raises(TaskError, match=r"^1 of 3000 training examples are longer"):
        data(rows, too_long="error").training_examples()


def test_held_out_examples_that_do_not_fit_are_not_scored() -> None:
    task = GenerationTask("t", True, SHORT, [*LONG_ANSWERS, *SHORT])
    notes: list[str] = []
    found = RunData(tiny_lm(), task, ll.TrainingConfig(max_length=24, eval_examples=4), notes)
    assert found.held_out == SHORT[:4]
    assert len(found.samples) == 4
    assert any(
        note.startswith("3 of the first 8 held-out examples were left out") for note in notes
    )


def test_more_rows_than_are_encoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*LONG_ANSWERS, *SHORT, *LONG_PROMPTS]
    whole = data(rows)
    expected = texts(whole)
    monkeypatch.setattr("lora_lab.tasks.too_long.CHUNK", 3)
    found = data(rows)
    assert texts(found) == expected
    assert found._notes == whole._notes


def test_alpacas_rows_train_at_the_defaults(tmp_path: Path) -> None:
    """Its instructions are longer than 128 tokens, and many of its outputs alone are."""
    rows = [
        {"instruction": f"Write {n} letters.", "input": "", "output": "x" * n}
        for n in range(20, 220, 4)
    ]
    file = tmp_path / "alpaca_data.json"
    file.write_text(json.dumps(rows))
    task = ll.load_task(file)
    run = ll.train(tiny_lm(), task, output_dir=tmp_path, max_steps=2, eval_examples=2)
    run.result(120)
    (note,) = (note for note in run.notes if "training" in note and "max_length" in note)
    lengths = [len(e.prompt) + len(e.completion) + 1 for e in task.train]  # a token a byte
    left = sum(len(example.completion) + 1 >= 128 for example in task.train)
    assert note == (
        f"{len(lengths) - left} of {len(lengths)} training prompts were cut at their start to fit "
        f"max_length=128; {left} of {len(lengths)} training examples were left out: what is "
        f"learned of them leaves no room in max_length=128; max_length={max(lengths)} would do"
    )


def models() -> dict[str, tuple[Any, Task]]:
    rows = [
        Example("p" * asked + end, "c" * said + end, ())
        for asked, said, end in itertools.product((1, 5, 17), (1, 6, 20), ("", "</s>"))
    ]
    plain = GenerationTask("t", True, rows, rows[:0])
    chats = [
        Chat(tuple(turns("u" * asked, "a" * said, "?" * asked, "b" * said)))
        for asked, said in itertools.product((1, 9), (1, 20))
    ]
    texts = [LabeledText("x" * n, "y") for n in range(1, 40, 4)]
    bos = ll.LoadedModel.given(tiny_llama(), tiny_tokenizer(adds_bos=True), "bos")
    chat = ll.LoadedModel.given(tiny_llama(vocab_size=300), chat_tokenizer(CHATML), "chat")
    return {
        "decoder": (tiny_lm(), plain),
        "decoder with a first token": (bos, plain),
        "encoder-decoder": (tiny_seq2seq("t5"), plain),
        "encoder-decoder with a frame": (tiny_seq2seq("bart"), plain),
        "chats": (chat, ChatTask("chats", False, chats, chats[:0])),
        "texts": (tiny_classifier(), ClassificationTask("c", False, ("y",), texts, texts[:0])),
    }


@pytest.mark.parametrize(
    "name",
    [
        *("decoder", "decoder with a first token", "encoder-decoder"),
        *("encoder-decoder with a frame", "chats", "texts"),
    ],
)
def test_what_is_cut_when_it_is_tokens_is_what_is_cut_when_it_is_text(name: str) -> None:
    lm, task = models()[name]
    outcomes = set()
    for max_length in (2, 3, 5, 8, 21, 22, 23, 40):
        family = family_of(task, lm)(lm, task, max_length)
        whole = family_of(task, lm)(lm, task, NO_LIMIT).encode(task.train)[0]
        long = [i for i, item in enumerate(whole) if token_count(family, item) > max_length]
        cut = family.cut([task.train[i] for i in long], [whole[i] for i in long])
        for place, found in zip(long, cut, strict=True):
            try:
                ((expected,), _) = family.encode([task.train[place]])
            except TaskError:
                expected = None
            assert found == expected
            outcomes.add(found is None)
    assert outcomes == {True, False}


def test_few_that_cannot_be_encoded_do_not_make_all_of_them_be_encoded_one_by_one() -> None:
    rows = [Example(f"p{i}", "c", ("c",)) for i in range(1000)]
    rows[317] = Example("half of a \ud83d character", "c", ("c",))
    task, lm = GenerationTask("t", True, rows, rows[:0]), tiny_lm()
    family = family_of(task, lm)(lm, task, 24)
    calls, encode = [], family.encode
    family.encode = lambda examples: calls.append(len(examples)) or encode(examples)
    found = encoded_apart(family, rows)
    assert [i for i, item in enumerate(found) if item is None] == [317]
    assert len(calls) <= 21  # two a halving
