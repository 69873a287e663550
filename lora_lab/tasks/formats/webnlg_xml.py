"""WebNLG's official XML: entries of triples, and the texts that people wrote of them.

<benchmark><entries><entry category="Airport" eid="Id1" size="1"><modifiedtripleset><mtriple>…, as
the challenge of 2017 and the releases up to 3.0 have it (https://webnlg-challenge.loria.fr).
A document type, in which entities are declared that stand for each other, is refused unread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.parsers import expat

from lora_lab._util.warn import warn
from lora_lab.errors import TaskError
from lora_lab.tasks.table import Table

_DEEPEST = 16  # elements within each other; WebNLG's have 5
_TOLD = "category", "eid", "size"  # of an entry's attributes
_ENGLISH = "en"


def read_webnlg(data: bytes, source: str) -> Table:
    """Read the entries of a file, with the columns of WebNLG's JSON.

    Where nothing is written of any entry, as in test files for participants, there is no column
    "lexicalisations". Of texts in English and in another language, which were translated from
    these, the others are read, with a warning.

    Args:
        data: the file's; its first line tells the encoding.
        source: for messages.

    Raises:
        TaskError: no XML, with its line; a document type; no entries; a triple that is none.
    """
    reader = _Entries(source)
    try:
        reader.parse(data)
    except expat.ExpatError as error:
        raise TaskError(
            f"{source} cannot be read as xml: line {error.lineno}: "
            f"{expat.ErrorString(error.code)}; fix the file"
        ) from None
    rows = reader.rows
    if not rows:
        raise TaskError(
            f"{source} has no entries; of XML WebNLG's is read, <benchmark><entries><entry>…, save "
            "other data as .csv or .jsonl"
        )
    _keep_one_language(rows, source)
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}
    if not any(columns["lexicalisations"]):
        del columns["lexicalisations"]
    return Table(columns, source)


class _Entries:
    """Gathers the entries of a file."""

    def __init__(self, source: str) -> None:
        self.rows: list[dict[str, Any]] = []
        self._source = source
        self._path: list[str] = []
        self._entry: dict[str, Any] | None = None
        self._lex: dict[str, Any] = {}
        self._text: list[str] = []

    def parse(self, data: bytes) -> None:
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        parser.Parse(data, True)

    def _refuse(self, *_: object) -> None:
        raise TaskError(
            f"{self._source} declares a document type, which WebNLG's files do not, and which can "
            "make a small file a large one; take the <!DOCTYPE …> out"
        )

    def _start(self, name: str, given: Mapping[str, str]) -> None:
        self._path.append(name)
        if len(self._path) > _DEEPEST:
            raise TaskError(f"{self._source} has elements {_DEEPEST} deep; WebNLG's have 5")
        self._text.clear()
        if self._path[:1] == ["benchmark"] and name == "entry":
            told = {each: given.get(each) for each in _TOLD}
            self._entry = {**told, "modifiedtripleset": [], "lexicalisations": []}
        elif name == "lex":
            self._lex = {"comment": given.get("comment", ""), "lang": given.get("lang", "")}

    def _end(self, name: str) -> None:
        within = self._path[-2:-1]
        self._path.pop()
        text = " ".join("".join(self._text).split())
        self._text.clear()
        if self._entry is None:
            return
        if name == "mtriple" and within == ["modifiedtripleset"]:
            self._entry["modifiedtripleset"].append(self._triple(text))
        elif name == "lex" and within == ["entry"]:
            self._entry["lexicalisations"].append({**self._lex, "lex": text})
        elif name == "entry":
            self.rows.append(self._entry)
            self._entry = None

    def _triple(self, text: str) -> dict[str, str]:
        parts = [part.strip() for part in text.split("|")]
        if len(parts) != 3:
            entry = self._entry or {}
            raise TaskError(
                f"{self._source}: row {len(self.rows) + 1} (eid {entry.get('eid')}) has the triple "
                f"{text[:40]!r}, which is no subject | property | object"
            )
        return dict(zip(("subject", "property", "object"), parts, strict=True))


def _keep_one_language(rows: Sequence[Mapping[str, Any]], source: str) -> None:
    """Drop the English texts that others were translated from."""
    found = sorted({lex["lang"] for row in rows for lex in row["lexicalisations"] if lex["lang"]})
    if len(found) < 2:
        return
    others = [lang for lang in found if lang != _ENGLISH]
    if len(others) > 1:
        raise TaskError(
            f"{source} has texts in {', '.join(found)}; leave those in one language there"
        )
    warn(f"{source}: texts in {others[0]} are read, and not those in {_ENGLISH}")
    for row in rows:
        row["lexicalisations"][:] = [x for x in row["lexicalisations"] if x["lang"] == others[0]]
