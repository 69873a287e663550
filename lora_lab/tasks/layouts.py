"""Layouts that many data sets share, known by the names of their columns.

A table of which nobody has named a column is read by the layout that it has. No other columns may
stand beside it than those that are known to say nothing of the answer: a row's number, its source.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from lora_lab._util.json_files import parse_text
from lora_lab.errors import TaskError
from lora_lab.tasks.classification import LabelReader
from lora_lab.tasks.families.language_modeling import DocumentReader
from lora_lab.tasks.families.regression import TargetReader
from lora_lab.tasks.forms import Form, FormReader
from lora_lab.tasks.framing import PLAIN
from lora_lab.tasks.measures import are_measures
from lora_lab.tasks.prompts import PromptReader
from lora_lab.tasks.reading import Reader
from lora_lab.tasks.table import Table

NO_TEMPLATE = "template is for prompts with completions, and not for texts under a head or alone"
_NESTED = re.compile(r"""\s*(\{\s*["']\w+["']\s*:|\[\s*["'{\]])""")
_NUMBERS = frozenset({"id", "_id", "idx", "index", "uid", "uuid"})
_NUMBERS |= {"Unnamed: 0", "__index_level_0__"}  # pandas' index
_BESIDE = _NUMBERS | {"title", "source", "url", "category", "topic", "table_id", "phase"}

# The texts of tatsu-lab's train.py and of databrickslabs' dolly, to the letter.
_INTRO = "Below is an instruction that describes a task"
_WRITE = ". Write a response that appropriately completes the request.\n\n"
_ASKED = "### Instruction:\n{instruction}\n\n"
_FURTHER = ", paired with an input that provides further context"
_ALPACA = Form(
    prompt=f"{_INTRO}{_FURTHER}{_WRITE}{_ASKED}### Input:\n{{input}}\n\n### Response:",
    completion="{output}",
    without={"input": f"{_INTRO}{_WRITE}{_ASKED}### Response:"},
    needs=("instruction",),
)
_DOLLY = Form(
    prompt=f"{_INTRO}{_WRITE}{_ASKED}Input:\n{{context}}\n\n### Response:\n",
    completion="{response}",
    without={"context": f"{_INTRO}{_WRITE}{_ASKED}### Response:\n"},
    needs=("instruction",),
)


def _unwritten(value: Any) -> Any:
    """Return the list or dict that a file without nesting, such as a .csv, has as a text.

    Raises:
        ValueError: it looks like one, and is none.
    """
    if not isinstance(value, str) or not _NESTED.match(value):
        return value
    with contextlib.suppress(ValueError):
        return parse_text(value)
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(
            f"{value[:40]!r}, which was a list or a dict once; save it as JSON lines"
        ) from None


def _answers(value: Any) -> list[str]:
    """Return SQuAD's {"text": [each annotator's]}, or what stands in its place."""
    value = _unwritten(value)
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, list):
        return [text for each in value for text in _answers(each)]
    return [] if value is None else [str(value)]


def _header(value: Any) -> list[str]:
    """Return the columns of WikiSQL's {"header": [...]}, or of a list of them."""
    value = _unwritten(value)
    value = value.get("header") if isinstance(value, dict) else value
    return [str(name) for name in value] if isinstance(value, list) else _answers(value)


def _query(value: Any) -> list[str]:
    """Return the text of WikiSQL's {"human_readable": "SELECT …"}, or the text itself."""
    value = _unwritten(value)
    return _answers(value.get("human_readable") if isinstance(value, dict) else value)


def _schema(columns: str) -> Form:
    """Return WikiSQL's: the table's columns, the question, and the query to write."""
    return Form(
        prompt=f"columns: {{{columns}}}\nquestion: {{question}}",
        completion="{sql}",
        needs=("question",),
        nested={columns: _header, "sql": _query},
    )


_SQUAD = Form(
    prompt="context: {context}\nquestion: {question}",
    completion="{answers}",
    needs=("context", "question"),
    nested={"answers": _answers},
)


class Layout(NamedTuple):
    """One layout.

    Attributes:
        name: what people call it.
        columns: all of them have to be there.
        reader: (the training table, the template that was asked for) → what reads it.
        beside: columns that may be there too; they are not read.
    """

    name: str
    columns: tuple[str, ...]
    reader: Callable[[Table, str | None], Reader[Any]]
    beside: frozenset[str] = _BESIDE


def _written(form: Form, template: str | None = None) -> Callable[[Table, str | None], Reader[Any]]:
    return lambda _table, asked: FormReader(form, asked or template)


def _short(form: Form) -> Form:
    """Return the form of a set that has no column for what is empty in others."""
    (prompt,) = form.without.values()
    return Form(prompt, form.completion, needs=form.needs)


def _two(name: str, prompt: str, completion: str) -> Layout:
    columns = prompt, completion
    return Layout(name, columns, lambda table, asked: PromptReader(table, *columns, asked))


def _classes(text: str, label: str, *pair: str) -> Layout:
    columns = text, *pair, label
    second = pair[0] if pair else None
    name = "pairs of texts with classes" if pair else "texts with classes"

    def reader(table: Table, asked: str | None) -> Reader[Any]:
        _refuse_template(table, asked)
        measured = label == "score" or are_measures(table.texts(label))
        return (TargetReader if measured else LabelReader)(table, text, label, second)

    return Layout(name, columns, reader, _NUMBERS | {"label_text"})


def _alone(table: Table, asked: str | None) -> Reader[Any]:
    _refuse_template(table, asked)
    return DocumentReader(table, "text")


def _refuse_template(table: Table, asked: str | None) -> None:
    if asked is not None:
        raise TaskError(f"{table.source}: {NO_TEMPLATE}")


LAYOUTS = (
    Layout(
        "Alpaca",
        ("instruction", "input", "output"),
        _written(_ALPACA, PLAIN),
        _BESIDE | {"text"},  # all of it once more, as one text
    ),
    Layout("Alpaca", ("instruction", "output"), _written(_short(_ALPACA), PLAIN)),
    Layout("Dolly", ("instruction", "context", "response"), _written(_DOLLY, PLAIN)),
    Layout("Dolly", ("instruction", "response"), _written(_short(_DOLLY), PLAIN)),
    Layout(
        "SQuAD",
        ("question", "context", "answers"),
        _written(_SQUAD),
        _BESIDE | {"is_impossible"},  # such have no answers, and are left out
    ),
    Layout("WikiSQL", ("question", "columns", "sql"), _written(_schema("columns"))),
    Layout("WikiSQL", ("question", "table", "sql"), _written(_schema("table"))),
    _two("E2E", "mr", "ref"),
    _two("prompts with completions", "prompt", "completion"),
    _two("questions with answers", "question", "answer"),
    _two("pairs", "0", "1"),
    Layout("texts alone", ("text",), _alone, _NUMBERS),
    *(
        _classes(text, label)
        for text in ("text", "sentence")
        for label in ("label", "category", "score")
    ),
    *(
        _classes(first, label, second)
        for label in ("label", "score")
        for first, second in (
            *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence")),
            *(("question1", "question2"), ("text1", "text2")),
        )
    ),
)
"""The layouts that are known; the first that a table has is taken."""


def recognized(table: Table, template: str | None) -> Reader[Any]:
    """Return what reads a table by its layout; its `notes` say which that is.

    Raises:
        TaskError: it has none; its columns are listed.
    """
    there = set(table.column_names)
    found = [layout for layout in LAYOUTS if there.issuperset(layout.columns)]
    for layout in found:
        unread = sorted(there.difference(layout.columns))
        if layout.beside.issuperset(unread):
            reader = layout.reader(table, template)
            rest = f"; not read: {', '.join(unread)}" if unread else ""
            name = layout.name
            if isinstance(reader, TargetReader):
                name = name.replace("classes", "numbers")
            reader.notes = (f"read as {name} ({', '.join(layout.columns)}){rest}",)
            return reader
    if found:
        near = max(found, key=lambda layout: len(layout.columns))
        more = sorted(there.difference(near.columns))
        raise TaskError(
            f"{table.source} has the columns of {near.name} ({', '.join(near.columns)}) and, "
            f"beside them, {', '.join(more)}, which may belong to what is read; name the columns "
            "to read, by prompt= and completion=, or text= and label=; "
            f"{table.columns_there()}"
        )
    return PromptReader(table, None, None)  # which says what is to be named
