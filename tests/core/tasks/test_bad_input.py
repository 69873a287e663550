"""Bad input is counted, shown, refused or cut as asked: never silently."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

import lora_lab as ll
from lora_lab.errors import LoraLabError, TaskError
from lora_lab.tasks import (
    ClassificationTask,
    Decoding,
    Example,
    GenerationTask,
    LabeledText,
    RegressionTask,
    ScoredText,
    load_task,
)
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, tiny_task

GOOD = Example("a b >", "a b .", ("a b .",))
SETTINGS: dict[str, Any] = {"max_steps": 1, "eval_examples": 4, "max_length": 32}


def generation(*held_out: Example) -> GenerationTask:
    return dataclasses.replace(tiny_task(), validation=held_out)


def classes(*held_out: LabeledText, train: tuple[LabeledText, ...] = ()) -> ClassificationTask:
    task = tiny_classes()
    return dataclasses.replace(task, train=[*task.train, *train], validation=[*held_out])


def numbers(*held_out: ScoredText) -> RegressionTask:
    train = [ScoredText(f"t{i}", i / 3) for i in range(9)]
    return RegressionTask("numbers", True, train, held_out)


LATE = LabeledText("xyz", "late")
BAD = {
    "no reference": (generation(GOOD, Example("c >", "c", ())), "it has no reference", "1"),
    "blank references": (
        generation(Example("c >", "c", (" ", "")), GOOD, Example("d >", "d", ())),
        "it has no reference",
        "0, 2",
    ),
    "class outside the head": (
        classes(LATE, LabeledText("abc", "never")),
        r"its class 'never' is none of the task's \(early, late\)",
        "1",
    ),
    "class in another case": (classes(LabeledText("abc", "Early")), "its class 'Early' is", "0"),
    "nan": (numbers(ScoredText("a", 1.0), ScoredText("b", math.nan)), "its number is nan", "1"),
    "infinite": (numbers(ScoredText("a", -math.inf)), "its number is -inf", "0"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("part", ["validation", "test"])
def test_examples_that_cannot_be_scored_are_refused_before_anything(
    tmp_path: Path, what: str, part: str
) -> None:
    task, why, rows = BAD[what]
    bad = task.validation
    if part == "test":
        task = dataclasses.replace(task, validation=task.validation[:0], test=bad)
    lm = tiny_lm()
    if task.head:
        lm = tiny_classifier(classes=1 if isinstance(task, RegressionTask) else 2)
    count = len(rows.split(","))
    line = rf"{count} of {len(bad)} {part} examples cannot be used, .*{why}.*\(rows {rows}\); mend"
    with pytest.raises(TaskError, match=line) as caught:
        ll.train(lm, task, ll.LoraConfig(r=2), output_dir=tmp_path, **SETTINGS)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir()), "no run was begun"
    with pytest.raises(TaskError, match=why):
        ll.evaluate(lm, task, part=part)
    with pytest.raises(TaskError, match=why):
        task.score([0.0 if isinstance(task, RegressionTask) else "late"] * len(bad), bad)


def test_a_class_of_a_training_row_that_the_head_has_not_is_refused(tmp_path: Path) -> None:
    task = classes(LATE, train=(LabeledText("m", "middle"),))
    with pytest.raises(TaskError, match=r"1 of 65 training examples .*'middle'.*\(rows 64\)"):
        ll.train(tiny_classifier(), task, ll.LoraConfig(r=2), output_dir=tmp_path, **SETTINGS)


def test_what_is_learned_needs_no_reference_and_any_reference_will_do(tmp_path: Path) -> None:
    task = generation(Example("c >", "c .", ("", "c .")))
    bare = [Example(e.prompt, e.completion, ()) for e in task.train]
    task = dataclasses.replace(task, train=bare)
    run = ll.train(tiny_lm(), task, ll.LoraConfig(r=2), output_dir=tmp_path, **SETTINGS)
    assert run.result(60).metrics["exact_match_before"] == 0


def test_a_prompt_that_is_cut_for_its_answers_room_is_noted(tmp_path: Path) -> None:
    lm = tiny_lm()
    most = lm.model.config.max_position_embeddings
    long = Example("a " * ((most - 20) // 2) + ">", "a .", ("a .",))
    task = dataclasses.replace(generation(GOOD, long), decoding=Decoding(max_new_tokens=most // 2))
    found = ll.evaluate(lm, task, part="validation", max_length=most)
    line = f"1 of 2 held-out prompts are cut at their start, so that an answer of {most // 2} "
    assert any(note.startswith(line) for note in found.notes), found.notes
    assert line in str(found)
    with pytest.raises(TaskError, match=r"1 of 2 held-out prompts are cut .*set too_long='cut'"):
        ll.evaluate(lm, task, part="validation", max_length=most, too_long="error")
    short = dataclasses.replace(task, decoding=Decoding(max_new_tokens=4))
    notes = ll.evaluate(lm, short, part="validation", max_length=most).notes
    assert not any("cut" in note for note in notes)


def test_one_class_only_is_told_of_by_evaluate_too() -> None:
    lm, task = tiny_classifier(), classes(LATE, LATE, LATE)
    found = ll.evaluate(lm, task, part="validation")
    assert any("not defined and given as 0" in note for note in found.notes)
    assert "not defined and given as 0" in str(found)
    mixed = ll.evaluate(lm, tiny_classes(), part="validation")
    alike = len({row["prediction"] for row in mixed.predictions}) == 1
    assert alike == any("are answered alike" in note for note in mixed.notes)


WRONG_KINDS = [
    (tiny_lm, tiny_classes),
    (tiny_lm, lambda: numbers(ScoredText("a", 1.0))),
    (tiny_classifier, tiny_task),
    (lambda: tiny_classifier(classes=3), tiny_classes),
    (tiny_classifier, lambda: numbers(ScoredText("a", 1.0))),
]


@pytest.mark.parametrize(("model", "task"), WRONG_KINDS)
def test_a_task_of_the_wrong_kind_gets_one_line_with_the_way_out(
    tmp_path: Path, model: Any, task: Any
) -> None:
    with pytest.raises(LoraLabError, match=r"load it with|use a language model") as caught:
        ll.train(model(), task(), ll.LoraConfig(r=2), output_dir=tmp_path, **SETTINGS)
    assert "\n" not in str(caught.value)


def test_rows_without_an_answer_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("mr,ref\n" + "".join(f"m{i},{'' if i % 4 else 'r'}\n" for i in range(40)))
    with pytest.warns(UserWarning, match="30 of 40 rows without 'mr' or 'ref' are left out"):
        task = load_task(path)
    assert len(task.train) + len(task.validation) == 10
    with pytest.raises(TaskError, match=r"no column 'answer'; its columns are mr, ref"):
        load_task(path, prompt="mr", completion="answer")
