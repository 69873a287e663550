"""From tables to tasks: every kind's parts are checked, held out and shuffled the same way."""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.base import Task
from lora_lab.tasks.metrics import Metric
from lora_lab.tasks.table import Column, Table

_SECRET = {None, "-1", "-1.0"}  # the answers of hub splits that keep them (GLUE's test)

Row = TypeVar("Row")
Rows = Sequence[Any]


class Reader(ABC, Generic[Row]):
    """Makes one kind of task of tables with named columns.

    Attributes:
        columns: those that are read.
        notes: how they were found, a line each, where nobody has named them.
        metrics: what the task is scored by; (): its kind's own.
        noun: what a row is about: no two parts shall share one.
    """

    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    noun: ClassVar[str] = "text"

    @abstractmethod
    def rows(self, table: Table) -> list[Row]:
        """Return a table's rows.

        Raises:
            TaskError: a row, or the whole table, that cannot be learned from.
        """

    @abstractmethod
    def key(self, row: Row) -> Hashable:
        """Return what two rows about the same have in common."""

    def stratum(self, row: Row) -> Hashable | None:  # noqa: ARG002
        """Return what is to be among the training rows wherever it is held out: a class."""
        return None

    @abstractmethod
    def task(self, name: str, train: Rows, validation: Rows, test: Rows) -> Task:
        """Make the task."""

    def secret(self, table: Table) -> bool:  # noqa: ARG002
        """Return whether a hub split's answers are kept secret."""
        return False

    def check(self, parts: Mapping[str, tuple[str, list[Row]]]) -> None:
        """Raise `TaskError` where the parts do not go together.

        Args:
            parts: {"training", …: (what messages call it, its rows)}.
        """

    def held_out(self, rows: Sequence[Row]) -> Rows:
        """Return the examples of a held-out part."""
        return rows


def make_task(
    title: str,
    reader: Reader[Any],
    given: Mapping[str, Table],
    seed: int,
    secrets: bool,
    own: Collection[str] = (),
) -> Task:
    """Make a task of its parts.

    Args:
        title: its name.
        reader: what reads its tables.
        given: {"training", "validation", "test": a table}; all but the first may be left out.
        seed: of the held-out split, where no validation part is given.
        secrets: held-out parts may keep their answers secret, as GLUE's test splits do; such a
            part is left out, with a warning.
        own: the parts that nobody has named and the data set has itself: of these one without the
            columns that are read is left out too, as official test files have no answers.

    Raises:
        TaskError: a part without the columns, or rows that `reader` refuses.
    """
    parts = {
        part: (table.source, reader.rows(table))
        for part, table in _readable(reader, given, secrets, own).items()
    }
    reader.check(parts)
    rows = {part: found for part, (_, found) in parts.items()}
    train, held_out = rows["training"], rows.get("validation")
    if held_out is None:
        train, held_out = _hold_out(title, train, reader, seed)
    known = set(map(reader.key, train))
    for part, found in (("validation", held_out), ("test", rows.get("test", []))):
        shared = known & set(map(reader.key, found))
        tables.warn_known(title, part, f"{reader.noun}s", len(shared))
    # Files are often sorted (E2E's by restaurant); the first n shall be a fair sample.
    examples = reader.held_out(held_out)
    shuffled = random.Random(f"validation {seed}").sample(examples, len(examples))
    task: Any = reader.task(title, train, shuffled, reader.held_out(rows.get("test", [])))
    told = {"notes": reader.notes, "metrics": reader.metrics}
    return dataclasses.replace(task, **{name: own for name, own in told.items() if own})


def _readable(
    reader: Reader[Any], given: Mapping[str, Table], secrets: bool, own: Collection[str]
) -> dict[str, Table]:
    """Return the parts that have answers, each with all columns."""
    found = dict(given)
    for part, table in given.items():
        held_out = part != "training"
        missing = [column for column in reader.columns if not table.has(column)]
        if held_out and part in own and missing:
            tables.warn(f"{table.source} has no column {missing[0]!r}; it is left out")
            del found[part]
            continue
        table.need(reader.columns)
        if secrets and held_out and reader.secret(table):
            tables.warn(f"{table.source} has no labels; it is left out")
            del found[part]
    return found


def _hold_out(
    name: str, rows: Sequence[Row], reader: Reader[Row], seed: int
) -> tuple[list[Row], list[Row]]:
    """Split by what rows are about, so that nothing is on both sides."""
    keys = list(map(reader.key, rows))
    different = list(dict.fromkeys(keys))
    if len(different) < 2:
        raise TaskError(
            f"{name} has one {reader.noun} only, nothing can be held out; give validation='…' or "
            "more rows"
        )
    rng = random.Random(f"held out {seed}")
    drawn = rng.sample(different, tables.held_out_count(different))
    strata: dict[Hashable, set[Hashable]] = {}
    for key, stratum in zip(keys, map(reader.stratum, rows), strict=True):
        if stratum is not None:
            strata.setdefault(key, set()).add(stratum)
    chosen = _spared(drawn, different, strata, rng) if strata else set(drawn)
    if not chosen:
        chosen = set(drawn[:1])
        lost = sorted(str(stratum) for key in chosen for stratum in strata[key])
        tables.warn(
            f"{name}: every class has one {reader.noun} only; {', '.join(lost)} is held out whole, "
            "scored and never learned; give validation='…' or more rows"
        )
    return (
        [row for key, row in zip(keys, rows, strict=True) if key not in chosen],
        [row for key, row in zip(keys, rows, strict=True) if key in chosen],
    )


def _spared(
    drawn: Sequence[Hashable],
    different: Sequence[Hashable],
    strata: Mapping[Hashable, set[Hashable]],
    rng: random.Random,
) -> set[Hashable]:
    """Return as many of the rows' keys as were drawn, without the last one of any class.

    Where no class would be lost, these are the very ones that were drawn.

    Args:
        drawn: keys of rows.
        different: all of them.
        strata: {key: the classes of its rows}.
        rng: draws others in their place.
    """
    left = Counter(stratum for own in strata.values() for stratum in own)

    def spared(keys: Iterable[Hashable], count: int) -> Iterator[Hashable]:
        for key in keys:
            if count > 0 and all(left[stratum] > 1 for stratum in strata.get(key, ())):
                left.subtract(strata.get(key, ()))
                count -= 1
                yield key

    chosen = set(spared(drawn, len(drawn)))
    if len(chosen) < len(drawn):
        first = set(drawn)
        others = [key for key in different if key not in first]
        chosen |= set(spared(rng.sample(others, len(others)), len(drawn) - len(chosen)))
    return chosen


class TextReader(Reader[Row]):
    """Reads texts, or pairs of them, each with an answer: a class, a number.

    Args:
        table: the training rows, for messages.
        text: the column of the text.
        answer: the column of the answer.
        pair: the column of the second text, where there are pairs.

    Attributes:
        option: how `load_task` calls the answer's column.
        answer_noun: what it holds.

    Raises:
        TaskError: a column is not named, or two are the same; the table's columns are listed.
    """

    option: ClassVar[str]
    answer_noun: ClassVar[str]

    def __init__(
        self, table: Table, text: Column | None, answer: Column | None, pair: Column | None
    ) -> None:
        if text is None or answer is None:
            missing = "text" if text is None else self.option
            raise TaskError(
                f"{table.source}: name the column of the {missing} too, such as load_task(…, "
                f"text='sentence', {self.option}='{self.option}'); {table.columns_there()}"
            )
        self._text, self._answer, self._pair = text, answer, pair
        self.columns = (text, answer) if pair is None else (text, pair, answer)
        if len(set(self.columns)) < len(self.columns):
            raise TaskError(
                f"{table.source}: one column is named twice; text, {self.option} and pair differ"
            )

    @abstractmethod
    def answers(self, table: Table) -> list[Any]:
        """Return the rows' answers, None where a row has none."""

    def no_answers(self, answers: Sequence[Any], table: Table) -> Collection[Any]:  # noqa: ARG002
        """Return which of the answers say that nobody knows one: rows with these are left out."""
        return ()

    @abstractmethod
    def example(self, text: str, answer: Any, pair: str | None) -> Row:
        """Make one row."""

    def rows(self, table: Table) -> list[Row]:
        """Return the rows that have texts and an answer; a warning tells how many have not."""
        read = table.texts(self._text)
        pairs: Sequence[str | None] = [None] * len(read)
        named = f"{self._text!r}"
        if self._pair is not None:
            pairs = table.texts(self._pair)
            named += f" or {self._pair!r}"
        kept, unknown = [], 0
        answers = self.answers(table)
        none = self.no_answers(answers, table)
        for number, (text, pair, answer) in enumerate(zip(read, pairs, answers, strict=True), 1):
            if not text.strip() or (pair is not None and not pair.strip()):
                continue
            if answer in none:
                unknown += 1
                continue
            if answer is None:
                lacking = answers.count(None)
                more = f" ({lacking:,} of {len(answers):,} rows have none)" * (lacking > 1)
                raise TaskError(
                    f"{table.place(number)} ({text[:40]!r}) has no {self.answer_noun} in "
                    f"column {self._answer!r}; fill it in, or leave the row out{more}"
                )
            kept.append(self.example(text, answer, pair))
        if not kept:
            lacks = f"a {self.answer_noun}" if unknown else named
            raise TaskError(
                f"{table.source}: every row lacks {lacks}; there is nothing to learn from"
            )
        tables.warn_left_out(table, len(kept) + unknown, named)
        if unknown:
            tables.warn(
                f"{table.source}: {unknown} of {len(table)} rows are marked in {self._answer!r} as "
                f"without a {self.answer_noun} that annotators agreed on, and are left out"
            )
        return kept

    def secret(self, table: Table) -> bool:
        """Return whether a hub split's answers are kept secret."""
        return set(table[self._answer]) <= _SECRET
