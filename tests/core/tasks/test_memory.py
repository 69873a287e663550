"""Rows that are in memory already: the same task as from a file, or one line."""

from __future__ import annotations

import datetime
import io
import itertools
import json
from collections import namedtuple
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import (
    ChatTask,
    Example,
    GenerationTask,
    LabeledText,
    LanguageModelingTask,
    load_task,
)

ROWS = [{"prompt": f"q{i} ", "completion": f" a{i}, «x»"} for i in range(12)]
PAIRS = [tuple(row.values()) for row in ROWS]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
Row = namedtuple("Row", ["prompt", "completion"])
CLASSES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["no", "yes"]),
    }
)


class MapStyle:
    """What torch calls a map-style data set."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, number: int) -> dict[str, str]:
        return ROWS[number]


class Polars:
    """As much of a polars frame as is asked for; it is not installed here."""

    def __len__(self) -> int:
        return len(ROWS)

    def to_dicts(self) -> list[dict[str, str]]:
        return ROWS


def classes(*labels: int, start: int = 0) -> datasets.Dataset:
    texts = [f"text {start + i}" for i in range(len(labels))]
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=CLASSES)


def examples(task: Any) -> set[Any]:
    return {*task.train, *task.validation}


def forever() -> Iterator[dict[str, str]]:
    for number in itertools.count():
        yield {"prompt": f"q{number}", "completion": f"a{number}"}


@pytest.fixture(scope="module")
def from_file(tmp_path_factory: pytest.TempPathFactory) -> GenerationTask:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return load_task(path, prompt="prompt", completion="completion")


GIVEN: dict[str, tuple[Any, dict[str, Any]]] = {
    "list of dicts": (ROWS, {}),
    "tuple of dicts": (tuple(ROWS), {}),
    "list of pairs": (PAIRS, {"prompt": 0, "completion": 1}),
    "list of lists": ([list(pair) for pair in PAIRS], {"prompt": 0, "completion": 1}),
    "named tuples": ([Row(*pair) for pair in PAIRS], {}),
    "dict of columns": (COLUMNS, {}),
    "DataFrame": (pd.DataFrame(ROWS), {}),
    "DataFrame, categories": (pd.DataFrame(ROWS, dtype="category"), {}),
    "DataFrame, numbered": (pd.DataFrame(PAIRS), {"prompt": 0, "completion": 1}),
    "NumPy": (np.array(PAIRS), {"prompt": 0, "completion": 1}),
    "polars": (Polars(), {}),
    "Arrow": (pa.table(COLUMNS), {}),
    "Dataset": (datasets.Dataset.from_list(ROWS), {}),
    "map-style": (MapStyle(), {}),
    "DatasetDict": (datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), {}),
    "dict of splits": ({"train": pd.DataFrame(ROWS)}, {}),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_rows_in_memory_make_the_task_that_a_file_of_them_makes(
    kind: str, from_file: GenerationTask
) -> None:
    given, columns = GIVEN[kind]
    columns = columns or {"prompt": "prompt", "completion": "completion"}
    task = load_task(given, **columns)
    assert (task.train, task.validation) == (from_file.train, from_file.validation)
    recognized = load_task(given)
    assert recognized.train == task.train
    assert "read as" in recognized.describe()
    assert "in memory" in task.name


def test_the_splits_of_a_dataset_dict_are_the_parts_and_classes_keep_their_names() -> None:
    splits = datasets.DatasetDict(
        train=classes(0, 1, 1), validation=classes(1, start=10), test=classes(-1, -1, start=20)
    )
    with pytest.warns(UserWarning, match=r"DatasetDict in memory \(test\) has no labels"):
        task = load_task(splits, text="text", label="label")
    assert task.train == tuple(
        LabeledText(f"text {i}", c) for i, c in enumerate(("no", "yes", "yes"))
    )
    assert (task.validation, task.test) == ((LabeledText("text 10", "yes"),), ())
    with pytest.raises(TaskError, match="brings its own validation rows; leave out validation="):
        load_task(splits, text="text", label="label", validation=classes(0, start=30))
    del splits["train"]
    with pytest.raises(TaskError, match="has no train split; it has validation, test"):
        load_task(splits)


def test_a_format_that_a_dataset_is_shown_in_changes_nothing() -> None:
    plain = classes(0, 1, 1).add_column("n", [1, 2, 3])
    tasks = [
        load_task(given, text="n", label="label", validation=given)
        for given in (plain, plain.with_format("torch"))
    ]
    assert tasks[0].train == tasks[1].train
    assert [e.text for e in tasks[0].train] == ["1", "2", "3"]


def test_what_a_transform_makes_of_a_dataset_is_read() -> None:
    given = datasets.Dataset.from_list(ROWS).with_transform(
        lambda rows: {"prompt": [f"Q: {text}" for text in rows["prompt"]], "completion": ["A"]}
    )
    assert {e.prompt for e in examples(load_task(given))} == {f"Q: {r['prompt']}" for r in ROWS}


def test_a_split_that_is_no_part_is_told() -> None:
    one = datasets.Dataset.from_list(ROWS[:9])
    other = datasets.Dataset.from_list(ROWS[9:])
    assert load_task(datasets.DatasetDict(train=one, valid=other)).train == examples_of(ROWS[:9])
    with pytest.warns(UserWarning, match=r"DatasetDict in memory: eval is not read, but train"):
        load_task(datasets.DatasetDict(train=one, eval=other))


def examples_of(rows: list[dict[str, str]]) -> tuple[Example, ...]:
    return tuple(Example(r["prompt"], r["completion"], (r["completion"],)) for r in rows)


def test_the_names_in_a_record_array_are_columns() -> None:
    frame = pd.DataFrame(ROWS)[["completion", "prompt"]]
    assert load_task(frame.to_records(index=False)).train == load_task(frame).train


def test_held_out_rows_may_be_in_memory_or_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "new", "completion": "v"}) + "\n")
    frame = pd.DataFrame({"prompt": ["newer"], "completion": ["w"]})
    task = load_task(ROWS, validation=path, test=frame)
    assert task.validation == (Example("new", "v", ("v",)),)
    assert task.test == (Example("newer", "w", ("w",)),)
    other = load_task(path, prompt="prompt", completion="completion", validation=frame)
    assert other.train == task.validation


# What stands in the cells ------------------------------------------------------------------------

VALUES: list[tuple[Any, str]] = [
    (" as it stands\n", " as it stands\n"),
    (7, "7"),
    (np.int64(7), "7"),
    (0.5, "0.5"),
    (np.float32(0.1), "0.1"),
    (Decimal("1.10"), "1.10"),
    (True, "True"),
    (np.bool_(False), "False"),
    (np.str_("t"), "t"),
    (datetime.date(2024, 1, 31), "2024-01-31"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value[0]))
def test_what_can_be_written_out_is_text(value: tuple[Any, str]) -> None:
    rows = [{"a": value[0], "b": f"b{i}"} for i in range(3)]
    held_out = [{"a": "v", "b": "w"}]
    task = load_task(rows, prompt="a", completion="b", validation=held_out)
    assert {e.prompt for e in task.train} == {value[1]}


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, pd.NA, pd.NaT, ""], ids=repr)
@pytest.mark.parametrize("make", [list, pd.DataFrame], ids=["list", "DataFrame"])
def test_rows_without_a_text_are_left_out_and_counted(
    make: Callable[..., Any], missing: Any
) -> None:
    rows = [
        *ROWS[:3],
        {"prompt": missing, "completion": "x"},
        {"prompt": "y", "completion": missing},
    ]
    with pytest.warns(UserWarning, match="2 of 5 rows without 'prompt' or 'completion' are left"):
        task = load_task(make(rows))
    assert len(examples(task)) == 3


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "string", "boolean"])
def test_pandas_own_kinds_of_columns_have_their_gaps(dtype: str) -> None:
    texts = {"string": ["x", "y", None], "boolean": [True, False, None]}
    column = pd.array(texts.get(dtype, [1, 2, None]), dtype=dtype)
    with pytest.warns(UserWarning, match="1 of 3 rows without 'a' or 'b' are left out"):
        task = load_task(
            pd.DataFrame({"a": column, "b": ["p", "q", "r"]}), prompt="a", completion="b"
        )
    expected = {"string": {"x", "y"}, "boolean": {"True", "False"}}
    assert {e.prompt for e in examples(task)} == expected.get(dtype, {"1", "2"})


def test_a_key_that_some_rows_lack_is_missing_there() -> None:
    with pytest.warns(UserWarning, match="1 of 13 rows without"):
        load_task([*ROWS, {"prompt": "only"}], prompt="prompt", completion="completion")


def test_whole_numbers_that_pandas_made_floats_of_are_whole() -> None:
    frame = pd.DataFrame({"t": ["a", "b", "c", None], "y": [10, 9, 10, None]})
    assert frame["y"].dtype == float
    with pytest.warns(UserWarning, match="1 of 4 rows"):
        task = load_task(frame, text="t", label="y")
    assert task.labels == ("9", "10")
    with pytest.warns(UserWarning, match="1 of 4 rows"):
        prompts = load_task(frame, prompt="y", completion="t")
    assert {e.prompt for e in examples(prompts)} == {"9", "10"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "list in memory has no rows; it needs at least two"),
        (pd.DataFrame({"prompt": [], "completion": []}), "DataFrame in memory has no rows"),
        ([*ROWS, ("a", "b")], r"row 13 is \"\('a', 'b'\)\"; rows are dicts, or tuples of one"),
        ([("a", "b"), ("c",)], "row 2 is "),
        (["a text", ("a", "b")], "row 1 is 'a text'; rows are dicts"),
        ({"q1": "a1", "q2": "a2"}, "dict in memory is no table: give a list of dicts"),
        (b"bytes", "row 1 is '98'; rows are dicts"),
        (["nowhere.csv", "other.csv"], "there is no file nowhere.csv"),
        ({"prompt": ["a"], "completion": ["b", "c"]}, "lengths .prompt 1, completion 2"),
        (7, "int holds no rows; give a list of dicts, a DataFrame"),
        (None, "NoneType holds no rows"),
        (io.StringIO("a b\nc d\n"), "stream in memory is an open file; give its name"),
        ([{"prompt": object(), "completion": "x"}] * 2, "column 'prompt' holds objects, not text"),
        ([{"prompt": b"\xff", "completion": "x"}] * 2, "holds bytes that are no UTF-8, not text"),
        ([{"prompt": {"a": 1}, "completion": "x"}] * 2, "column 'prompt' holds dicts, not text"),
        ([{"q": "a", "r": "b"}] * 2, "name the columns.*its columns are q, r"),
        (pd.DataFrame(ROWS).groupby("prompt"), "no rows that are numbered from 0 .*; give a list"),
    ],
)  # fmt: skip
def test_what_holds_no_rows_gets_one_line(given: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message) as error:
        load_task(given)
    assert "\n" not in str(error.value)


def test_a_name_that_two_columns_have_is_refused_where_it_is_read() -> None:
    frame = pd.DataFrame([["a", "b", "c"], ["d", "e", "f"]], columns=["p", "c", "c"])
    with pytest.raises(TaskError, match="several columns that are called 'c'; rename"):
        load_task(frame, prompt="p", completion="c")
    frame.columns = pd.Index(["p", "c", "p"])
    with pytest.raises(TaskError, match="several columns that are called 'p'"):
        load_task(frame, prompt="p", completion="c")


def test_what_becomes_of_the_rows_later_changes_nothing() -> None:
    rows = [dict(row) for row in ROWS]
    frame = pd.DataFrame(ROWS)
    tasks = load_task(rows), load_task(frame)
    before = [task.train for task in tasks]
    rows[3]["completion"] = "changed"
    rows.clear()
    frame.loc[:, "completion"] = "changed"
    assert [task.train for task in tasks] == before
    assert "changed" not in repr(before)


# Streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 40])
@pytest.mark.parametrize("make", [forever, lambda: forever], ids=["generator", "function"])
def test_of_a_stream_the_rows_that_the_steps_reach_are_taken(
    make: Callable[[], Any], steps: int
) -> None:
    task = load_task(make(), max_steps=steps, batch_size=4)
    taken = len(task.train) + len(task.validation)
    assert len(task.train) >= 4 * steps > 0.9 * len(task.train)
    assert examples(task) == {Example(f"q{i}", f"a{i}", (f"a{i}",)) for i in range(taken)}
    assert f"its first {taken} rows are taken" in task.describe()


@pytest.mark.parametrize("count", [0, -1, 2.5, "3"])
@pytest.mark.parametrize("option", ["max_steps", "batch_size"])
def test_steps_and_batches_are_whole_numbers(option: str, count: Any) -> None:
    options: dict[str, Any] = {"max_steps": 3, option: count}
    with pytest.raises(TaskError, match=f"{option} is {count!r}; it must be a whole number"):
        load_task(forever(), **options)


def test_a_stream_that_nobody_ends_is_refused() -> None:
    with pytest.raises(TaskError, match=r"does not say where it ends; ll\.train.*max_steps=100"):
        load_task(forever())


def test_a_stream_that_is_made_with_arguments_is_refused() -> None:
    with pytest.raises(TaskError, match=r"missing 1 required.*give a function without arguments"):
        load_task(lambda count: iter(ROWS[:count]), max_steps=1)


@pytest.mark.parametrize("make", [list, tuple, pd.Series, np.array], ids=lambda make: make.__name__)
def test_several_texts_are_learned_alone(make: Callable[..., Any]) -> None:
    texts = [f"The text {i}, with a *.csv in it?" for i in range(4)]
    task: Any = load_task(make(texts))
    assert isinstance(task, LanguageModelingTask)
    assert examples(task) == set(texts)


@pytest.mark.parametrize("make", [set, frozenset])
def test_a_set_has_one_order_in_every_process(make: Callable[..., Any]) -> None:
    texts = [f"text number {n}" for n in range(40)]
    task = load_task(make(texts))
    ordered = load_task(sorted(texts))
    assert (task.train, task.validation) == (ordered.train, ordered.validation)
    assert task.notes[-1] == f"{make.__name__} in memory: a set has no order; its rows are sorted"
    pairs = load_task({"train": make(PAIRS), "validation": make(PAIRS[:2])})
    assert list(pairs.train) == list(load_task(sorted(PAIRS), validation=PAIRS[:2]).train)


def test_conversations_in_memory_are_conversations() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": " a"}]
    rows = [{"messages": [dict(turn) for turn in turns]} for _ in range(2)]
    held_out = [{"messages": [{"role": "user", "content": "new"}, turns[1]]}]
    tasks: list[Any] = [load_task(make(rows), validation=held_out) for make in (list, pd.DataFrame)]
    rows[0]["messages"][0]["content"] = "changed"
    for task in tasks:
        assert isinstance(task, ChatTask)
        assert [list(chat.messages) for chat in task.train] == [turns, turns]


def test_a_streaming_data_set_has_its_classes_names_and_its_splits() -> None:
    stream = classes(*[0, 1] * 20).to_iterable_dataset()
    task = load_task(stream, text="text", label="label", max_steps=2, batch_size=4)
    assert [e.label for e in sorted(task.train, key=lambda e: int(e.text[5:]))][:2] == ["no", "yes"]
    splits = datasets.IterableDatasetDict(
        train=stream, validation=classes(1, start=50).to_iterable_dataset()
    )
    task = load_task(splits, text="text", label="label", max_steps=2, batch_size=4)
    assert task.train == tuple(LabeledText(f"text {i}", ("no", "yes")[i % 2]) for i in range(8))
    assert task.validation == (LabeledText("text 50", "yes"),)
