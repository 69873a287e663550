"""Regression: tables, the loss and the scores, and runs that train, resume and answer."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import lora_lab as ll
from lora_lab.analysis import compare_methods
from lora_lab.cli import main
from lora_lab.errors import ConfigError, TaskError
from lora_lab.models import LoadedModel
from lora_lab.runs.run_file import RunConfig
from lora_lab.tasks import RegressionTask, ScoredText
from lora_lab.tasks.families.api import family_of, longest_example
from lora_lab.training.divergence import Divergence
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores

SETTINGS = {"max_steps": 4, "learning_rate": 1e-2, "max_length": 24, "eval_examples": 11}
LORA = ll.LoraConfig(r=4, lora_alpha=8)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Data --------------------------------------------------------------------------------------------

ROWS = [("a man sings", "a man is singing", 4.8), ("a dog", "a cat", 0.0), ("one", "two", 1.25)]


def write(path: Path, rows: list[tuple[str, str, Any]] = ROWS * 4) -> Path:
    lines = [f"{first} {i}\t{second}\t{score}" for i, (first, second, score) in enumerate(rows)]
    path.write_text("\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n")
    return path


def test_a_column_of_numbers_is_a_task(tmp_path: Path) -> None:
    task = ll.load_task(
        write(tmp_path / "sts.tsv"), text="sentence1", pair="sentence2", target="score"
    )
    assert isinstance(task, RegressionTask)
    assert (len(task.train), len(task.validation), task.test) == (11, 1, ())
    assert {e.target for e in task.train} == {4.8, 0.0, 1.25}
    assert ScoredText("a dog 1", 0.0, "a cat") in (*task.train, *task.validation)
    described = "sts.tsv: 11 training examples, 1 validation; scored by Pearson × 100, Spearman"
    assert task.describe().startswith(described)


def test_the_same_column_as_label_makes_classes_as_before(tmp_path: Path) -> None:
    task = ll.load_task(write(tmp_path / "sts.tsv"), text="sentence1", label="score")
    assert task.labels == ("0.0", "1.25", "4.8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "score", "label": "score"}, "label names a class and target a number"),
        ({"target": "score", "prompt": "sentence1"}, "prompt and completion make a task of"),
        ({"target": "score"}, "name the column of the text too.*target='target'.*its columns are"),
        ({"text": "score", "target": "score"}, "text, target and pair differ"),
        ({"text": "sentence1", "target": "stars"}, "has no column 'stars'"),
    ],
)
def test_columns_that_make_no_task_are_refused(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        ll.load_task(write(tmp_path / "sts.tsv"), **options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("high", "row 2 has 'high' in column 'score', which is no number"),
        ("nan", "row 2 .* has no number in column 'score'"),
        ("-inf", "row 2 has '-inf' in column 'score', which is no number; regression needs one"),
        ("3,5", "row 2 has '3,5' in column 'score', .*; write its decimals behind a point"),
        ("", "row 2 .* has no number in column 'score'"),
    ],
)
def test_a_row_without_a_number_is_named(tmp_path: Path, bad: str, message: str) -> None:
    path = write(tmp_path / "sts.tsv", [ROWS[0], ("x", "y", bad), *ROWS])
    with pytest.raises(TaskError, match=message):
        ll.load_task(path, text="sentence1", target="score")


def test_the_scores_are_scipys_and_a_constant_answer_has_none() -> None:
    rng = random.Random(1)
    examples = [ScoredText("x", rng.gauss(3, 2)) for _ in range(37)]
    answers = [e.target + rng.gauss(0, 1) for e in examples]
    scores = tiny_scores().score(answers, examples)
    targets = [e.target for e in examples]
    assert scores["pearson"] == pytest.approx(100 * np.corrcoef(answers, targets)[0, 1], rel=1e-9)
    ranks = stats.rankdata(answers), stats.rankdata(targets)
    assert scores["spearman"] == pytest.approx(100 * np.corrcoef(*ranks)[0, 1], rel=1e-9)
    assert tiny_scores().score([2.0] * 37, examples) == {"pearson": 0.0, "spearman": 0.0}


# Models ------------------------------------------------------------------------------------------


def test_a_model_is_loaded_with_one_output(tmp_path: Path) -> None:
    tiny_lm().model.save_pretrained(tmp_path)
    tiny_lm().tokenizer.save_pretrained(tmp_path)
    lm = ll.load_model(tmp_path, device="cpu", **tiny_scores().head)
    assert lm.model.config.problem_type == "regression"
    assert lm.model.score.weight.shape == (1, lm.model.config.hidden_size)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tiny_lm, r"has no classification head, and counts is text → one number; .*num_labels=1"),
        (tiny_classifier, r"has a head for 2 classes and counts is text → one number; .*=1"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        ll.train(make(), tiny_scores(), output_dir=tmp_path)


# Runs --------------------------------------------------------------------------------------------


def numbers(lm: LoadedModel, examples: list[ScoredText]) -> torch.Tensor:
    """Return the model's numbers in float64, one text after another."""
    model, tokenizer = lm.model.double().eval(), lm.tokenizer
    assert tokenizer is not None
    found = []
    for example in examples:
        ids = torch.tensor([tokenizer(example.text, example.pair)["input_ids"]])
        types = torch.tensor([tokenizer(example.text, example.pair)["token_type_ids"]])
        extra = {"token_type_ids": types} if model.config.model_type == "bert" else {}
        with torch.no_grad():
            found.append(model(input_ids=ids, **extra).logits.squeeze())
    return torch.stack(found)


@pytest.mark.parametrize(("kind", "pairs"), [("bert", True), ("llama", False)])
def test_the_held_out_loss_is_the_mean_squared_error(
    kind: str, pairs: bool, tmp_path: Path
) -> None:
    task = tiny_scores(pairs=pairs)
    run = ll.train(tiny_scorer(kind), task, LORA, output_dir=tmp_path, **SETTINGS)
    result = run.result(120)
    held_out = list(task.validation[:11])
    errors = numbers(tiny_scorer(kind), held_out) - torch.tensor([e.target for e in held_out])
    assert result.metrics["loss_before"] == pytest.approx(errors.square().mean().item(), rel=1e-4)
    assert set(result.metrics) == {
        f"{name}_{when}" for name in ("loss", "pearson", "spearman") for when in ("before", "after")
    }
    prompt = f"{held_out[0].text}\n{held_out[0].pair}" if pairs else held_out[0].text
    assert result.samples[0].prompt == prompt
    assert result.samples[0].references == (f"{held_out[0].target:.4g}",)
    assert math.isfinite(float(result.samples[0].adapted or "nan"))


def test_the_step_loss_is_the_mean_over_all_passes_whatever_their_targets(tmp_path: Path) -> None:
    # -100 is a target as any other, though transformers' Trainer leaves that label out.
    rows = [ScoredText("ab" * (i % 3 + 1), float(t)) for i, t in enumerate((-100, 2, 3, 4))]
    task = RegressionTask("cold", True, rows, rows)
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run = ll.train(
        tiny_scorer(), task, LORA, output_dir=tmp_path, max_steps=1, eval_examples=0, **settings
    )
    errors = numbers(tiny_scorer(), rows) - torch.tensor([e.target for e in rows])
    assert run.result(60).losses[0][1] == pytest.approx(errors.square().mean().item(), rel=1e-4)


def test_it_learns(tmp_path: Path) -> None:
    task = tiny_scores(training=128)
    settings = {"max_steps": 60, "learning_rate": 5e-2, "eval_examples": 16, "max_length": 24}
    run = ll.train(tiny_scorer(), task, LORA, output_dir=tmp_path, **settings)
    metrics = run.result(120).metrics
    assert metrics["loss_after"] < 0.1 < 5 < metrics["loss_before"]
    assert metrics["pearson_after"] > 95
    assert "parameters of the head (classifier) are trained whole" in run.notes[0]


def test_targets_of_a_large_scale_do_not_look_like_divergence() -> None:
    task = tiny_scores()
    lm = tiny_scorer()
    family = family_of(task, lm)(lm, task, 24)
    mean_square = np.mean([e.target**2 for e in task.train])
    assert family.rise == pytest.approx(10 * mean_square)
    assert Divergence([5.0] * 5, rise=family.rise).limit == pytest.approx(5 + 10 * mean_square)


def test_a_run_is_resumed_and_repeated_from_its_files(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path / "sts.tsv", ROWS * 8)
    tiny_lm().model.save_pretrained(tmp_path / "base")
    tiny_lm().tokenizer.save_pretrained(tmp_path / "base")
    task = ll.load_task(path, text="sentence1", pair="sentence2", target="score")
    settings = {**SETTINGS, "max_steps": 6, "eval_examples": 2, "max_length": 64}

    def new() -> LoadedModel:
        return ll.load_model(tmp_path / "base", device="cpu", num_labels=1)

    whole = ll.train(new(), task, LORA, output_dir=tmp_path / "whole", **settings).result(60)
    run = ll.train(new(), task, LORA, output_dir=tmp_path, start=False, save_steps=3, **settings)
    run.start()
    run.stop()
    run.wait(60)
    again = ll.resume(run.folder).result(60)  # neither model nor task is passed
    assert again.losses[-1] == whole.losses[-1]
    assert again.metrics == whole.metrics

    told = json.loads((run.folder / "config.json").read_text())
    assert (told["task"]["num_labels"], told["task"]["loss_unit"]) == (1, "squared error")
    recipe = RunConfig.from_dict(told)
    assert "num_labels" not in recipe.model
    assert recipe.task["target"] == "score"
    run_file = tmp_path / "run.yaml"
    run_file.write_text(recipe.to_yaml())
    assert main(["train", str(run_file), "--output-dir", str(tmp_path / "cli"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == pytest.approx(whole.metrics, rel=1e-6)


def test_forecasts_and_comparisons_know_it(tmp_path: Path) -> None:
    lm, task = tiny_scorer(), tiny_scores()
    read = longest_example(lm, task, 24).read
    assert read == 6 + 2  # a token a byte, in the frame
    assert ll.budget(lm.model, LORA, batch_size=4, sequence_length=read).adapted.total > 0
    for rate in (1e-2, 1e-3):
        settings = {**SETTINGS, "learning_rate": rate}
        ll.train(lm, task, LORA, output_dir=tmp_path, **settings).result(60)
    found = compare_methods(ll.list_runs(tmp_path), "pearson_after")
    assert found.best.mean == max(row.mean for row in found.rows)
    assert compare_methods(ll.list_runs(tmp_path)).loss_unit == "squared error"


def test_other_tasks_keep_their_units(tmp_path: Path) -> None:
    for lm, task, unit in (
        (tiny_lm(), tiny_task(), "nats per token"),
        (tiny_classifier(), tiny_classes(), "nats per text"),
    ):
        run = ll.train(lm, task, LORA, output_dir=tmp_path, start=False)
        assert run.snapshot.loss_unit == unit == run.description()["task"]["loss_unit"]
