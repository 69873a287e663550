"""JSON: objects one after another (.jsonl, .ndjson), or one document of rows or columns (.json)."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lora_lab._util.quiet import first_line
from lora_lab.errors import TaskError, as_cause
from lora_lab.tasks.table import Table

_SPACE = re.compile(r"[ \t\n\r]*")
_CHATS = {"messages", "conversations"}  # lists of objects that are no rows


def read_json(text: str, source: str, suffix: str, field: str | None = None) -> Table:
    """Read rows of JSON: numbers and true as they are written, NaN and null as nothing.

    A .json may hold a list of objects, such a list as the one list of objects in an object, an
    object of columns (as lists, or as pandas writes them), or what .jsonl holds; objects that are
    numbered, {"1": row}, are the rows in them. Objects that lack
    a key have None there; rows that are lists make columns "0", "1", …, and rows that are texts
    the column "text".

    Args:
        text: the file's.
        source: for messages.
        suffix: ".jsonl" or ".ndjson", whose objects are rows; or ".json".
        field: where the rows stand in a document, "data" or "data.paragraphs.qas": the lists on
            the way are gone through, and what their objects say beside them, each row says too.

    Raises:
        TaskError: no JSON, with its line; a key twice in an object; no rows.
    """
    values = _values(text, source, suffix)
    first = list(itertools.islice(values, 2))
    found: Iterable[Any] = itertools.chain(first, values)
    if field is not None:
        found = [row for value in found for row in _below(value, field.split("."), {})]
        if not found:
            raise TaskError(f"{source} has no rows at field={field!r}{_fields(first)}")
    elif len(first) == 1 and (isinstance(first[0], list) or suffix == ".json"):
        found = _unnumbered(_rows(first[0], source))
    columns: dict[str, list[Any]] = {}
    number = 0
    for number, row in enumerate(found, 1):
        for name, value in _items(row, number, columns, source):
            if name not in columns:
                columns[name] = []
            column = columns[name]
            if len(column) < number - 1:
                column.extend([None] * (number - 1 - len(column)))
            column.append(value if type(value) in _AS_THEY_ARE else _written(value))
    if not number:
        raise TaskError(f"{source} has no rows; it needs at least two")
    for column in columns.values():
        column.extend([None] * (number - len(column)))
    return Table(columns, source)


class _Float(float):
    """A number that remembers how it is written."""

    text: str


_AS_THEY_ARE: set[type] = {str, list, dict, type(None)}


def _float(text: str) -> _Float:
    value = _Float(text)
    value.text = text
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def _values(text: str, source: str, suffix: str) -> Iterator[Any]:
    """Yield the values of a text, which stand one after another."""
    decoder = json.JSONDecoder(parse_float=_float, object_pairs_hook=_object)
    at = _SPACE.match(text).end()  # type: ignore[union-attr]  # matches nothing too
    begin = at
    while at < len(text):
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            # Of rows the one that begins there; of a document where it is not JSON any more.
            whole = suffix == ".json" and at == begin
            place = error.pos if whole and isinstance(error, json.JSONDecodeError) else at
            said = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
            raise TaskError(
                f"{source} cannot be read as {suffix[1:]}: line {text.count(chr(10), 0, place) + 1}"
                f": {said}; fix the file"
            ) from as_cause(error)
        yield value
        at = _SPACE.match(text, end).end()  # type: ignore[union-attr]


def _below(value: Any, path: Sequence[str], beside: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the rows at a path, with what the objects above them say."""
    if isinstance(value, list):
        for item in value:
            yield from _below(item, path, beside)
    elif not path:
        yield {**beside, **value} if isinstance(value, dict) else value
    elif isinstance(value, dict) and path[0] in value:
        own = {name: said for name, said in value.items() if name != path[0]}
        yield from _below(value[path[0]], path[1:], {**beside, **own})


def _fields(values: Sequence[Any]) -> str:
    names = list(values[0]) if values and isinstance(values[0], dict) else []
    return f"; its fields are {', '.join(map(str, names))}" if names else ""


def _rows(document: Any, source: str) -> list[Any]:
    """Return a document's rows."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict) or _CHATS & document.keys():
        return [document]
    lists = {name: value for name, value in document.items() if isinstance(value, list)}
    of_objects = [name for name, value in lists.items() if _are_objects(value)]
    if len(of_objects) == 1:
        return lists[of_objects[0]]
    if of_objects:
        raise TaskError(
            f"{source} holds several lists of objects ({', '.join(of_objects)}); save each in a "
            "file of its own"
        )
    columns = list(document.values())
    if all(isinstance(v, dict) and v.keys() == columns[0].keys() for v in columns):
        columns = [list(column.values()) for column in columns]  # pandas' orient="columns"
    elif len(lists) < len(document):
        return [document]
    if len(lengths := {len(column) for column in columns}) > 1:
        raise TaskError(f"{source} has columns of different lengths ({sorted(lengths)})")
    return [dict(zip(document, row, strict=True)) for row in zip(*columns, strict=True)]


def _unnumbered(rows: list[Any]) -> list[Any]:
    """Return the objects in WebNLG's [{"1": {…}}, {"2": {…}}, …]; other rows as they are."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or len(row) != 1 or not isinstance(row.get(str(number)), dict):
            return rows
    return [row[str(number)] for number, row in enumerate(rows, 1)]


def _are_objects(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


def _items(
    row: Any, number: int, columns: Mapping[str, Any], source: str
) -> Iterable[tuple[str, Any]]:
    """Return a row's values by the names of their columns."""
    if isinstance(row, dict):
        return row.items()
    if isinstance(row, list):
        if columns and len(row) != len(columns):
            raise TaskError(
                f"{source}: row {number} is a list of {len(row)} where the first has {len(columns)}"
            )
        return ((str(at), value) for at, value in enumerate(row))
    if isinstance(row, str):
        return [("text", row)]
    raise TaskError(
        f"{source}: row {number} is {json.dumps(row)[:40]}; each row must be an object, {{…}}"
    )


def _written(value: Any) -> Any:
    """Return a number or a bool as it is written in the file; NaN is nothing."""
    if type(value) is int:
        return str(value)
    if isinstance(value, _Float):
        return value.text
    if isinstance(value, float) and math.isnan(value):
        return None
    return json.dumps(value)
