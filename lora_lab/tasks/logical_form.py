"""WikiSQL: its queries as text, and whether a query that a model wrote is the right one.

WikiSQL's queries are sketches (Zhong et al., 2017, https://arxiv.org/abs/1709.00103), in files
{"sel": a column's number, "agg": that of a function, "conds": [[column, operator, value], …]}, and
their text is "SELECT MAX Points FROM table WHERE Year = 1990 AND Club = Ajax". Two are the same
logical form where column, function and conditions are, whatever their case, the conditions' order,
and quotes around their values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lora_lab.errors import TaskError
from lora_lab.tasks.intervals import Interval, wilson
from lora_lab.tasks.table import Table

_FUNCTIONS = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
_OPERATORS = ("=", ">", "<", "OP")
_QUOTED = re.compile(r"""(?<= )(["'])(.*)\1\Z""")
_TABLE, _WHERE, _AND = " from table", " where ", " and "


def accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return how many queries of a hundred have the logical form of one of the right ones."""
    return 100 * _hits(predictions, references) / len(references)


def interval(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Interval:
    """Return the 95 % interval of `accuracy`."""
    return wilson(_hits(predictions, references), len(references))


def query_text(sketch: Mapping[str, Any], header: Sequence[str]) -> str:
    """Return the text of a query in WikiSQL's files.

    Args:
        sketch: {"sel", "agg", "conds"}; of the hub's copies conds are a dict of three lists.
        header: the names of its table's columns.

    Raises:
        ValueError: no such query, or a column that the table does not have.
    """
    try:
        conds = sketch["conds"]
        if isinstance(conds, Mapping):
            conds = zip(
                *(conds[n] for n in ("column_index", "operator_index", "condition")), strict=False
            )
        function, column = _at(_FUNCTIONS, sketch["agg"]), _at(header, sketch["sel"])
        what = " ".join(filter(None, (function, column)))
        fits = [
            f"{_at(header, at)} {_at(_OPERATORS, op)} {getattr(value, 'text', value)}"
            for at, op, value in conds
        ]
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"{str(sketch)[:60]}, which is no query on its table") from None
    where = f" WHERE {' AND '.join(fits)}" if fits else ""
    return f"SELECT {what} FROM table{where}"


def _at(names: Sequence[str], number: Any) -> str:
    """Return the name of a number; those below 0 count from no end."""
    if int(number) < 0:
        raise IndexError(number)
    return names[int(number)]


def are_sketches(table: Table) -> bool:
    """Return whether a table is one of WikiSQL's files, whose queries name columns by number."""
    names = set(table.column_names)
    if not {"table_id", "question", "sql"} <= names or names & {"columns", "table"}:
        return False
    return isinstance(table["sql"][0], dict) and "sel" in table["sql"][0]


def with_headers(table: Table, tables: Table) -> Table:
    """Return WikiSQL's rows with the names of their tables' columns, and queries as texts.

    Args:
        table: of a file such as train.jsonl.
        tables: of train.tables.jsonl.

    Raises:
        TaskError: a row whose table is not there, or whose query is none on it.
    """
    tables.need(["id", "header"])
    headers = dict(zip(map(str, tables["id"]), tables["header"], strict=True))
    found, texts = [], []
    for number, (own, sketch) in enumerate(zip(table["table_id"], table["sql"], strict=True), 1):
        if str(own) not in headers:
            raise TaskError(f"{table.place(number)}: no table {own!r} in {tables.source}")
        try:
            texts.append(query_text(sketch, headers[str(own)]))
        except ValueError as error:
            raise TaskError(f"{table.place(number)} has in column 'sql' {error}") from None
        found.append(headers[str(own)])
    columns = {**table.columns, "columns": found, "sql": texts}
    return Table(columns, table.source)


def _hits(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> int:
    pairs = zip(predictions, references, strict=True)
    return sum(_form(said) in map(_form, right) for said, right in pairs)


def _form(query: str) -> tuple[str, Counter[str]]:
    """Return what is asked for, and the conditions, which have no order."""
    what, found, rest = " ".join(query.split()).casefold().partition(_TABLE)
    if not found or not (rest == "" or rest.startswith(_WHERE)):
        return what + found + rest, Counter()
    fits = rest.removeprefix(_WHERE).split(_AND) if rest else []
    return what, Counter(_QUOTED.sub(r"\2", each) for each in fits)
