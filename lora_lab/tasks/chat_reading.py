"""How conversations are read from tables: OpenAI's and TRL's messages, ShareGPT's conversations."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_lab._util.json_files import parse_text
from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.chat_template import Chat, answer_text
from lora_lab.tasks.chats import ChatTask
from lora_lab.tasks.reading import Reader
from lora_lab.tasks.table import Column, Table

_USUAL = "messages", "conversations", "conversation"
_BESIDE = "tools", "functions", "system", "chat_template_kwargs"  # of the whole conversation
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    **dict.fromkeys(("tool_response", "function_response"), "tool"),
    "system": "system",
    "developer": "developer",  # gpt-oss tells them apart
}

_AS_WRITTEN = re.compile(r"^list |\.(jsonl?|ndjson|csv|tsv)(\.gz)?$")


def chat_columns(
    table: Table, prompt: Column | None = None, completion: Column | None = None
) -> tuple[str, ...] | None:
    """Return the columns of a table that hold conversations; None where none does.

    Args:
        table: the training rows.
        prompt: the column of a prompt, or of whole conversations, where it is named.
        completion: the column that follows on the prompt.

    Returns:
        One column of conversations, or one of prompts and one of completions.

    Raises:
        TaskError: several columns may be meant.
    """
    found = [name for name in table.column_names if _holds_chats(table, name)]
    if prompt is not None or completion is not None:
        named = tuple(str(name) for name in (prompt, completion) if name is not None)
        return named if any(name in found for name in named) else None
    for usual in _USUAL:
        if usual in found:
            return (usual,)
        if usual in table.column_names and usual.endswith("s"):
            raise TaskError(
                f"{table.source}: column {usual!r} holds no conversations ({table[usual][0]!r:.40} "
                'in row 1); one is a list of turns, {"role": "user", "content": "…"}'
            )
    two = ("prompt", "completion")
    if set(two) <= set(table.column_names) and set(two) & set(found):
        return two
    if len(found) > 1:
        raise TaskError(
            f"{table.source}: columns {', '.join(found)} hold conversations; name one with "
            "prompt=…, or prompt=… and completion=…"
        )
    return (found[0],) if found else None


class ChatReader(Reader[Chat]):
    """Reads conversations.

    Args:
        table: the training rows.
        columns: as `chat_columns` returned them.
    """

    noun = "conversation"

    def __init__(self, table: Table, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._beside = [name for name in _BESIDE if name in table.column_names]
        read = [*columns, *self._beside]
        unread = [name for name in table.column_names if name not in read]
        rest = f"; not read: {', '.join(unread)}" if unread else ""
        self.notes = (f"read as conversations ({', '.join(read)}){rest}",)

    def rows(self, table: Table) -> list[Chat]:
        """Return the conversations; a warning tells of rows that have none.

        Raises:
            TaskError: rows that cannot be learned from: the first is named, with its turn.
        """
        read = [table[column] for column in (*self.columns, *self._beside)]
        if not _AS_WRITTEN.search(table.source):
            read = [[_without_nothing(value) for value in values] for values in read]
        kept: list[Chat] = []
        faults: list[str] = []
        for number, values in enumerate(zip(*read, strict=True), 1):
            chat, beside = values[: len(self.columns)], values[len(self.columns) :]
            if not all(chat):
                continue
            where = f"{table.source}: row {number}"
            try:
                kept.append(self._chat(chat, dict(zip(self._beside, beside, strict=True)), where))
            except _FaultError as error:
                faults.append(f"{where}{error}")
        if faults:
            more = f" (and {len(faults) - 1:,} more rows like it)" if len(faults) > 1 else ""
            raise TaskError(f"{faults[0]}{more}; fix or leave out such rows")
        named = " or ".join(map(repr, self.columns))
        if not kept:
            raise TaskError(f"{table.source}: every row lacks {named}; there is nothing to learn")
        tables.warn_left_out(table, len(kept), named)
        return kept

    def key(self, row: Chat) -> str:
        """Return what the last answer answers to: it shall not be on both sides."""
        asked = row.messages[: row.last_answer], row.tools, row.template_kwargs
        return json.dumps(asked, default=str)

    def held_out(self, rows: Sequence[Chat]) -> list[Chat]:
        """Make one example of the same turns, every different last answer a reference."""
        answers: dict[str, dict[str, None]] = {}
        first: dict[str, Chat] = {}
        for row in rows:
            key = self.key(row)
            first.setdefault(key, row)
            answers.setdefault(key, {})[answer_text(row.messages[row.last_answer])] = None
        return [
            dataclasses.replace(row, references=tuple(answers[key])) for key, row in first.items()
        ]

    def task(
        self, name: str, train: Sequence[Chat], validation: Sequence[Chat], test: Sequence[Chat]
    ) -> ChatTask:
        """Make the task."""
        return ChatTask(name, False, tuple(train), tuple(validation), tuple(test))

    def _chat(self, values: Sequence[Any], beside: Mapping[str, Any], where: str) -> Chat:
        """Make one row."""
        parts = [
            _messages(value, role)
            for value, role in zip(values, ("user", "assistant"), strict=False)
        ]
        system = beside.get("system")
        if isinstance(system, str) and system.strip() and parts[0][0]["role"] != "system":
            parts[0].insert(0, {"role": "system", "content": system})
        messages = tuple(message for part in parts for message in part)
        prompt = len(parts[0]) if len(parts) > 1 else 0
        kwargs = beside.get("chat_template_kwargs") or {}
        kwargs = _json(kwargs) if isinstance(kwargs, str) else kwargs
        chat = Chat(messages, tuple(_tools(beside)), prompt, template_kwargs=kwargs, where=where)
        if chat.last_answer < prompt:
            raise _FaultError(" has no turn of the assistant")
        if chat.last_answer == 0:
            raise _FaultError(" has nothing before the assistant's turn")
        return chat


class _FaultError(Exception):
    """What is wrong with a row: the line behind its number."""


def _holds_chats(table: Table, name: str) -> bool:
    value = next((value for value in table[name] if value), None)
    if isinstance(value, str) and (name in _USUAL or value.lstrip().startswith("[{")):
        try:
            value = parse_text(value)
        except ValueError:
            return False
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and bool(first.keys() & {"role", "from"})


def _messages(value: Any, role: str) -> list[dict[str, Any]]:
    """Return a value's messages; a text is one of the role."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return [{"role": role, "content": value}]
        value = _json(value)
    if not isinstance(value, list):
        raise _FaultError(f" holds {type(value).__name__}, not a list of turns")
    return [_message(raw, f", turn {number}") for number, raw in enumerate(value, 1)]


def _message(raw: Any, where: str) -> dict[str, Any]:
    """Return a turn as {"role", "content", …}; texts are as they stand."""
    if not isinstance(raw, Mapping) or not raw.keys() & {"role", "from"}:
        raise _FaultError(f"{where} has no role ({str(raw)[:40]!r})")
    message: dict[str, Any] = {
        {"from": "role", "value": "content"}.get(str(key), str(key)): value
        for key, value in raw.items()
        if value is not None  # as transformers does
    }
    said = message.get("role")
    role = _ROLES.get(str(said).strip().lower())
    if role is None:
        raise _FaultError(
            f"{where} has the unknown role {said!r}; use system, user, assistant, tool"
        )
    content = _content(message.get("content"), where)
    if said in ("function_call", "tool_call"):  # ShareGPT's
        message["tool_calls"], content = [_call(_json(content))], ""
    if calls := message.pop("function_call", None):  # OpenAI's older one
        message["tool_calls"] = [_call(calls)]
    if not content.strip() and role in ("user", "assistant") and not message.get("tool_calls"):
        raise _FaultError(f"{where} ({role}) has no content")
    return {**message, "role": role, "content": content}


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # OpenAI's parts
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise _FaultError(f"{where} holds other things than text ({str(content)[:40]!r})")


def _tools(beside: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = beside.get("tools") or ()
    tools = _json(tools) if isinstance(tools, str) else tools
    functions = beside.get("functions") or ()
    functions = _json(functions) if isinstance(functions, str) else functions
    return [*tools, *map(_call, functions)]


def _call(function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _without_nothing(value: Any) -> Any:
    """Return nested values without None: Arrow gives every dict the names that others have."""
    if isinstance(value, Mapping):
        return {key: _without_nothing(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nothing(part) for part in value]
    return value


def _json(text: str) -> Any:
    try:
        return parse_text(text)
    except ValueError:
        raise _FaultError(f" has text that is no JSON ({text[:40]!r})") from None
