"""Conversations as people have them: OpenAI's, ShareGPT's, TRL's; and rows that cannot be."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import ChatTask, load_task
from tests.helpers.chat_templates import turns


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, **options: Any) -> dict[str, Any]:
    """Return the task's conversations by what the user asks first."""
    task = load_task(path, **options)
    assert isinstance(task, ChatTask)
    return {str(chat.messages[0]["content"]): chat for chat in (*task.train, *task.validation)}


def test_openais_messages_load_by_one_call(tmp_path: Path) -> None:
    rows = [
        {"messages": turns(f" q{i}\n", f"a{i} ", "r", "b", system="s" if i % 2 else None)}
        for i in range(12)
    ]
    task = load_task(written(tmp_path / "chats.jsonl", rows))
    assert isinstance(task, ChatTask)
    found = [list(chat.messages) for chat in (*task.train, *task.validation)]
    assert sorted(found, key=str) == sorted((row["messages"] for row in rows), key=str)
    assert (len(task.train), len(task.validation)) == (11, 1)
    assert task.describe().startswith(
        "chats.jsonl: 11 training examples, 1 validation conversations; framing: the model's chat"
    )
    held = task.validation[0]
    assert task.reference(held) == ("b",)
    assert task.input_text(held) == "r"


def test_sharegpts_conversations_load_by_one_call(tmp_path: Path) -> None:
    call = {"name": "f", "arguments": {"x": 1}}
    rows = [
        {
            "id": i,
            "conversations": [
                {"from": "human", "value": f"q{i}"},
                {"from": "function_call", "value": json.dumps(call)},
                {"from": "observation", "value": "7"},
                {"from": "gpt", "value": "seven"},
            ],
            "system": "s",
            "tools": json.dumps([{"name": "f"}]),
        }
        for i in range(6)
    ]
    path = tmp_path / "chats.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    task = load_task(path)
    assert isinstance(task, ChatTask)
    asked = sorted(str(chat.messages[1]["content"]) for chat in (*task.train, *task.validation))
    assert asked == [f"q{i}" for i in range(6)]
    assert "read as conversations (conversations, tools, system); not read: id" in task.describe()
    chat = task.train[0]
    assert chat.messages[0] == {"role": "system", "content": "s"}
    assert chat.messages[2] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": call}],
    }
    assert [m["role"] for m in chat.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert chat.tools == ({"name": "f"},)


@pytest.mark.parametrize("options", [{}, {"prompt": "prompt", "completion": "completion"}])
def test_trls_prompts_and_completions(tmp_path: Path, options: dict[str, str]) -> None:
    rows = [
        {"prompt": turns(f"q{i}", "a", "r"), "completion": turns("", "b")[1:]} for i in range(4)
    ]
    chats = read(written(tmp_path / "c.jsonl", rows), **options)
    assert set(chats) == {f"q{i}" for i in range(4)}
    assert all(list(chat.messages) == turns(key, "a", "r", "b") for key, chat in chats.items())
    assert all(chat.prompt == 3 for chat in chats.values())


@pytest.mark.parametrize("side", ["prompt", "completion"])
def test_one_side_may_be_a_text(tmp_path: Path, side: str) -> None:
    two = [{"prompt": turns(f"q{i}"), "completion": turns("", "b")[1:]} for i in range(4)]
    rows = [{**row, side: row[side][0]["content"]} for row in two]
    chats = read(written(tmp_path / "c.jsonl", rows))
    assert all(list(chat.messages) == turns(key, "b") for key, chat in chats.items())
    assert all(chat.prompt == 1 for chat in chats.values())


@pytest.mark.parametrize("value", ["hello", [], [1], {"a": 1}])
def test_messages_that_are_none_are_told(tmp_path: Path, value: Any) -> None:
    path = written(tmp_path / "c.jsonl", [{"messages": value}] * 3)
    with pytest.raises(TaskError, match=r"column 'messages' holds no conversations .* a list of"):
        load_task(path)


def test_conversations_in_a_csv_are_json(tmp_path: Path) -> None:
    import csv

    path = tmp_path / "c.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["messages"])
        writer.writerows([json.dumps(turns(f'q"{i}', "a\n"))] for i in range(4))
    assert {key: chat.messages[1]["content"] for key, chat in read(path).items()} == {
        f'q"{i}': "a\n" for i in range(4)
    }


def test_a_column_of_another_name_and_one_of_several(tmp_path: Path) -> None:
    rows = [{"dialog": turns(f"q{i}", "a")} for i in range(4)]
    assert set(read(written(tmp_path / "c.jsonl", rows))) == {f"q{i}" for i in range(4)}
    rows = [{"chosen": turns(f"q{i}", "a"), "rejected": turns(f"q{i}", "b")} for i in range(4)]
    path = written(tmp_path / "d.jsonl", rows)
    with pytest.raises(TaskError, match="columns chosen, rejected hold conversations; name one"):
        load_task(path)
    chats = read(path, prompt="chosen")
    assert [chat.messages[1]["content"] for chat in chats.values()] == ["a"] * 4


def test_what_openai_writes_besides_is_kept_and_understood(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "q "}, {"type": "text", "text": "0"}]
    asked = {"role": "user", "content": parts, "name": None}
    called = {"role": "assistant", "content": None, "function_call": {"name": "f"}}
    told = {"role": "function", "name": "f", "content": ""}
    rows = [
        {"messages": [asked, called, told, *turns("", "a")[1:]], "functions": [{"name": "f"}]},
        {"messages": turns("q 1", "a")},
    ]
    chat = read(written(tmp_path / "c.jsonl", rows))["q 0"]
    assert chat.messages[0] == {"role": "user", "content": "q 0"}
    assert chat.messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "f"}}]
    assert chat.messages[2] == {"role": "tool", "name": "f", "content": ""}
    assert chat.tools == ({"type": "function", "function": {"name": "f"}},)


def test_what_arrow_fills_in_is_not_said(tmp_path: Path) -> None:
    """One type for all rows: every call gets every argument's name; a file of JSON says it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def row(number: int, **arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        return {"messages": [*turns(f"q{number}"), answer]}

    rows = [row(0, x=1), row(1, y="z"), row(2, x=2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    found = read(tmp_path / "c.parquet")
    assert [list(found[f"q{i}"].messages) for i in range(3)] == [r["messages"] for r in rows]
    said = [row(0, x=None), row(1)]
    found = read(written(tmp_path / "c.jsonl", said))
    assert [list(found[f"q{i}"].messages) for i in range(2)] == [r["messages"] for r in said]


@pytest.mark.parametrize("kind", ["list", "DataFrame", "Dataset"])
def test_conversations_in_memory(kind: str) -> None:
    rows = [{"messages": turns(f" q{i}\n", "a", system="s")} for i in range(4)]
    data = {"list": lambda: rows, "DataFrame": lambda: pandas.DataFrame(rows)}
    data["Dataset"] = lambda: datasets.Dataset.from_list(rows)
    task = load_task(data[kind]())
    assert isinstance(task, ChatTask)
    found = [list(chat.messages) for chat in (*task.train, *task.validation)]
    assert sorted(found, key=str) == [row["messages"] for row in rows]


def test_a_stream_of_conversations(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"messages": turns(f"q{i}", "a")} for i in range(40)])
    task = load_task(rows.to_iterable_dataset(), max_steps=2, batch_size=4)
    assert isinstance(task, ChatTask)
    assert len(task.train) == 8
    assert "rows are taken" in task.describe()


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        (turns("q"), "row 2 has no turn of the assistant"),
        (turns("q", "a", "", "b"), r"row 2, turn 3 \(user\) has no content"),
        (turns("q", " \n"), r"row 2, turn 2 \(assistant\) has no content"),
        ([{"role": "usr", "content": "q"}], "row 2, turn 1 has the unknown role 'usr'"),
        ([{"content": "q"}, *turns("q", "a")], "row 2, turn 1 has no role"),
        (turns("q", "a")[1:], "row 2 has nothing before the assistant's turn"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "row 2, turn 1 holds other things than text",
        ),
    ],
)
def test_rows_that_cannot_be_learned_are_named(tmp_path: Path, messages: Any, line: str) -> None:
    rows = [{"messages": turns("q", "a")}, {"messages": messages}, {"messages": messages}]
    with pytest.raises(
        TaskError, match=rf"c.jsonl: {line}.* \(and 1 more rows? like it\)"
    ) as error:
        load_task(written(tmp_path / "c.jsonl", rows))
    assert "\n" not in str(error.value)


def test_rows_without_a_conversation_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"messages": turns(f"q{i}", "a")} for i in range(4)] + [{"messages": None}]
    with pytest.warns(UserWarning, match="1 of 5 rows without 'messages' are left out"):
        assert len(read(written(tmp_path / "c.jsonl", rows))) == 4


def test_whole_conversations_are_held_out_and_other_last_answers_are_references(
    tmp_path: Path,
) -> None:
    rows = [{"messages": turns(f"q{i}", "a", "r", f"b{j}")} for i in range(12) for j in range(2)]
    random.Random(0).shuffle(rows)
    path = written(tmp_path / "c.jsonl", rows)
    task = load_task(path)
    assert isinstance(task, ChatTask)
    (held,) = task.validation
    assert len(task.train) == 22
    assert held.messages[0] not in [chat.messages[0] for chat in task.train]
    assert sorted(task.reference(held)) == ["b0", "b1"]
    assert load_task(path, seed=1).validation != task.validation


def test_no_other_frame_goes_around_conversations(tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", [{"messages": turns(f"q{i}", "a")} for i in range(4)])
    assert read(path, template="chat")
    with pytest.raises(TaskError, match="which the model's chat template frames; leave out"):
        load_task(path, template="plain")
