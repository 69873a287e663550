"""Fields with separators between them: .csv, .tsv and .txt. A field is text, as it is written.

Quotes are those of RFC 4180, and what is not well formed is refused, with its row. Not the standard
library's `csv`: that one holds a limit of a field's length for the whole process, and does not tell
which fields stood in quotes, which decides what a quote is in a .tsv.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from lora_lab._util.warn import warn
from lora_lab.errors import TaskError
from lora_lab.tasks.table import Column, Table

_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_ORDER = {".csv": ",;\t|", ".tsv": "\t;|,", ".txt": "\t;|,"}  # the format's own first
_EXCEL = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # a first line that Excel writes, and heeds
_BLANK_LINES = re.compile(r"\n[ \t]*\n")
_NUMBER = re.compile(r"[-+]?[\d.,]+(?:[eE][-+]?\d+)?")
_NEEDS_QUOTES = re.compile(r"[\t\r\n,]|^\s|\s$")  # Excel puts them around commas in a .tsv too
_BLANK_QUOTED = re.compile(r' +".*"\s*\Z', re.DOTALL)
_SHOWN = 40  # letters of a row
# GLUE's QQP: a few rows have a line break in a question. Its readers leave both halves out.
_HAS_HALVES = "id", "qid1", "qid2", "question1", "question2", "is_duplicate"

Columns = list[list[str]]


def read_separated(
    text: str, source: str, suffix: str, columns: Sequence[Column], sep: str | None
) -> Table:
    """Read fields with separators between them.

    Args:
        text: the file's.
        source: for messages.
        suffix: ".csv", ".tsv" or ".txt". In the latter two, whose writers seldom quote, a quote is
            a letter like any other, unless the file as a whole tells that it is none.
        columns: those that are wanted; numbers where the file has no line of names.
        sep: what stands between fields; None: found in the file. A .txt that has none is of one
            column, "text", with a row a line; where blank lines stand between the lines, what
            they part is a row.

    Raises:
        TaskError: a row with more or fewer fields than the first one, or with a quote that is not
            closed; no rows.
    """
    start = 0
    if line := _EXCEL.match(text):
        sep, start = sep or line[1], line.end()
    if sep is not None:
        return _File(text, source, suffix, columns, _checked(sep, source), start).table()
    found: list[Table] = []
    errors: list[TaskError] = []
    for likely in _ORDER[suffix]:
        file = _File(text, source, suffix, columns, likely, start)
        if len(file.first) < 2 or (suffix == ".txt" and likely == "," and not columns):
            continue  # prose has commas too
        try:
            found.append(file.table())
        except TaskError as error:
            errors.append(error)
        else:
            if all(str(column) in found[-1].columns for column in columns):
                return found[-1]
    if suffix == ".txt" and (not found or "text" in columns):
        return _lines(text, source)
    if found:
        return found[0]
    if errors:
        raise errors[0]
    return _File(text, source, suffix, columns, _ORDER[suffix][0], start).table()


def _lines(text: str, source: str) -> Table:
    text = text.replace("\r\n", "\n")
    parts = [part.strip("\n") for part in _BLANK_LINES.split(text) if part.strip()]
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise TaskError(f"{source} is empty; it needs lines of text")
    return Table({"text": parts if len(parts) > 1 else lines}, source)


def _checked(sep: str, source: str) -> str:
    sep = "\t" if sep == "\\t" else sep  # as a command line has it
    if not sep or any(letter in sep for letter in '"\r\n'):
        raise TaskError(f"{source}: {sep!r} cannot separate fields; such are ',', ';', '\\t', '|'")
    return sep


class _File:
    """A file that is read with one separator.

    Attributes:
        first: the fields of its first row, which are names where columns have them.
    """

    def __init__(
        self, text: str, source: str, suffix: str, columns: Sequence[Column], sep: str, start: int
    ) -> None:
        self._text, self._source, self._sep, self._start = text, source, sep, start
        self._named = not any(isinstance(column, int) for column in columns)
        self._eol = "\n" if "\n" in text else "\r"
        one, end = re.escape(sep), r"\r*\n" if self._eol == "\n" else r"\r"
        letter = rf"[^{one}\r\n]" if len(sep) == 1 else rf"(?:(?!{one})[^\r\n])"
        plain = rf"{letter}*(?:(?!{end})\r{letter}*)*"
        self._field = re.compile(rf'(?:"([^"]*(?:""[^"]*)*)"|(?!")({plain}))({one}|{end}|\Z)')
        self._pattern = rf'("[^"]*(?:""[^"]*)*"|(?!"){plain})', one, rf"(?:{end}|\Z)"
        self._opens = re.compile(rf'(?:^|{one})"')
        self._blank_opens = re.compile(rf'{one} +"')
        self._seldom_quoted = suffix != ".csv" and sep == "\t"
        self.first = next((row for _, row in self._records(quotes=False)), [])
        self._halves = 0  # of rows, that are left out

    def table(self) -> Table:
        """Read it; see `read_separated`."""
        columns = self._tab_columns() if self._seldom_quoted else self._columns()
        if not columns:
            raise TaskError(f"{self._source} is empty; it needs rows with named columns")
        self._warn_of_blanks(columns)
        if self._halves:
            warn(
                f"{self._source}: {self._halves} rows of fewer fields are left out, as "
                "GLUE's own readers of QQP leave them out"
            )
        names, twice = list(map(str, range(len(columns)))), frozenset[str]()
        if self._named:
            names = [column.pop(0) or f"Unnamed: {at}" for at, column in enumerate(columns)]
            twice = frozenset(name for name, count in Counter(names).items() if count > 1)
        if not columns[0]:
            raise TaskError(f"{self._source} has no rows; it needs at least two")
        named = zip(names, columns, strict=True)
        kept = {name: values for name, values in named if name not in twice}
        return Table(kept, self._source, ambiguous=twice)

    def _warn_of_blanks(self, columns: Columns) -> None:
        if self._seldom_quoted or not self._blank_opens.search(self._text):
            return
        if count := sum(bool(_BLANK_QUOTED.match(field)) for c in columns for field in c):
            warn(
                f"{self._source}: {count} fields have a blank in front of their quotes; blank and "
                "quotes are read as part of the text (take the blank out where they are none)"
            )

    def _tab_columns(self) -> Columns:
        if not re.search(r'(?:^|[\t\r\n])"', self._text):
            return self._columns(quotes=False)
        try:
            quoted = self._columns()
        except TaskError:
            return self._columns(quotes=False)
        halves = self._halves
        try:
            plain = self._columns(quotes=False)
        except TaskError:
            return quoted
        if count := _quotes_as_letters(plain, quoted):
            warn(
                f"{self._source}: {count} fields stand in quotes while others of their column do "
                "not; the quotes are read as part of the text (where they are none of it: name "
                "the file .csv)"
            )
            return plain
        self._halves = halves
        return quoted

    def _columns(self, quotes: bool = True) -> Columns:
        """Return all columns, their names first, of rows with as many fields as the first one."""
        if quotes and (read := self._even_columns()):
            return read
        columns: Columns = []
        halves = 0
        for number, (line, row) in enumerate(self._records(quotes), 1):
            columns = columns or [[] for _ in row]
            if len(row) < len(columns) and tuple(self.first) == _HAS_HALVES:
                halves += 1
                continue
            if len(row) != len(columns):
                raise TaskError(self._ragged(row, number, line, len(columns)))
            for column, field in zip(columns, row, strict=True):
                column.append(field)
        self._halves = halves
        return columns

    def _even_columns(self) -> Columns | None:
        """Return the columns where all rows are well formed, as wide, and none is blank.

        What `_records` makes of them too, at a third of the time.
        """
        _, first = next(self._records(quotes=True), (0, []))
        if len(first) < 2:
            return None
        field, sep, end = self._pattern
        match_row = re.compile(sep.join([field] * len(first)) + end).match
        text, at = self._text, self._start
        fields: list[str] = []  # of all rows: a list a row would cost more than the reading
        while at < len(text):
            match = match_row(text, at)
            if match is None:
                return None
            fields += match.groups()
            at = match.end()
        columns = (fields[column :: len(first)] for column in range(len(first)))
        return [list(map(_unquoted, c)) if '"' in "".join(c) else c for c in columns]

    def _records(self, quotes: bool) -> Iterator[tuple[int, list[str]]]:
        """Yield each row with the number of the line that it begins at; blank lines are none."""
        text, sep, eol = self._text, self._sep, self._eol
        at, end, number = self._start, len(text), 0
        line = 1 + text.count(eol, 0, at)
        while at < end:
            stop = text.find(eol, at)
            stop = end if stop < 0 else stop
            content = text[at:stop].rstrip("\r")
            if not content.strip(" "):
                at, line = stop + 1, line + 1
                continue
            number += 1
            if quotes and '"' in content and self._opens.search(content):
                begin = at
                row, at = self._quoted(at, number, line)
                yield line, row
                line += text.count(eol, begin, at)
            else:
                yield line, content.split(sep)
                at, line = stop + 1, line + 1

    def _quoted(self, at: int, number: int, line: int) -> tuple[list[str], int]:
        """Return the fields of a row with quotes, and where the next row begins."""
        row = []
        while True:
            match = self._field.match(self._text, at)
            if match is None:
                raise TaskError(
                    f"{self._source}: {self._place(number, line)} has a quote that is not closed "
                    f"at the end of its field, at {self._text[at : at + _SHOWN]!r}; close it, and "
                    'write a quote twice ("") inside of a text in quotes'
                )
            row.append(match[2] if match[1] is None else match[1].replace('""', '"'))
            at = match.end()
            if match[3] != self._sep:
                return row, at

    def _ragged(self, row: list[str], number: int, line: int, width: int) -> str:
        first = "the line of names" if self._named else "the first row"
        name = _NAMES.get(self._sep, repr(self._sep))
        fix = (
            f"put a text with a {name} in quotes, or give sep"
            if len(row) > width
            else "fill it up, or give sep"
        )
        return (
            f"{self._source}: {self._place(number, line)} has {len(row)} "
            f"field{'s' * (len(row) != 1)} where {first} has {width} (with a {name} between "
            f"them): {self._sep.join(row)[:_SHOWN]!r}; {fix}"
        )

    def _place(self, number: int, line: int) -> str:
        number -= self._named
        return f"row {number} (line {line})" if number else f"the line of names (line {line})"


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if field[:1] == '"' else field


def _quotes_as_letters(plain: Columns, quoted: Columns) -> int:
    """Return how many fields of a .tsv have quotes that belong to the text, as it seems.

    Who writes quotes writes them around all texts of a column, or only where they are needed.
    """
    if list(map(len, plain)) != list(map(len, quoted)):
        return 0
    if any('"' in field for column in quoted for field in column):
        return 0
    count = 0
    for letters, texts in zip(plain, quoted, strict=True):
        pairs = list(zip(letters, texts, strict=True))[1:]
        if any(a == b and a and not _NUMBER.fullmatch(a) for a, b in pairs):
            count += sum(a != b and bool(b) and not _NEEDS_QUOTES.search(b) for a, b in pairs)
    return count
