"""Chats as a task: what is learned, scored, answered and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.models import LoadedModel
from lora_lab.tasks import Chat, ChatTask, Example, GenerationTask
from lora_lab.tasks.chat_template import turn_end
from lora_lab.tasks.families import causal
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.generation import generate
from tests.helpers.chat_templates import CHATML, chat_tokenizer, template, turns
from tests.helpers.tiny_run import CONFIG, tiny_lm
from tests.helpers.tiny_seq2seq import tiny_seq2seq
from tests.helpers.tiny_text import tiny_llama

CHATS = [Chat(tuple(turns(f"q{i}", "ab", "r", "cd", system="s"))) for i in range(6)]
TASK = ChatTask("chats", True, CHATS[:4], CHATS[4:])
FAST: dict[str, Any] = {
    "max_steps": 30,
    "learning_rate": 2e-2,
    "warmup_steps": 0,
    "eval_examples": 2,
}


def chat_lm(text: str = CHATML) -> LoadedModel:
    tokenizer = chat_tokenizer(text)
    model = tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=256)
    return LoadedModel.given(model, tokenizer, "tiny-chat")


def test_the_loss_is_the_mean_over_the_tokens_of_the_assistants_turns() -> None:
    """By the formula in float64, from the text as it is written here."""
    lm = chat_lm()
    model: Any = lm.model.double()
    family = family_of(TASK, lm)(lm, TASK, 256)
    encoded, cut = family.encode(CHATS[:2])
    found = family.measure(family.collate(list(encoded)))
    terms = []
    for number in range(2):
        parts = ["<|im_start|>system\ns<|im_end|>\n"]
        parts += [
            f"<|im_start|>user\nq{number}<|im_end|>\n<|im_start|>assistant\n",
            "ab<|im_end|>\n",
        ]
        parts += ["<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n", "cd<|im_end|>\n"]
        pieces = [lm.tokenizer(part)["input_ids"] for part in parts]
        ids = [token for piece in pieces for token in piece]
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        ends = [sum(map(len, pieces[: n + 1])) for n in range(5)]
        for first, last in ((ends[1], ends[2]), (ends[3], ends[4])):
            terms += [-logs[i - 1, ids[i]].item() for i in range(first, last)]
    assert (cut, found.size) == (0, len(terms))
    assert found.loss == pytest.approx(sum(terms), rel=1e-6)


@pytest.mark.parametrize("marks", [True, False])
def test_chats_train_and_the_last_turn_is_answered(tmp_path: Path, marks: bool) -> None:
    lm = chat_lm(template("llama3_training", marks=marks))
    result = ll.train(lm, TASK, CONFIG, output_dir=tmp_path, **FAST).result()
    assert result.losses[-1][1] < 0.2 * result.losses[0][1]
    sample = result.samples[0]
    assert sample.prompt.endswith(
        "q4<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nab"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nr<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert (sample.references, sample.adapted) == (("cd",), "cd")
    family = family_of(TASK, lm)(lm, TASK, 256)
    # The system prompt that all have is there too; it stops at the end of the turn.
    assert family.answer("q1", 12) == "ab"


def test_answers_end_at_the_end_of_a_turn_that_is_not_the_tokenizers() -> None:
    lm = chat_lm()
    model, tokenizer = lm.model, lm.tokenizer
    end = turn_end(tokenizer)
    assert end != tokenizer.eos_token_id
    prompt = tokenizer("a")["input_ids"]
    free = generate(model, tokenizer, [prompt], max_new_tokens=8)
    with torch.no_grad():
        first = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    assert free != [""]
    assert generate(model, tokenizer, [prompt], max_new_tokens=8, ends=[first]) == [
        tokenizer.decode([first], skip_special_tokens=True).strip()
    ]


def test_prompts_framed_as_chats_are_encoded_and_answered_as_such(tmp_path: Path) -> None:
    examples = [Example(f"q{i}", "ab", ("ab",)) for i in range(6)]
    task = GenerationTask("t", True, examples[:4], examples[4:], template="chat")
    result = ll.train(chat_lm(), task, CONFIG, output_dir=tmp_path, **FAST).result()
    asked = "<|im_start|>user\nq4<|im_end|>\n<|im_start|>assistant\n"
    assert result.samples[0].prompt == asked
    assert result.samples[0].adapted == "ab"
    assert result.metrics["exact_match_after"] == 100


def test_thoughts_have_room_and_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen3's template has the model think before it answers, of nothing where nothing is said."""
    lm = chat_lm(template("qwen3_training"))
    chats = [Chat(tuple(turns("q", "cd"))), Chat(tuple(turns("r", "<think>\nx\n</think>\n\nef")))]
    task = ChatTask("chats", True, chats, chats)
    family: Any = family_of(task, lm)(lm, task, 256)
    written = "<think>\n\n</think>\n\ncd"
    room = []

    def generate(*_: Any, max_new_tokens: int, **__: Any) -> list[str]:
        room.append(max_new_tokens)
        return [written, written]

    monkeypatch.setattr(causal, "generate", generate)
    assert family.write(chats, lambda: False) == ["cd", "cd"]
    assert room[0] >= len(lm.tokenizer(f"{written}<|im_end|>\n")["input_ids"])
    assert [task.reference(chat) for chat in chats] == [("cd",), ("ef",)]
    assert family.answer("q", 40) == written


@pytest.mark.parametrize(
    ("text", "framing", "noted"),
    [
        (
            CHATML,
            "plain",
            ["framing: the text as it stands in the data; tiny-chat has a chat temp"],
        ),
        (CHATML, "{prompt}\n", ["framing: the prompt on a line of its own; tiny-chat has a chat"]),
        (CHATML, "chat", []),
        (CHATML.replace("<|im_end|>", "."), "chat", ["the chat template has no token of its own"]),
        (None, "Q {prompt}", ["framing: 'Q {prompt}'"]),
        (None, "{prompt}\n", []),
    ],
)
def test_a_run_notes_a_framing_that_is_no_matter_of_course(
    tmp_path: Path, text: str | None, framing: str, noted: list[str]
) -> None:
    lm = chat_lm(text or CHATML)
    lm.tokenizer.chat_template = text
    task = GenerationTask("t", True, [Example("a", "b", ("b",))], [], template=framing)
    run = ll.train(lm, task, CONFIG, output_dir=tmp_path, start=False)
    assert len(run.notes) == len(noted)
    assert all(map(str.startswith, run.notes, noted))


def test_tools_that_the_template_does_not_write_are_noted(tmp_path: Path) -> None:
    task = ChatTask("c", True, [Chat(tuple(turns("q", "a")), ({"name": "double"},))], [])
    run = ll.train(chat_lm(), task, CONFIG, output_dir=tmp_path, start=False)
    assert run.notes == ["the chat template does not write the tools (double)"]
    lm, room = chat_lm(template("qwen3_training")), {"max_length": 1000}
    assert not ll.train(lm, task, CONFIG, output_dir=tmp_path, start=False, **room).notes


def test_a_template_that_refuses_the_chats_is_told_at_the_call(tmp_path: Path) -> None:
    chat = Chat(tuple(turns("q", "a", system="s")), where="c.jsonl: row 1")
    line = r"c.jsonl: row 1: the chat template of .* refuses .* System role not supported"
    with pytest.raises(ConfigError, match=line):
        ll.train(chat_lm(template("gemma")), ChatTask("c", True, [chat], []), output_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_end_that_the_data_has_is_no_part_of_the_right_answer() -> None:
    lm = tiny_lm()
    example = Example("a", "one two three four</s>", ("one two three four</s>",))
    task = GenerationTask("t", True, [example], [example])
    family: Any = family_of(task, lm)(lm, task, 64)
    family.write = lambda examples, should_stop: ["one two three four"]
    encoded, _ = family.encode([example])
    found = family.evaluate([example], [family.collate(list(encoded))], lambda: False)
    assert found.scores["bleu"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("lm", "line"),
    [
        (
            tiny_lm,
            "chats holds chats, and the tokenizer of .* has no chat template; take an instruct",
        ),
        (tiny_seq2seq, "has an encoder and a decoder, and chats holds chats"),
    ],
)
def test_models_without_a_template_are_refused_before_anything(
    tmp_path: Path, lm: Any, line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        ll.train(lm(), TASK, CONFIG, output_dir=tmp_path)
    assert not any(tmp_path.iterdir())
