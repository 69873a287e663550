"""A kind of task of one's own: family and task stand here, and train and answer as any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import lora_lab as ll
from lora_lab.errors import TaskError
from lora_lab.tasks import Family, Metric, Task, register_family, register_task
from lora_lab.tasks.embedded.registry import EMBEDDED
from lora_lab.tasks.families.api import longest_example
from lora_lab.tasks.families.base import FAMILIES, Measured
from lora_lab_widgets import Workbench
from tests.helpers.tiny_run import tiny_lm, tiny_task

HITS = Metric("hits", lambda p, r: 100 * sum(map(str.__eq__, p, r)) / len(r), unit="%")


@dataclass(frozen=True)
class NextByteTask(Task):
    """Given some letters, which one comes next?"""

    name: str
    synthetic: bool
    train: tuple[str, ...] = field(repr=False)
    validation: tuple[str, ...] = field(repr=False)
    test: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = (HITS,)

    loss_unit = "nats per letter"

    def reference(self, example: str) -> str:
        return example[-1]

    def input_text(self, example: str) -> str:
        return example[:-1]


class NextByte(Family):
    """A decoder, asked for one byte."""

    kind = NextByteTask
    tries = "one word, continued"

    @classmethod
    def check(cls, lm: Any, task: Any) -> None: ...

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"][: self.max_length]

    def encode(self, examples: Any) -> tuple[list[dict[str, Any]], int]:
        ids = map(self._ids, examples)
        return [{"input_ids": row[:-1], "labels": row[-1]} for row in ids], 0

    def collate(self, batch: Any) -> dict[str, Tensor]:
        return {name: torch.tensor([item[name] for item in batch]) for name in batch[0]}

    @staticmethod
    def loss(output: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
        return cross_entropy(output.logits[:, -1], labels, reduction="sum") / num_items_in_batch

    def measure(self, batch: dict[str, Tensor]) -> Measured:
        labels = batch.pop("labels")
        output = self.model(**batch)
        answers = [self.tokenizer.decode(n) for n in output.logits[:, -1].argmax(-1).tolist()]
        return Measured(self.loss(output, labels, 1).item(), len(labels), answers)

    def sample(self, example: str) -> tuple[str, tuple[str, ...]]:
        return example[:-1], (example[-1],)

    def answer(self, text: str, max_new_tokens: int) -> str:
        with torch.no_grad():
            logits = self.model(torch.tensor([self._ids(text)])).logits
        return self.tokenizer.decode(int(logits[0, -1].argmax()))


def next_byte(seed: int) -> NextByteTask:
    rows = tuple("abcdefghij"[(i + seed) % 6 :][:4] for i in range(32))
    return NextByteTask("next-byte", True, rows, rows[:6])


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_family(NextByte)
    register_task("next-byte", NextByteTask)(next_byte)
    yield
    FAMILIES.remove(NextByte)
    del EMBEDDED["next-byte"]


def test_it_trains_is_scored_and_resumes_by_its_name(tmp_path: Path) -> None:
    settings = {"max_steps": 40, "learning_rate": 3e-2, "eval_examples": 6, "max_length": 16}
    run = ll.train(tiny_lm(), "next-byte", ll.LoraConfig(r=4), output_dir=tmp_path, **settings)
    result = run.result(60)
    assert result.metrics["loss_after"] < result.metrics["loss_before"]
    assert result.metrics["hits_after"] > result.metrics["hits_before"]
    assert result.samples[0].references == ("d",)
    told = json.loads((run.folder / "config.json").read_text())
    assert told["sources"]["task"] == {"name": "next-byte"}
    assert told["task"]["loss_unit"] == run.snapshot.loss_unit == "nats per letter"
    assert longest_example(tiny_lm(), next_byte(0), 16).read == 3


def test_it_is_offered_and_tried_in_the_workbench(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="did you mean 'next-byte'"):
        ll.load_task("next-bite")
    bench = Workbench(tiny_lm(), task="next-byte", output_dir=tmp_path, max_steps=2, max_length=16)
    assert bench.panel.tasks == ["next-byte"]
    assert (bench.try_it.tries, bench.try_it.prompt) == ("one word, continued", "abc")
    bench.start().result(60)
    assert len(bench.session.answer("abc", 8)[1] or "") == 1


def test_a_task_of_a_kind_that_is_there_is_offered_beside_its_like(tmp_path: Path) -> None:
    register_task("letters-2", type(tiny_task()))(lambda seed: tiny_task())
    try:
        bench = Workbench(tiny_lm(), task=tiny_task(), output_dir=tmp_path)
        assert "letters-2" in bench.panel.tasks
    finally:
        del EMBEDDED["letters-2"]
