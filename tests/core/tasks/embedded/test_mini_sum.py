"""mini-sum: what its summaries say is what was agreed in the chat."""

from __future__ import annotations

import re

import pytest

from lora_lab.tasks import GenerationTask, load_task

HOURS = "five|six|seven|eight|nine"
DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"


@pytest.fixture(scope="module")
def task() -> GenerationTask:
    return load_task("mini-sum")


def test_sizes_and_parts(task: GenerationTask) -> None:
    assert task.synthetic
    assert (len(task.train), len(task.validation), len(task.test)) == (1600, 100, 100)
    assert load_task("mini-sum").train == task.train
    assert load_task("mini-sum", seed=1).train != task.train
    words = [len(f"{e.prompt} {e.completion}".split()) for e in task.train]
    assert max(words) <= 80, "fits the default of 128 tokens"
    assert all(len(set(e.references)) == 3 for e in (*task.validation, *task.test))
    assert [metric.name for metric in task.metrics] == ["rouge_1", "rouge_2", "rouge_l"]
    # No restaurant is in two parts; each is said in its chat.
    parts = [{place(e) for e in part} for part in (task.train, task.validation, task.test)]
    assert not (parts[0] & parts[1])
    assert not (parts[0] & parts[2])
    assert not (parts[1] & parts[2])


def place(example: object) -> str:
    found = re.search(r"(?:Let's take|Rather|I would like) (.+?)(?: more)?[.?]$", turns(example)[3])
    assert found, example
    return found[1]


def turns(example: object) -> list[str]:
    return example.prompt.split("\n")  # type: ignore[attr-defined]


def test_a_summary_says_what_was_agreed_last(task: GenerationTask) -> None:
    moved = 0
    for example in (*task.train, *task.validation):
        chat = turns(example)
        assert len(chat) == 6
        hours = re.findall(HOURS, example.prompt)
        moved += len(hours) == 2
        who = {line.partition(":")[0] for line in chat}
        day = re.findall(DAYS, chat[0])
        first = re.sub(r"^\w+: (How about|I thought of|What about) (.+)[?.]$", r"\2", chat[2])
        for text in example.references:
            assert re.findall(rf"\b({HOURS})\b", text) == hours[-1:]
            assert re.findall(DAYS, text) == day
            assert who <= set(re.findall(r"\w+", text))
            agreed, other = text.index(place(example)), text.index(first)
            assert agreed < other, "the place that was turned down comes second"
            assert "{" not in text
    assert 0.5 < moved / 1700 < 0.7


def test_the_reason_is_the_one_that_was_given(task: GenerationTask) -> None:
    said = {
        "do not like": "does not like",
        "too far": "too far for",
        "too expensive": "too expensive for",
        "badly": "badly",
        "Children": "children are not welcome",
    }
    for example in task.train:
        (why,) = [text for key, text in said.items() if key in turns(example)[3]]
        assert why in example.completion
