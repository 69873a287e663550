"""`evaluate`: against the run's own scores, and an independent pass over each example alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import lora_lab as ll
from lora_lab.errors import ConfigError, RunError, TaskError
from lora_lab.runs.records import find_run
from lora_lab.tasks import Example, GenerationTask
from lora_lab.training.run import Run
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, tiny_task

SETTINGS = {"max_steps": 6, "learning_rate": 3e-2, "eval_examples": 6, "save_steps": 0}
LORA = ll.LoraConfig(r=2)


def with_test(held_out: int = 12) -> GenerationTask:
    """The tiny task with the second half of its held-out part as the test part."""
    task = tiny_task(held_out=held_out)
    half = held_out // 2
    return GenerationTask("t", True, task.train, task.validation[:half], task.validation[half:])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    made = ll.train(tiny_lm(), with_test(), LORA, output_dir=folder, **SETTINGS)
    made.result(60)
    return made


def test_the_part_that_the_run_scored_has_the_runs_scores(run: Run) -> None:
    found = ll.evaluate(run, part="validation")
    own = run.result().metrics
    after = {name: value for name, value in own.items() if name.endswith("_after")}
    del after["kept_loss_after"]  # is of the run, not of the task
    assert {f"{name}_after": value for name, value in found.scores.items()} == after
    assert (found.examples, found.of, found.part) == (6, 6, "validation")
    assert found.intervals["exact_match"] == run.result().intervals["exact_match_after"]
    assert found.intervals["loss"] == run.result().intervals["loss_after"]


def test_the_test_part_is_scored_whole_and_every_answer_is_written(run: Run) -> None:
    found = ll.evaluate(run)
    rows = [json.loads(line) for line in (run.folder / "predictions.jsonl").open()]
    assert found.file == run.folder / "predictions.jsonl"
    assert [row["references"] for row in rows] == [list(e.references) for e in run.task.test]
    right = sum(row["prediction"] in row["references"] for row in rows)
    assert found.scores["exact_match"] == pytest.approx(100 * right / len(rows))
    assert "t, test: 6 of 6 examples" in str(found)
    assert json.dumps(found.to_json())
    again = ll.evaluate(run.folder, lm=run.lm, task=run.task)
    assert again.scores == pytest.approx(found.scores)
    record = ll.evaluate(find_run(run.folder), run.task, lm=run.lm, output_dir=run.folder / "x")
    assert record.file == run.folder / "x" / "predictions.jsonl"
    folder = ll.evaluate(run.folder / "adapter", run.task, lm=run.lm, part="test")
    assert folder.predictions == found.predictions
    assert ll.active(run.model) == "default", "as it was"
    assert list(ll.attached(run.model)) == ["default"]


def test_a_model_is_scored_as_it_stands(run: Run) -> None:
    bare = ll.evaluate(tiny_lm(), run.task, part="test")
    assert bare.file is None
    adapted = ll.evaluate(run.lm, run.task, max_examples=3)
    assert (adapted.examples, adapted.of) == (3, 6)
    assert adapted.predictions == ll.evaluate(run).predictions[:3]
    before = ll.evaluate(tiny_lm(), run.task, part="validation").scores["loss"]
    assert before == pytest.approx(run.result().metrics["loss_before"], rel=1e-6)


def test_classes_are_those_of_each_text_alone_whatever_the_batch(tmp_path: Path) -> None:
    lm, task = tiny_classifier(), tiny_classes()
    task = type(task)(task.name, True, task.labels, task.train, (), task.validation)
    found = ll.evaluate(lm, task, per_device_train_batch_size=5, output_dir=tmp_path)
    losses = []
    for row, example in zip(found.predictions, task.test, strict=True):
        batch = lm.tokenizer(example.text, return_tensors="pt")
        with torch.no_grad():
            logits = lm.model(**batch).logits.double()
        assert row["prediction"] == task.labels[int(logits.argmax())]
        losses.append(cross_entropy(logits, torch.tensor([task.labels.index(example.label)])))
    assert found.scores["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("of", "given", "error", "message"),
    [
        ("run", {"part": "tset"}, TaskError, "part is 'tset'; use 'test'"),
        ("run", {"task": tiny_task()}, TaskError, r"no test examples \(train 64, validation 4"),
        ("run", {"learning_rate": 1.0}, ConfigError, "evaluate has no learning_rate"),
        ("lm", {}, TaskError, "a model has no task of its own"),
        ("adapter", {}, ConfigError, "is an adapter and no run, which would name its model"),
        ("folder", {}, RunError, "pass it"),
        ("run", {"task": tiny_classes(), "part": "train"}, ConfigError, "no classification head"),
    ],
)
def test_what_cannot_be_scored_gets_one_line(
    run: Run, of: str, given: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    adapter = ll.save_adapter(run.model, tmp_path / "alone") if of == "adapter" else None
    what: Any = {"run": run, "lm": run.lm, "adapter": adapter, "folder": run.folder}[of]
    with pytest.raises(error, match=message) as caught:
        ll.evaluate(what, **given)
    assert "\n" not in str(caught.value)


def test_an_adapter_for_another_base_is_refused_and_leaves_nothing(run: Run) -> None:
    other = tiny_classifier("gpt2")
    with pytest.raises(ll.LoraLabError):
        ll.evaluate(run.folder / "adapter", tiny_classes(), lm=other, part="validation")
    assert not ll.attached(other.model)


@pytest.mark.parametrize("count", [0, -1, True])
def test_no_examples_are_no_number_of_them(count: Any) -> None:
    with pytest.raises(ConfigError, match=f"max_examples is {count}; it must be a whole number"):
        ll.evaluate(tiny_lm(), with_test(), max_examples=count)


def test_training_examples_without_a_reference_are_not_scored() -> None:
    task = tiny_task()
    bare = [Example(e.prompt, e.completion, ()) for e in task.train[:3]]
    task = dataclasses.replace(task, train=[*task.train[:2], *bare])
    with pytest.raises(TaskError, match=r"3 of 5 training examples .*no reference \(rows 2, 3, 4"):
        ll.evaluate(tiny_lm(), task, part="train")
