"""Prompt → completion: what its examples are, and how they are read from tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.base import Task
from lora_lab.tasks.decoding import GREEDY, Decoding
from lora_lab.tasks.framing import LINE, check_template, default_template, framed, name_template
from lora_lab.tasks.metrics import OF_E2E, OF_TEXTS, Metric
from lora_lab.tasks.reading import Reader
from lora_lab.tasks.table import Column, Table


@dataclass(frozen=True)
class Example:
    """One prompt with the completion to learn, and every completion that counts as right.

    Attributes:
        prompt: as the data has it; `GenerationTask.prompt_text` makes of it what the model sees.
        completion: what the model learns to write.
        references: what its answer is scored against; `completion` is one of them.
    """

    prompt: str
    completion: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class GenerationTask(Task):
    """Prompt → completion; see `Task`. The held-out parts have one example a prompt.

    Attributes:
        template: what stands around a prompt: "chat" (one turn of the user and one of the
            assistant, in the model's chat template), "plain" (the text as it stands in the data),
            or a text with {prompt} in it.
        decoding: how answers that are scored are decoded.
    """

    name: str
    synthetic: bool
    train: Sequence[Example] = field(repr=False)
    validation: Sequence[Example] = field(repr=False)
    test: Sequence[Example] = field(default=(), repr=False)
    metrics: tuple[Metric, ...] = field(default=OF_TEXTS, repr=False)
    template: str = LINE
    decoding: Decoding = field(default=GREEDY, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        check_template(self.template)

    @property
    def framing(self) -> str:
        """What stands around a prompt, for people."""
        return name_template(self.template)

    def prompt_text(self, prompt: str) -> str:
        """Return exactly what the model sees before the completion.

        By default the prompt on a line of its own: no model's chat template, so that one adapter's
        training text is the same for every model, and the completion starts a line, at a token
        boundary. Of "chat" it is the user's turn, which the model's chat template frames.
        """
        return framed(self.template, prompt)

    def reference(self, example: Example) -> tuple[str, ...]:
        """Return every completion that counts as right."""
        return example.references

    def unusable(self, example: Example) -> str:
        """Return why an answer cannot be scored: there is no right one."""
        return "" if any(map(str.strip, example.references)) else "it has no reference"

    def input_text(self, example: Example) -> str:
        """Return the prompt as the data has it."""
        return example.prompt

    def _sizes(self) -> str:
        return f"{super()._sizes()} prompts"


# A prompt with one completion: a plain tuple, since the garbage collector lets go of those that
# hold texts alone, and going through 300,000 of another type takes it as long as all else takes.
Row = tuple[str, str]


class Examples(Sequence[Example]):
    """Like the tuple of the rows' examples, each made when it is asked for; see `Row`."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: Any) -> Any:
        rows: Any = self._rows[at]
        return tuple(map(_example, rows)) if isinstance(at, slice) else _example(rows)

    def __iter__(self) -> Iterator[Example]:
        return map(_example, self._rows)

    def __add__(self, other: Sequence[Example]) -> tuple[Example, ...]:
        return (*self, *other)

    def __radd__(self, other: Sequence[Example]) -> tuple[Example, ...]:
        return (*other, *self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Examples):
            return self._rows == other._rows
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def _example(row: Row) -> Example:
    prompt, completion = row
    return Example(prompt, completion, (completion,))


class PromptReader(Reader[Row]):
    """Reads the columns of prompts and completions.

    Raises:
        TaskError: one is not named; the table's columns are listed.
    """

    noun = "prompt"

    def __init__(
        self,
        table: Table,
        prompt: Column | None,
        completion: Column | None,
        template: str | None = None,
    ) -> None:
        if template is not None:
            check_template(template)
        self._template = template
        if prompt is None or completion is None:
            raise TaskError(
                f"{table.source}: name the columns to read, such as load_task(…, prompt='mr', "
                "completion='ref'), or text='sentence', label='label' for classes; "
                f"{table.columns_there()}"
            )
        if prompt == completion:
            raise TaskError(
                f"{table.source}: prompt and completion are one column, {prompt!r}; name two"
            )
        self.columns = (prompt, completion)

    def rows(self, table: Table) -> list[Row]:
        """Return the rows that have both; a warning tells how many have not."""
        read = [table.texts(column) for column in self.columns]
        pairs: Iterable[Row] = zip(read[0], read[1], strict=True)
        if not all(all(map(str.strip, texts)) for texts in read):
            pairs = (texts for texts in pairs if all(map(str.strip, texts)))
        kept = list(pairs)
        first, second = self.columns
        if not kept:
            raise TaskError(
                f"{table.source}: no row has both {first!r} and {second!r}; there is nothing to "
                "learn from"
            )
        tables.warn_left_out(table, len(kept), f"{first!r} or {second!r}")
        return kept

    def key(self, row: Row) -> str:
        """Return the prompt: no prompt shall be on both sides."""
        return row[0]

    def held_out(self, rows: Sequence[Row]) -> list[Example]:
        """Make one example a prompt, every different completion a reference."""
        completions: dict[str, dict[str, None]] = {}
        for prompt, completion in rows:
            completions.setdefault(prompt, {})[completion] = None
        return [
            Example(prompt, next(iter(texts)), tuple(texts))
            for prompt, texts in completions.items()
        ]

    def task(
        self,
        name: str,
        train: Sequence[Row],
        validation: Sequence[Example],
        test: Sequence[Example],
    ) -> GenerationTask:
        """Make the task."""
        return GenerationTask(
            name,
            False,
            Examples(train),
            tuple(validation),
            tuple(test),
            OF_E2E if self.columns == ("mr", "ref") else OF_TEXTS,
            template=self._template or default_template(train, name),
        )
