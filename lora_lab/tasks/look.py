"""A look at a task before the first step: how long its examples are, and what seems wrong."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_lab._util.format import format_share
from lora_lab._util.tables import Table
from lora_lab.anatomy.model_config import position_limit
from lora_lab.anatomy.vocabulary import embedded_rows, vocabulary_line
from lora_lab.errors import TaskError
from lora_lab.redaction import shown_redacted
from lora_lab.tasks.base import Task
from lora_lab.tasks.classification import ClassificationTask
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.families.base import NO_LIMIT, Family
from lora_lab.tasks.findings import Finding, Parts, read, text_findings
from lora_lab.tasks.token_findings import Token, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_lab.models.load import LoadedModel

SAMPLE = 50_000  # training examples that are tokenized at most
_PERCENTILES = 50, 90, 99
_BARS = 12  # of the histogram
_WIDTH = 30  # letters of the longest bar


class Bar(NamedTuple):
    """So many examples have from `start` to `end` tokens, both included."""

    start: int
    end: int
    examples: int


@shown_redacted
@dataclass(frozen=True)
class Look:
    """What a task's examples look like to a model.

    Attributes:
        task: its name.
        rows: {"training": how many, "validation": …, "test": …}.
        max_length: what lengths were compared with.
        lengths: {tokens: training examples of so many}; of an encoder-decoder model, on the
            longer of the two sides.
        sample: training examples that were tokenized; where they are fewer than there are, all
            that is said of tokens is said of these.
        too_long: of those, longer than `max_length`.
        left_out: of those, the ones that cannot be cut: what is learned of them is too long.
        would_do: the `max_length` that takes every example whole.
        classes: {class: {part: how many}}; empty where there are none.
        first: the first training example as tokens.
        findings: what to look at, the worst first.
    """

    task: str
    rows: Mapping[str, int]
    max_length: int
    lengths: Mapping[int, int]
    sample: int
    too_long: int
    left_out: int
    would_do: int
    classes: Mapping[str, Mapping[str, int]]
    first: tuple[Token, ...]
    findings: tuple[Finding, ...]

    def percentile(self, percent: float) -> int:
        """Return the length that so many percent of the examples do not exceed."""
        wanted, seen = percent / 100 * self.sample, 0
        for length, count in sorted(self.lengths.items()):
            seen += count
            if seen >= wanted:
                return length
        return 0

    def histogram(self) -> list[Bar]:
        """Return the lengths, shortest to longest, in at most 12 bars of one width."""
        if not self.lengths:
            return []
        least = min(self.lengths)
        width = -(-(self.would_do - least + 1) // _BARS)
        counts: Counter[int] = Counter()
        for length, count in self.lengths.items():
            counts[(length - least) // width] += count
        starts = [least + n * width for n in range(max(counts) + 1)]
        return [Bar(start, start + width - 1, counts[n]) for n, start in enumerate(starts)]

    def is_over(self, bar: Bar) -> bool:
        """Whether a bar's examples are too long. Put end to end (texts alone), none is."""
        return self.too_long > 0 and bar.start > self.max_length

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        found = asdict(self) | {"first": [token._asdict() for token in self.first]}
        found["lengths"] = {str(length): count for length, count in self.lengths.items()}
        found["percentiles"] = {str(p): self.percentile(p) for p in _PERCENTILES}
        return found

    def summary(self) -> list[str]:
        """Return rows and lengths in a few lines."""
        rows = ", ".join(f"{count:,} {part}" for part, count in self.rows.items() if count)
        shares = ", ".join(f"{p} % up to {self.percentile(p):,}" for p in _PERCENTILES)
        lines = [f"{self.task}: {rows}"]
        if self.sample < self.rows["training"]:
            share = format_share(self.sample, self.rows["training"])
            lines.append(f"tokens counted over a sample of {self.sample:,} examples ({share})")
        lines.append(f"tokens an example: {shares}, the longest {self.would_do:,}")
        if self.classes:
            shown = [f"{name} {sum(parts.values()):,}" for name, parts in self.classes.items()]
            lines.append(f"classes: {', '.join(shown[:12])}{', …' if len(shown) > 12 else ''}")
        return lines

    def __str__(self) -> str:
        first = "".join(f"⟦{t.text}⟧" if t.learned else t.text for t in self.first)
        return "\n".join(
            [
                *self.summary(),
                *self._bars(),
                "",
                "the first example, what is learned of it in ⟦…⟧:",
                first.replace("⟧⟦", "·"),
                "",
                *self._found(),
            ]
        )

    def _bars(self) -> list[str]:
        bars = self.histogram()
        most = max((bar.examples for bar in bars), default=0)
        lines = []
        for bar in bars:
            drawn = "█" * -(-_WIDTH * bar.examples // most)
            behind = "  over max_length" if self.is_over(bar) else ""
            lines.append(
                f"  {bar.start:>7,}–{bar.end:<7,} {drawn:<{_WIDTH}} {bar.examples:>7,}{behind}"
            )
        return lines

    def _found(self) -> list[str]:
        if not self.findings:
            return ["nothing to fix was found"]
        return [f"{finding.severity}: {finding}" for finding in self.findings]

    def _repr_html_(self) -> str:
        """Return the same for a notebook; a figure of the lengths is `figures.lengths_figure`."""
        summary = "".join(f"<div>{escape(line)}</div>" for line in self.summary())
        bars = [(f"{b.start:,}–{b.end:,}", f"{b.examples:,}") for b in self.histogram()]
        lengths = Table(("tokens", "examples"), tuple(bars), frozenset({"tokens", "examples"}))
        first = "".join(
            f"<mark>{escape(t.text)}</mark>" if t.learned else escape(t.text) for t in self.first
        )
        found = "".join(f"<li>{escape(line)}</li>" for line in self._found())
        style = "white-space:pre-wrap;max-height:20em;overflow:auto"
        return (
            f"<div>{summary}{lengths._repr_html_()}<div>the first example, learned tokens "
            f'marked:</div><pre style="{style}">{first}</pre><ul>{found}</ul></div>'
        )


def look(task: Task, model: LoadedModel | PreTrainedTokenizerBase, max_length: int = 128) -> Look:
    """See `Task.look`."""
    if max_length < 1:
        raise TaskError(f"max_length is {max_length}; it must be at least 1 token")
    lm: Any = _loaded(model)
    kind = family_of(task, lm)
    limit = position_limit(lm.model) if lm is model else None
    room = NO_LIMIT if limit is None else kind.room(lm)
    family = kind(lm, task, min(max_length, room))
    parts = {"training": task.train, "validation": task.validation, "test": task.test}
    texts = {part: [read(task, example) for example in rows] for part, rows in parts.items()}
    places: Sequence[int] = range(len(task.train))
    if len(places) > SAMPLE:
        places = sorted(random.Random("look").sample(places, SAMPLE))
    tokens = Tokens(family, task.train, places)
    found = [
        *text_findings(task, texts, tokens.cut_at_one_length()),
        *tokens.findings(limit),
    ]
    if lm is model:
        found += _of_the_model(lm.model, family, tokens.highest, max_length, limit)
    order = ("error", "warning", "note")
    return Look(
        task=task.name,
        rows={part: len(rows) for part, rows in parts.items()},
        max_length=family.max_length,
        lengths=dict(sorted(Counter(tokens.lengths).items())),
        sample=len(places),
        too_long=len(tokens.long),
        left_out=len(tokens.left_out),
        would_do=max(tokens.lengths, default=0),
        classes=_classes(task, texts),
        first=tokens.first,
        findings=tuple(sorted(found, key=lambda finding: order.index(finding.severity))),
    )


def _loaded(model: Any) -> Any:
    """Return a model with its tokenizer; of a tokenizer alone a stand-in, which is a decoder."""
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    if not isinstance(model, PreTrainedTokenizerBase):
        if not hasattr(model, "tokenizer") or not hasattr(model, "model"):
            kind = type(model).__name__
            raise TaskError(f"look takes a tokenizer, or what load_model returns, and not {kind}")
        return model
    return SimpleNamespace(model=SimpleNamespace(config=PretrainedConfig()), tokenizer=model)


def _classes(task: Task, texts: Parts) -> dict[str, dict[str, int]]:
    if not isinstance(task, ClassificationTask):
        return {}
    counts = {part: Counter(row.answer for row in rows) for part, rows in texts.items()}
    return {
        label: {part: found[label] for part, found in counts.items() if found}
        for label in task.labels
    }


def _of_the_model(
    model: Any, family: Family, highest: int, max_length: int, limit: int | None
) -> Iterator[Finding]:
    """Yield what does not go together with the model."""
    if limit is not None and max_length > limit:
        text = f"max_length={max_length} is more than the {limit} positions of the model"
        yield Finding("positions", "error", 0, text, f"use a max_length of at most {limit}")
    rows = embedded_rows(model)
    if rows is None:
        return
    pad = family.tokenizer.pad_token_id
    if max(highest, -1 if pad is None else pad) >= rows:
        text, _, fix = vocabulary_line(family.tokenizer, rows).partition("; ")
        yield Finding("vocabulary", "error", 0, text, fix)
    elif 2 * len(family.tokenizer) < rows:
        text = f"the tokenizer has {len(family.tokenizer)} tokens and the model embeds {rows}"
        yield Finding("vocabulary", "warning", 0, text, "look whether it is the model's own")
