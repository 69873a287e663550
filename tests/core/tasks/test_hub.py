"""Hub data sets with configurations and split names of their own; the hub is a stand-in."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import ClassificationTask, LabeledText, RegressionTask, load_task, tables
from lora_lab.tasks.sources import task_source
from lora_lab.training.resume import path_in

MNLI = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
PAIRS = datasets.Features(
    {
        "premise": datasets.Value("string"),
        "hypothesis": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
        "idx": datasets.Value("int32"),
    }
)
SCORED = datasets.Features(
    {
        "sentence1": datasets.Value("string"),
        "sentence2": datasets.Value("string"),
        "label": datasets.Value("float32"),
        "idx": datasets.Value("int32"),
    }
)


def pairs(split: str, count: int = 6) -> datasets.Dataset:
    secret = split.startswith("test")
    columns = {
        "premise": [f"{split} {i}" for i in range(count)],
        "hypothesis": [f"h {i}" for i in range(count)],
        "label": [-1 if secret else i % 3 for i in range(count)],
        "idx": list(range(count)),
    }
    return datasets.Dataset.from_dict(columns, features=PAIRS)


def scored(split: str) -> datasets.Dataset:
    columns = {
        "sentence1": [f"{split} {i}" for i in range(9)],
        "sentence2": [f"b {i}" for i in range(9)],
        "label": [i / 4 for i in range(9)],
        "idx": list(range(9)),
    }
    return datasets.Dataset.from_dict(columns, features=SCORED)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub with GLUE's configurations, and a chat set that calls no split "train"."""
    asked: list[Any] = []

    def load(hub_id: str, config_name: str | None = None) -> Any:
        asked.append((hub_id, config_name))
        if hub_id == "own/chats":
            return datasets.DatasetDict({s: pairs(s) for s in ("train_sft", "train_gen", "dev_x")})
        if config_name == "mnli":
            return datasets.DatasetDict({split: pairs(split) for split in MNLI})
        if config_name == "stsb":
            return datasets.DatasetDict({s: scored(s) for s in ("train", "validation")})
        raise ValueError(
            "Config name is missing.\nPlease pick one among the available configs: "
            "['cola', 'mnli', 'stsb']\nExample of usage:\n\t`load_dataset('glue', 'cola')`"
        )

    monkeypatch.setattr(tables, "load_hub", load)
    monkeypatch.setattr(tables, "hub_reachable", lambda: True)
    return asked


def test_a_configuration_is_named_as_datasets_takes_it(hub: list[Any]) -> None:
    with pytest.warns(UserWarning, match="is not read|no labels") as caught:
        task = load_task("nyu-mll/glue", "mnli")
    assert hub == [("nyu-mll/glue", "mnli")]
    assert isinstance(task, ClassificationTask)
    assert task.name == "nyu-mll/glue, mnli"
    assert LabeledText("train 1", "neutral", "h 1") in task.train
    assert {row.text.partition(" ")[0] for row in task.validation} == {"validation_matched"}
    assert task.test == ()
    said = [str(warning.message) for warning in caught]
    assert any("validation_mismatched, test_mismatched is not read" in line for line in said)
    assert any("(test_matched) has no labels; it is left out" in line for line in said)
    assert load_task("nyu-mll/glue", config_name="stsb").train[0].target == 0.0
    assert isinstance(load_task("nyu-mll/glue", "stsb"), RegressionTask)


def test_its_own_splits_are_the_parts_that_they_are_named_for() -> None:
    options = {"validation": "validation_mismatched", "test": "validation_matched"}
    task = load_task("nyu-mll/glue", "mnli", **options)
    assert {row.text.partition(" ")[0] for row in task.validation} == {"validation_mismatched"}
    assert {row.text.partition(" ")[0] for row in task.test} == {"validation_matched"}
    source = task_source(task)
    assert source == {"name": "nyu-mll/glue", "config_name": "mnli", **options}
    assert path_in("task", source) is None, "which a resumed run may load again"


def test_without_a_split_called_train_one_is_named() -> None:
    with pytest.raises(TaskError, match=r"several train splits; .*train_sft, train_gen.*train=…"):
        load_task("own/chats")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = load_task("own/chats", train="train_gen")
        assert task.train[0].text.startswith("train_gen")
        assert task.validation[0].text.startswith("dev_x")


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (("nyu-mll/glue",), {}, r"several configurations \('cola', 'mnli'.*glue', 'cola'\)"),
        (("nyu-mll/glue", "mnli"), {"test": "tset"}, r"no split 'tset' for the test rows; .*train"),
        (("nyu-mll/glue", "mnli"), {"train": "trian"}, "no split 'trian' for the training rows"),
        (("mini-nli", "mnli"), {}, "brings its own parts; leave out config_name"),
        (([("a", "b")] * 3, "mnli"), {}, "config_name='mnli' is for a hub id"),
        (([("a", "b")] * 3,), {"train": "x"}, "has no splits, so that 'x' is none of them"),
    ],
)
def test_what_is_not_there_gets_one_line(args: Any, options: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        load_task(*args, **options)
    assert "\n" not in str(caught.value)


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(8)))
    with pytest.raises(TaskError, match=r"d\.csv is a file and has no splits; leave out train="):
        load_task(path, train="train")
    with pytest.raises(TaskError, match="there is no file dev"):
        load_task(path, validation="dev")


def test_a_dataset_dict_in_memory_has_its_splits_named_too() -> None:
    found = datasets.DatasetDict({split: pairs(split) for split in MNLI})
    task = load_task(found, validation="validation_mismatched", test="validation_matched")
    assert {row.text.partition(" ")[0] for row in task.test} == {"validation_matched"}
