"""Classes: their order, and that what is scored of them is learned too."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from collections import Counter

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import load_task


def classes(path, rows, **options):
    path.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows), "utf-8")
    return load_task(path, text="text", label="label", **options)


# Their order -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["1", "01", "001"], ["001", "01", "1"]),
        (["10", "9", "-1", "2.5", "+9"], ["-1", "2.5", "+9", "9", "10"]),
        (["10", "9", "b"], ["10", "9", "b"]),  # not numbers alone: as texts
        (["2", "١", "1"], ["1", "١", "2"]),
        (["nan", "1", "inf"], ["1", "inf", "nan"]),
        (["é", "e", "Z", "É", "杭"], ["Z", "e", "É", "é", "杭"]),
        (["true", "false"], ["false", "true"]),
    ],
)
def test_the_order_is_of_numbers_then_of_texts_and_of_no_accident(tmp_path, names, order):
    rows = [(f"t{i}", names[i % len(names)]) for i in range(40)]
    random.Random(0).shuffle(rows)
    task = classes(tmp_path / "d.csv", rows)
    assert list(task.labels) == order
    assert classes(tmp_path / "d.csv", rows[::-1]).labels == task.labels


def test_every_process_has_the_same_order(tmp_path):
    code = (
        "from lora_lab.tasks.classification import _sorted;"
        "print(_sorted({'1', '01', '001', '1.0', '١'}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert found == {"('001', '01', '1', '1.0', '١')\n"}


def test_one_and_oh_one_are_two_classes_and_a_file_apart_is_told(tmp_path):
    held_out = tmp_path / "v.csv"
    held_out.write_text("text,label\nnew,01\n")
    with pytest.raises(TaskError, match=r"v\.csv: class '01' is in no training row.*have 1, 2"):
        classes(tmp_path / "d.csv", [("a", "1"), ("b", "2")], validation=held_out)


# What is held out --------------------------------------------------------------------------------


@pytest.mark.parametrize("rare", [1, 2, 3])
def test_what_is_scored_is_learned_whatever_the_seed(tmp_path, rare):
    rows = [(f"t{i}", "b" if i < rare else "a") for i in range(12)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tasks = [classes(tmp_path / "d.csv", rows, seed=seed) for seed in range(40)]
    for task in tasks:
        assert {e.label for e in task.train} == {"a", "b"}
        assert len(task.validation) == 1
        (scored,) = {e.label for e in task.validation}
        absent = "ab".replace(scored, "")
        assert f"of which {absent} never among the validation ones" in task.describe()
    assert any(task.validation[0].label == "b" for task in tasks) == (rare > 1)


def test_a_text_of_two_classes_takes_neither_away(tmp_path):
    rows = [("both", "a"), ("both", "b"), ("other", "b"), *((f"c{i}", "c") for i in range(9))]
    for seed in range(40):
        task = classes(tmp_path / "d.csv", rows, seed=seed)
        assert {e.label for e in task.train} == {"a", "b", "c"}
        assert {e.text for e in task.train}.isdisjoint(e.text for e in task.validation)


def test_many_rare_classes_leave_the_held_out_part_its_size(tmp_path):
    rows = [(f"t{i}", f"c{i}" if i < 70 else "a") for i in range(100)]
    task = classes(tmp_path / "d.csv", rows)
    assert Counter(e.label for e in task.validation) == {"a": 10}


def test_a_split_that_loses_no_class_is_the_one_of_before(tmp_path):
    """As it was drawn since the first version: recorded runs find their data again."""
    rows = [(f"t{i}", "ab"[i % 2]) for i in range(60)]
    for seed in range(20):
        drawn = random.Random(f"held out {seed}").sample([text for text, _ in rows], 6)
        task = classes(tmp_path / "d.csv", rows, seed=seed)
        assert {e.text for e in task.validation} == set(drawn)


def test_where_every_class_has_one_text_it_is_said_which_is_lost(tmp_path):
    with pytest.warns(UserWarning, match="every class has one text only; [xy] is held out whole"):
        task = classes(tmp_path / "d.csv", [("a", "x"), ("b", "y")])
    assert len(task.train) == len(task.validation) == 1


OWN = ["low", "mid", "never", "high"]  # neither by the alphabet nor by who comes first
LEARNED = ("low", "mid", "high")


def in_an_order(kind, folder):
    """Rows whose column of classes has an order of its own, as libraries have it."""
    import datasets
    import pandas as pd

    frame = pd.DataFrame(
        {"text": [f"t{i}" for i in range(30)], "label": ["high", "low", "mid"] * 10}
    )
    if "Class" in kind:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=OWN)}
        )
        rows = datasets.Dataset.from_dict(frame.to_dict("list"), features=features)
        return rows.to_iterable_dataset() if "stream" in kind else rows
    ordered = "unordered" not in kind
    frame["label"] = pd.Categorical(frame["label"], categories=OWN, ordered=ordered)
    if "." not in kind:
        return frame
    path = folder / f"rows{kind}"
    frame.to_parquet(path) if kind == ".parquet" else frame.to_feather(path)
    return path


KINDS = ["Categorical", "unordered Categorical", ".parquet", ".feather", "Class", "Class, stream"]


@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_have_an_order_keep_it(kind, tmp_path):
    given = in_an_order(kind, tmp_path)
    more = {"max_steps": 3} if "stream" in kind else {}
    task = load_task(given, text="text", label="label", **more)
    assert task.labels == LEARNED
    assert task.reference(next(row for row in task.train if row.label == "high")) == 2


def test_files_that_disagree_about_the_order_have_none(tmp_path):
    import pandas as pd

    for name, own in (("a", OWN), ("b", OWN[::-1])):
        rows = {"text": [f"{name}{i}" for i in range(9)], "label": ["high", "low", "mid"] * 3}
        frame = pd.DataFrame(rows)
        frame["label"] = pd.Categorical(frame["label"], categories=own, ordered=True)
        frame.to_parquet(tmp_path / f"{name}.parquet")
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert load_task(paths, text="text", label="label").labels == ("high", "low", "mid")
    assert load_task(paths[:1], text="text", label="label").labels == LEARNED
