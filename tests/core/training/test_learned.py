"""A run that could not learn ends with a note that says why; one that learned, without."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from types import SimpleNamespace

import pytest
import torch

from lora_lab.configs import FullConfig, LoraConfig, TrainingConfig
from lora_lab.models import LoadedModel
from lora_lab.tasks.families.api import family_of
from lora_lab.training.api import train
from lora_lab.training.learned import checksum, learned_notes
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores

LORA = LoraConfig(r=2)
WORDS = ("warm-up", "no trained number", "before and after", "chance", "beyond its noise")


def said(run):
    run.result(60)
    notes = json.loads((run.folder / "summary.json").read_text())["notes"]
    assert notes == list(run.notes)
    return [note for note in notes if any(word in note for word in WORDS)]


def begin(tmp_path, lm=None, task=None, config=LORA, **training):
    settings = {"max_length": 32, "eval_examples": 0, "save_steps": 0} | training
    return train(lm or tiny_lm(), task or tiny_task(), config, output_dir=tmp_path, **settings)


def test_one_step_at_the_defaults_moves_b(tmp_path):
    lm = tiny_lm()
    run = begin(tmp_path, lm, max_steps=1)
    run.result(60)
    assert all(bool(p.any()) for name, p in lm.model.named_parameters() if name.endswith(".B"))
    row = json.loads((run.folder / "metrics.jsonl").read_text())
    assert row["learning_rate"] == TrainingConfig().learning_rate


@pytest.mark.parametrize(
    ("steps", "warmup", "line"),
    [
        (1, 5, r"nothing was learned: the warm-up begins at the learning rate 0"),
        (1, 1, r"nothing was learned: the warm-up begins at the learning rate 0"),
        (3, 5, r"the warm-up is as long as the run .*3 steps .* come to 0.0008 of 0.002"),
        (2, 2, r"the warm-up is as long as the run .*2 steps .* come to 0.001 of 0.002"),
    ],
)
def test_a_warm_up_as_long_as_the_run_is_told(tmp_path, steps, warmup, line):
    run = begin(tmp_path, max_steps=steps, warmup_steps=warmup)
    (note,) = said(run)
    assert re.search(line, note)
    rows = (run.folder / "metrics.jsonl").read_text().splitlines()
    reached = max(json.loads(row)["learning_rate"] for row in rows)
    assert reached == pytest.approx(0.002 * (steps - 1) / warmup)


def test_what_rounding_swallows_is_told(tmp_path):
    """Next to 0.02 bfloat16 has no number within 1e-6, and float32 has."""
    for dtype in (torch.bfloat16, torch.float32):
        lm = tiny_classifier("bert")
        for parameter in lm.model.parameters():  # none so small that 1e-6 is much to it
            sign = torch.where(parameter < 0, -1.0, 1.0)
            parameter.data = sign * parameter.data.abs().clamp(min=0.02)
        lm = LoadedModel.given(lm.model.to(dtype), lm.tokenizer)
        options = {"learning_rate": 1e-6, "max_steps": 2, "warmup_steps": 0}
        notes = said(begin(tmp_path, lm, tiny_classes(), FullConfig(), **options))
        lost = "no trained number has moved: learning_rate=1e-06 is lost in the rounding"
        assert any(note.startswith(lost) for note in notes) == (dtype == torch.bfloat16)


def test_a_rate_too_low_to_be_measured_is_told(tmp_path):
    run = begin(tmp_path, max_steps=2, learning_rate=1e-20, warmup_steps=0, eval_examples=2)
    (note,) = said(run)
    assert "before and after: what was trained changes nothing" in note
    assert "than 1e-20" in note


def test_answers_that_do_not_follow_from_the_texts_end_at_chance(tmp_path):
    rng = random.Random(0)
    task = tiny_classes(training=512)
    rows = tuple(dataclasses.replace(e, label=rng.choice(task.labels)) for e in task.train)
    task = dataclasses.replace(task, train=rows, validation=rows[:16])
    run = begin(tmp_path, tiny_classifier(), task, max_steps=20, learning_rate=1e-4)
    (note,) = said(run)
    assert "no better than chance (guessing has 0.69" in note


def test_a_run_that_learns_says_nothing(tmp_path):
    options = {"max_steps": 30, "learning_rate": 1e-2}
    assert said(begin(tmp_path, **options, eval_examples=4)) == []
    assert said(begin(tmp_path, **options)) == []
    options = {"max_steps": 60, "learning_rate": 1e-2, "warmup_steps": 5}
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    assert said(begin(tmp_path, tiny_classifier(), tiny_classes(), config, **options)) == []


def test_one_class_alone_is_noted(tmp_path):
    task = tiny_classes()
    early = tuple(example for example in task.train if example.label == "early")
    run = train(
        tiny_classifier(),
        dataclasses.replace(task, train=early),
        LORA,
        output_dir=tmp_path,
        start=False,
    )
    assert "all training rows are of one class (early)" in run.notes


# The rules, without a run ------------------------------------------------------------------------


def notes_of(losses, chance=None, **metrics):
    worker = SimpleNamespace(
        run=SimpleNamespace(training=TrainingConfig(max_steps=len(losses), warmup_steps=0)),
        losses=SimpleNamespace(values=list(losses)),
        metrics=metrics,
        data=SimpleNamespace(family=SimpleNamespace(chance=chance)),
    )
    return learned_notes(worker, moved=True)


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_fall_and_a_fall_is_more_than_noise(seed):
    rng = random.Random(seed)
    noise = [2 + rng.gauss(0, 0.1) for _ in range(60)]
    assert "did not fall beyond its noise" in notes_of(noise)[0]
    assert notes_of([loss - i / 100 for i, loss in enumerate(noise)]) == []
    assert "did not fall" in notes_of([loss + i / 100 for i, loss in enumerate(noise)])[0]
    assert notes_of(noise, loss_before=2.0, loss_after=1.9) == []
    assert notes_of(noise[:10]) == [], "too few to know their noise"


def test_chance_needs_both_losses_at_chance():
    falling = [0.7 - i / 100 for i in range(40)]
    assert notes_of(falling, math.log(2), loss_before=0.7, loss_after=0.9) == []
    assert "chance" in notes_of([0.7] * 5, math.log(2), loss_before=0.71, loss_after=0.70)[0]
    assert notes_of([0.7] * 5, math.log(2), loss_before=0.71, loss_after=0.4) == []
    assert "chance" in notes_of([9.0, 9.1, 9.0], math.log(259))[0]
    assert notes_of([9.0, 8.0, 7.0], math.log(259)) == [], "far from it still, and on its way"


def test_chance_is_the_entropy_of_what_is_learned():
    classes = tiny_classes()
    rows = [e for e in classes.train if e.label == "early"][:30]
    rows += [e for e in classes.train if e.label == "late"][:10]
    skewed = dataclasses.replace(classes, train=tuple(rows))
    lm = tiny_classifier()
    found = family_of(skewed, lm)(lm, skewed, 32).chance
    assert found == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    lm, task = tiny_lm(), tiny_task()
    assert family_of(task, lm)(lm, task, 32).chance == pytest.approx(math.log(259))
    lm, task = tiny_scorer(), tiny_scores()
    targets = torch.tensor([e.target for e in task.train], dtype=torch.float64)
    found = family_of(task, lm)(lm, task, 32).chance
    assert found == pytest.approx(targets.var(correction=0).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_the_checksum_sees_the_smallest_move(dtype):
    values = torch.linspace(-1, 1, 99, dtype=dtype)
    adapter = SimpleNamespace(parameters=lambda: iter([values, torch.zeros(0, dtype=dtype)]))
    before = checksum(adapter)
    assert checksum(adapter) == before
    values[7] = torch.nextafter(values[7], torch.tensor(9.0, dtype=dtype))
    assert checksum(adapter) != before
