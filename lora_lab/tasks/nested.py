"""Lists and dicts in a table's cells, and the texts that known layouts keep in them."""

from __future__ import annotations

import ast
import contextlib
import itertools
import re
from collections.abc import Sequence
from typing import Any

from lora_lab._util.json_files import parse_text

_NESTED = re.compile(r"""\s*(\{\s*["']\w+["']\s*:|\[\s*["'{\]])""")


def unwritten(value: Any) -> Any:
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


def answers(value: Any) -> list[str]:
    """Return SQuAD's {"text": [each annotator's]}, or what stands in its place."""
    value = unwritten(value)
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, list):
        return [text for each in value for text in answers(each)]
    return [] if value is None else [str(value)]


def header(value: Any) -> list[str]:
    """Return the columns of WikiSQL's {"header": [...]}, or of a list of them."""
    value = unwritten(value)
    value = value.get("header") if isinstance(value, dict) else value
    return [str(name) for name in value] if isinstance(value, list) else answers(value)


def query(value: Any) -> list[str]:
    """Return the text of WikiSQL's {"human_readable": "SELECT …"}, or the text itself."""
    value = unwritten(value)
    return answers(value.get("human_readable") if isinstance(value, dict) else value)


def dart_triples(value: Any) -> list[str]:
    """Return DART's [[subject, relation, object], …] as one text; relations in lower case.

    "subject : relation : object | …", as Hu et al. (2021) write them (their
    format_converting_dart.py).
    """
    return _triples([(s, str(p).lower(), o) for s, p, o in _threes(unwritten(value))])


def webnlg_triples(value: Any) -> list[str]:
    """Return WebNLG's [{"subject", "property", "object"}, …] as one text, as `dart_triples` does.

    Of the hub's {"mtriple_set": [["subject | property | object", …], …]} the first set; GEM has
    such a set alone.
    """
    value = unwritten(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = {"mtriple_set": [value]}
    if isinstance(value, dict):
        sets = value.get("mtriple_set") or []
        if not (isinstance(sets, list) and all(isinstance(each, list) for each in sets)):
            raise ValueError(f"{str(value)[:40]!r}, which has no lists of triples")
        value = [str(each).split(" | ") for each in next(iter(sets), [])]
    elif isinstance(value, list) and all(isinstance(each, dict) for each in value):
        names = "subject", "property", "object"
        value = [[each[name] for name in names if name in each] for each in value]
    return _triples(_threes(value))


def lexicalizations(value: Any) -> list[str]:
    """Return WebNLG's texts that its editors found good: [{"comment", "lex"}, …].

    Of the hub's {"comment": […], "text": […]} as well.
    """
    value = unwritten(value)
    if isinstance(value, dict):
        rows = list(itertools.zip_longest(value.get("comment") or [], value.get("text") or []))
    elif isinstance(value or [], list) and all(isinstance(each, dict) for each in value or []):
        rows = [(each.get("comment"), each.get("lex")) for each in value or []]
    else:
        raise ValueError(f"{str(value)[:40]!r}, which is no list of {{'comment', 'lex'}}")
    return [text for comment, text in rows if comment in ("good", "", None) and text]


def _threes(value: Any) -> Sequence[Sequence[Any]]:
    found = value if isinstance(value, list) else []
    if value and not (found and all(isinstance(t, list) and len(t) == 3 for t in found)):
        raise ValueError(f"{str(value)[:40]!r}, which is no list of [subject, property, object]")
    return found


def _triples(triples: Sequence[Sequence[Any]]) -> list[str]:
    return [" | ".join(" : ".join(map(str, each)) for each in triples)] if triples else []
