"""Prompts and completions that are written from several columns: "{instruction}\\n{input}"."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.prompts import PromptReader, Row
from lora_lab.tasks.table import Column, Table

Texts = Callable[[Any], Sequence[str]]


@dataclass(frozen=True)
class Form:
    """How a row's prompt and completion are written.

    Attributes:
        prompt: a format of columns, "{instruction}\\n{input}"; no other field can be in it.
        completion: the same; of one column alone that holds several texts, each is a completion.
        without: {column: the prompt's format where that column is empty}.
        needs: the columns that no row can do without; () : one of the prompt's is enough.
        nested: {column that holds no text: what makes texts of its values}.
    """

    prompt: str
    completion: str
    without: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    nested: Mapping[str, Texts] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that are read."""
        return (*columns_in(self.prompt), *columns_in(self.completion))


def is_form(given: object) -> bool:
    """Return whether this is a format of columns, and not the name of one."""
    return isinstance(given, str) and ("{" in given or "}" in given)


def as_form(prompt: Column, completion: Column) -> Form:
    """Return the form of two columns or formats."""
    of_prompt, of_completion = (
        str(part) if is_form(part) else f"{{{part}}}" for part in (prompt, completion)
    )
    return Form(of_prompt, of_completion)


def columns_in(text: str) -> tuple[Column, ...]:
    """Return the columns of a format, once each; numbers as numbers.

    Raises:
        TaskError: it is no format, or names no column.
    """
    found = dict.fromkeys(name for _, name in _parsed(text) if name is not None)
    if not found:
        raise TaskError(f"{text!r} names no column; write its name in braces, as {{prompt}}")
    return tuple(int(name) if name.isdecimal() else name for name in found)


@functools.lru_cache(maxsize=16)
def _parsed(text: str) -> tuple[tuple[str, str | None], ...]:
    """Return (literal text, the column after it); names are taken as they are, dots and all."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise TaskError(
            f"{text!r} is no format ({error}); {{column}} is a column, {{{{ and }}}} are braces"
        ) from None
    for _, name, spec, conversion in parts:
        if name == "" or spec or conversion:
            raise TaskError(
                f"{text!r}: between braces stands a column's name and nothing else; {{{{ and }}}} "
                "are braces"
            )
    return tuple((literal, name) for literal, name, _, _ in parts)


def _filled(text: str, row: Mapping[str, str]) -> str:
    return "".join(literal + ("" if name is None else row[name]) for literal, name in _parsed(text))


def written(text: Column, table: Table) -> list[str]:
    """Return a column's texts, or those of a format; "" where all of its columns are empty."""
    if not is_form(text):
        return table.texts(text)
    columns = {str(column): table.texts(column) for column in columns_in(str(text))}
    rows = (
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    )
    return [_filled(str(text), row) if any(row.values()) else "" for row in rows]


class FormReader(PromptReader):
    """Reads prompts and completions that are written by a form.

    A column in which nothing stands is written as nothing; a row that lacks all of its prompt's
    columns, one that the form needs, or its completion, is left out.
    """

    def __init__(self, form: Form, template: str | None, notes: tuple[str, ...] = ()) -> None:
        self.form, self._template, self.notes = form, template, notes
        self.columns = form.columns

    def rows(self, table: Table) -> list[Row]:
        """Return the rows that can be written; a warning tells how many cannot."""
        form = self.form
        texts = {str(column): self._texts(table, str(column)) for column in self.columns}
        asked = list(map(str, columns_in(form.prompt)))
        answer = list(map(str, columns_in(form.completion)))
        alone = form.completion == f"{{{answer[0]}}}"
        kept, count = [], 0
        for number in range(len(table)):
            row = {column: ", ".join(values[number]) for column, values in texts.items()}
            full = all if form.needs else any
            if not full(row[column].strip() for column in form.needs or asked):
                continue
            empty = next((column for column in form.without if not row[column]), None)
            prompt = _filled(form.prompt if empty is None else form.without[empty], row)
            said = texts[answer[0]][number] if alone else [_filled(form.completion, row)]
            rows = [(prompt, text) for text in dict.fromkeys(said) if text.strip()]
            count += bool(rows)
            kept += rows
        names = [repr(column) for column in (*(form.needs or asked), *answer)]
        if not kept:
            raise TaskError(
                f"{table.source}: no row has {' and '.join(dict.fromkeys(names))}; there is "
                "nothing to learn from"
            )
        tables.warn_left_out(table, count, " or ".join(dict.fromkeys(names)))
        return kept

    def _texts(self, table: Table, column: str) -> list[Sequence[str]]:
        if column in self.form.nested:
            return [self._nested(table, column, *row) for row in enumerate(table[column], 1)]
        return [[text] for text in table.texts(column)]

    def _nested(self, table: Table, column: str, number: int, value: Any) -> Sequence[str]:
        try:
            return self.form.nested[column](value)
        except ValueError as error:
            raise TaskError(f"{table.place(number)} has in column {column!r} {error}") from None
