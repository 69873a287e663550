"""JSON, against the standard library's json: values as they are written."""

from __future__ import annotations

import json

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import load_task
from lora_lab.tasks.formats.json_rows import read_json
from lora_lab.tasks.table import Table

ROWS = [{"p": "a\u2028b", "c": " x\n"}, {"p": "é😀", "c": "2024-01-01T10:00:00+02:00"}]


def read(text: str, suffix: str = ".jsonl") -> Table:
    return read_json(text, "d" + suffix, suffix)


def rows(table: Table) -> list[dict[str, object]]:
    return [
        dict(zip(table.columns, row, strict=True))
        for row in zip(*table.columns.values(), strict=True)
    ]


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
@pytest.mark.parametrize("between", ["\n", "\r\n", "\n\n", " \n\t\n"])
def test_objects_one_after_another(ascii_only: bool, suffix: str, between: str) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in ROWS]
    assert rows(read(between.join(lines), suffix)) == ROWS
    assert rows(read(between.join(lines) + between, suffix)) == ROWS
    assert rows(read("\n".join(json.dumps(row, indent=2) for row in ROWS), suffix)) == ROWS


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "document",
    [
        ROWS,
        {"data": ROWS},
        {"version": 1.1, "examples": ROWS, "tags": ["x"]},
        {"p": [r["p"] for r in ROWS], "c": [r["c"] for r in ROWS]},
        {name: {str(i): r[name] for i, r in enumerate(ROWS)} for name in ("p", "c")},
    ],
    ids=["list", "data", "examples", "columns", "pandas"],
)
def test_documents(document: object, indent: int | None) -> None:
    assert rows(read(json.dumps(document, indent=indent), ".json")) == ROWS


def test_a_list_in_a_jsonl() -> None:
    assert rows(read(json.dumps(ROWS))) == ROWS
    assert rows(read(json.dumps(ROWS[0]))) == ROWS[:1]


def test_lists_and_texts_as_rows() -> None:
    assert rows(read('["a", 1.0]\n["b", 2]\n')) == [{"0": "a", "1": "1.0"}, {"0": "b", "1": "2"}]
    assert rows(read('[["a", 1], ["b", 2]]', ".json"))[1] == {"0": "b", "1": "2"}
    assert rows(read('["a", "b"]', ".json")) == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(TaskError, match="row 2 is a list of 1 where the first has 2"):
        read('["a", "b"]\n["c"]\n')


def test_one_chat_is_a_row() -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    assert rows(read(json.dumps(chat), ".json")) == [chat]
    assert rows(read(json.dumps(chat))) == [chat]


@pytest.mark.parametrize("number", ["1.10", "-0.0", "1E5", "1e-7", "0", "-3", "123456789012345678",
                                    "true", "false", "1E999", "Infinity", "-Infinity"])  # fmt: skip
def test_numbers_are_as_they_are_written(number: str) -> None:
    assert rows(read(f'{{"p": {number}}}')) == [{"p": number}]
    assert rows(read(f'[{{"p": {number}}}]', ".json")) == [{"p": number}]
    assert rows(read(f'{{"p": [{number}]}}', ".json")) == [{"p": number}]


def test_nothing_is_none() -> None:
    table = read('{"p": null, "q": NaN}\n{"q": "x", "r": 1}\n')
    assert rows(table) == [{"p": None, "q": None, "r": None}, {"p": None, "q": "x", "r": "1"}]


def test_nested_values_keep_their_types_and_texts() -> None:
    row = {"m": [{"role": "user", "content": " 2024-01-01 ", "n": 1.5, "b": True, "z": None}],
           "tools": {"x": [1, 2.25]}}  # fmt: skip
    line = json.dumps(row)
    assert rows(read(line)) == [row]
    assert json.dumps(rows(read(line))[0]) == line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"p": "a"}\n{"p":\n{"p": "c"}\n', "as jsonl: line 2: "),
        ('{"p": "a"}\n\n{"p": "b}\n{"p": "c"}\n', "line 3: Invalid control character"),
        ('{"p": "a"},\n{"p": "b"}\n', "line 1: Expecting value"),
        ('{"p": "a"}\n{"p": "b", "p": "c"}\n', "line 2: an object has the key 'p' twice"),
        ('{"p": "a"}\n{\'p\': "b"}\n', "line 2: Expecting property name"),
        ('{"p": "a"}\nnull\n', "row 2 is null; each row must be an object"),
        ('{"p": 1}\n' + "[" * 100_000, "line 2: "),
        ("  \n", "has no rows"),
    ],
)
def test_a_broken_line_is_named(text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"p": "a"},\n{"p": "b",}\n]', "as json: line 3: "),
        ('[\n{"p": "a"},\n{"p": "b"}', "as json: line 3: Expecting ',' delimiter"),
        ('{"train": [{"p": 1}], "test": [{"p": 1}]}', r"several lists of objects \(train, test\)"),
        ('{"p": ["a"], "c": ["b", "c"]}', r"columns of different lengths \(\[1, 2\]\)"),
        ("[]", "has no rows"),
        ('{"data": []}', "has no rows"),
        ("[1, 2]", "row 1 is 1; each row must be an object"),
        ("3", "row 1 is 3"),
    ],
)
def test_a_broken_document(text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read(text, ".json")


# Rows and columns by their paths ---

SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "A",
            "paragraphs": [
                {"context": f"c{a}{b}", "qas": [{"question": f"q{a}{b}{c}", "n": c} for c in "01"]}
                for b in "01"
            ],
        }
        for a in "01"
    ],
}


def test_rows_are_where_field_says_and_say_what_stands_above_them():
    import pandas as pd

    table = read_json(json.dumps(SQUAD), "d.json", ".json", "data.paragraphs.qas")
    peer = pd.json_normalize(
        SQUAD, ["data", "paragraphs", "qas"], [["data", "paragraphs", "context"]]
    )
    assert list(table["question"]) == list(peer["question"])
    assert list(table["context"]) == list(peer["data.paragraphs.context"])
    assert set(table["version"]) == {"1.1"}
    several = json.dumps({"meta": {"of": 2}, "a": [{"t": 1}], "b": [{"t": "2"}, {"t": None}]})
    assert list(read_json(several, "d.json", ".json", "b")["t"]) == ["2", None]
    with pytest.raises(TaskError, match="no rows at field='c'; its fields are meta, a, b"):
        read_json(several, "d.json", ".json", "c")


def test_what_is_nested_is_a_column_by_its_path(tmp_path):
    rows = [
        {"translation": {"en": f"e{i}", "fr": f"f{i}"}, "m": {"s": [i / 2, True]}, "a.b": "x"}
        for i in range(12)
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    for given in (path, rows):
        task = load_task(given, prompt="translation.en", completion="translation.fr")
        assert task.train[0].completion == task.train[0].prompt.replace("e", "f")
        numbers = load_task(given, text="translation.en", target="m.s.0")
        assert {row.target for row in (*numbers.train, *numbers.validation)} == {
            i / 2 for i in range(12)
        }
        with pytest.raises(TaskError, match=r"no column 'translation\.de'; .* translation\.fr"):
            load_task(given, prompt="translation.en", completion="translation.de")
        dotted = load_task(given, prompt="translation.en", completion="a.b")
        assert dotted.train[0].completion == "x"
        form = load_task(given, prompt="say {translation.en}!", completion="translation.fr")
        assert form.train[0].prompt.startswith("say e")
