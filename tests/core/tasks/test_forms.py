"""Several columns in one prompt: formats of columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_lab.errors import ConfigError, TaskError
from lora_lab.runs.run_file import RunConfig
from lora_lab.tasks import load_task

ROWS = [
    {"a": "one", "b": "two", "c": "three", "a.b": "dotted", "the first": "spaced"},
    {"a": "{b}", "b": "", "c": "%s {} {0}", "a.b": "{x}", "the first": "y"},
    {"a": "", "b": None, "c": "nothing before", "a.b": "", "the first": ""},
    {"a": 7, "b": 1.5, "c": True, "a.b": "z", "the first": "w"},
]
HELD_OUT = [dict.fromkeys(ROWS[0], "held out")]


def prompts(prompt: str, completion: str = "c") -> list[tuple[str, str]]:
    task = load_task(ROWS, prompt=prompt, completion=completion, validation=HELD_OUT)
    return [(e.prompt, e.completion) for e in task.train]


@pytest.mark.filterwarnings("ignore:.*rows without")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{a}\n{b}", ["one\ntwo", "{b}\n", "7\n1.5"]),
        ("{{{a}}} {b}{b}", ["{one} twotwo", "{{b}} ", "{7} 1.51.5"]),
        ("Q: {a.b}?", ["Q: dotted?", "Q: {x}?", "Q: z?"]),
        ("{the first}", ["spaced", "y", "w"]),
    ],
)
def test_a_format_is_filled_with_the_rows_texts(text: str, expected: list[str]) -> None:
    assert [prompt for prompt, _ in prompts(text)] == expected


def test_an_empty_column_is_nothing_and_a_row_without_any_is_left_out() -> None:
    with pytest.warns(UserWarning, match="1 of 4 rows without 'a' or 'b' or 'c' are left out"):
        assert prompts("{a}|{b}") == [
            ("one|two", "three"),
            ("{b}|", "%s {} {0}"),
            ("7|1.5", "True"),
        ]


@pytest.mark.filterwarnings("ignore:.*rows without")
def test_a_completion_may_be_a_format_too() -> None:
    assert prompts("a", "{c}: {b}")[:2] == [("one", "three: two"), ("{b}", "%s {} {0}: ")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a}\n{d}", "has no column 'd'; its columns are a, b, c, a.b"),
        ("{a", "is no format"),
        ("a}", "is no format"),
        ("{}", "a column's name and nothing else"),
        ("{a:>10}", "a column's name and nothing else"),
        ("{a!r}", "a column's name and nothing else"),
        ("{{a}}", "names no column; write its name in braces"),
        ("{a.__class__}", "has no column 'a.__class__'"),
        ("{a[0]}", "has no column"),
    ],
)
def test_what_is_no_format_of_the_columns_gets_one_line(text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message) as error:
        prompts(text)
    assert "\n" not in str(error.value)


def test_a_format_needs_a_completion() -> None:
    with pytest.raises(TaskError, match="name the columns to read"):
        load_task(ROWS, prompt="{a}\n{b}")


def test_columns_without_names_are_numbers_in_a_format(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("a,b,c\nd,e,f\n", encoding="utf-8")
    held_out = tmp_path / "v.csv"
    held_out.write_text("x,y,z\n", encoding="utf-8")
    task = load_task(path, prompt="{0}-{2}", completion="{1}", validation=held_out)
    assert [(e.prompt, e.completion) for e in task.train] == [("a-c", "b"), ("d-f", "e")]
    pairs = load_task(
        [("a", "b", "c")], prompt="{0}-{2}", completion=1, validation=[("x", "y", "z")]
    )
    assert pairs.train[0].prompt == "a-c"


def test_a_run_file_takes_a_format(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("a,b,c\n1,2,3\n4,5,6\n7,8,9\n", encoding="utf-8")
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: smollm2-135m\ntask: {{name: {path}, prompt: '{{a}} + {{b}}', completion: c}}\n"
    )
    config = RunConfig.read(file)
    task = load_task(**config.task)
    assert {e.prompt for e in (*task.train, *task.validation)} == {"1 + 2", "4 + 5", "7 + 8"}
    with pytest.raises(ConfigError, match="unknown setting 'columns'"):
        RunConfig.from_dict({"model": "x", "task": {"name": str(path), "columns": "a"}})
