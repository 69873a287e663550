"""Texts alone: every token is learned, as in continued pre-training.

All of it is here: how texts are read from tables, and how a model learns them. As in transformers'
run_clm.py the texts are put end to end in their order, each closed by the end-of-sequence token,
and cut into blocks of `max_length` tokens; what is left at the end is a shorter block. A block is
an example of a step: it may begin in the midst of a text, and hold several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lora_lab.errors import ConfigError, TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.base import Task
from lora_lab.tasks.encoding import Encoded, collate, need_end, no_tokenizer, pad_id
from lora_lab.tasks.families.base import Evaluation, Family, Measured, register_family
from lora_lab.tasks.forms import columns_in, is_form, written
from lora_lab.tasks.generation import generate, positions
from lora_lab.tasks.metrics import PERPLEXITY, Metric
from lora_lab.tasks.own_loss import losses_by_row
from lora_lab.tasks.reading import Reader, Rows
from lora_lab.tasks.sequence_ends import without_begin, without_end
from lora_lab.tasks.table import Column, Table

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel

_SHOWN = 100  # letters of a text that are continued when it is tried
_LARGEST = 700.0  # nats whose exponential is a float still


@dataclass(frozen=True)
class LanguageModelingTask(Task):
    """Texts of which every token is learned; see `Task`. An example is a text."""

    name: str
    synthetic: bool
    train: Sequence[str] = field(repr=False)
    validation: Sequence[str] = field(repr=False)
    test: Sequence[str] = field(default=(), repr=False)
    metrics: tuple[Metric, ...] = field(default=(PERPLEXITY,), repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def reference(self, example: str) -> str:
        """Return the text."""
        return example

    def input_text(self, example: str) -> str:
        """Return how the text begins."""
        return example[:_SHOWN]

    def score(self, predictions: Any, examples: Any) -> dict[str, float]:  # noqa: ARG002
        """Raise `TaskError`: a text alone has no answer."""
        raise TaskError(
            f"{self.name} is texts alone; their perplexity is measured in a run, no answer to them "
            "is scored"
        )

    def _sizes(self) -> str:
        return f"{super()._sizes()} texts"


class DocumentReader(Reader[str]):
    """Reads one column of texts, or a format of several."""

    def __init__(self, table: Table, text: Column) -> None:
        self._text = text
        self.columns = columns_in(str(text)) if is_form(text) else (text,)
        answers = [name for name in ("label", "target") if name in table.columns and name != text]
        if answers:
            tables.warn(
                f"{table.source}: all tokens of column {text!r} are learned, and column "
                f"{answers[0]!r} is not read; {answers[0]}={answers[0]!r} makes it the answer"
            )

    def rows(self, table: Table) -> list[str]:
        """Return the texts that are there; a warning tells how many are not."""
        kept = [text for text in written(self._text, table) if text.strip()]
        if not kept:
            raise TaskError(
                f"{table.source}: every row lacks {self._text!r}; there is nothing to learn from"
            )
        tables.warn_left_out(table, len(kept), repr(self._text))
        return kept

    def key(self, row: str) -> str:
        """Return the text."""
        return row

    def task(self, name: str, train: Rows, validation: Rows, test: Rows) -> LanguageModelingTask:
        """Make the task."""
        return LanguageModelingTask(name, False, tuple(train), tuple(validation), tuple(test))


@register_family
class LanguageModeling(Family):
    """A decoder, and texts of which it learns every token."""

    kind = LanguageModelingTask
    packs = True
    smooths = True
    tries = "the beginning of a text, continued"

    @classmethod
    def check(cls, lm: LoadedModel, task: LanguageModelingTask) -> None:
        """Refuse a model that does not write text, or that reads it by an encoder first."""
        model, name = lm.model, lm.card.name
        seq2seq = getattr(model.config, "is_encoder_decoder", False)
        reads = model.main_input_name == "input_ids"
        if seq2seq or not reads or not model.can_generate():
            raise ConfigError(
                f"{name} ({type(model).__name__}) is no decoder of text, and {task.name} is texts "
                "alone, of which every token is learned; use a language model such as smollm2-135m"
            )
        if lm.tokenizer is None:
            raise ConfigError(no_tokenizer(name))

    @classmethod
    def room(cls, lm: LoadedModel) -> int:
        """Return how many tokens a block may have."""
        return positions(lm.model)

    @property
    def chance(self) -> float | None:
        """The loss of one who holds every token for equally likely, in nats."""
        return math.log(self.model.get_input_embeddings().weight.shape[0])

    def encode(self, examples: Sequence[str]) -> tuple[Sequence[Any], int]:
        """Return the texts end to end as blocks of `max_length` tokens; none is cut off."""
        ids = list(chain.from_iterable(self._texts(examples)))
        starts = range(0, len(ids), self.max_length)
        blocks = [ids[start : start + self.max_length] for start in starts]
        return [_block(ids) for ids in blocks if len(ids) > 1], 0

    def encode_each(self, examples: Sequence[str]) -> list[Any]:
        """Return each text with its end; see `Family.encode_each`."""
        return [_block(ids) if len(ids) > 1 else None for ids in self._texts(examples)]

    def _texts(self, examples: Sequence[str]) -> Iterator[list[int]]:
        """Yield each text's tokens and the end of sequence."""
        tokenizer, end = self.tokenizer, need_end(self.tokenizer)
        start, texts = [tokenizer.bos_token_id], list(examples)
        begun = [without_begin(text, tokenizer.bos_token) for text in texts]
        bare = [without_end(text, tokenizer.eos_token) for text in begun]
        found = tokenizer(bare, verbose=False)["input_ids"] if bare else []
        for ids, text, own in zip(found, texts, begun, strict=True):
            first = start if own != text and ids[:1] != start else []
            yield [*first, *ids] if ids[-1:] == [end] else [*first, *ids, end]

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad to a batch; see `encoding.collate`."""
        return collate(batch, pad_id(self.tokenizer))

    def measure(self, batch: dict[str, Tensor]) -> Measured:
        """Return the sum over the batch's tokens but each block's first, and how many they are."""
        loss, size, each = losses_by_row(self.model, batch)
        return Measured(loss, size, each=each)

    def evaluate(
        self,
        examples: Sequence[str],  # noqa: ARG002
        batches: Iterable[dict[str, Tensor]],
        should_stop: Callable[[], bool],
    ) -> Evaluation | None:
        """Measure the mean loss of a token, and its exponential; see `Family.evaluate`."""
        measured = self.measure_all(batches, should_stop)
        if measured is None:
            return None
        between = measured.between("loss")
        if between:
            low, high = map(_perplexity, between["loss"])
            between["perplexity"] = low, high
        scores = {"loss": measured.mean, "perplexity": _perplexity(measured.mean)}
        return Evaluation(scores, (), between)

    def evaluate_quickly(
        self,
        examples: Sequence[str],
        batches: Iterable[dict[str, Tensor]],
        should_stop: Callable[[], bool],
    ) -> Evaluation | None:
        """Measure the same."""
        return self.evaluate(examples, batches, should_stop)

    def sample(self, example: str) -> tuple[str, tuple[str, ...]]:
        """Return how the text begins, and how it goes on."""
        return example[:_SHOWN], (example[_SHOWN:],)

    def answer(self, text: str, max_new_tokens: int) -> str:
        """Continue a text greedily."""
        return generate(self.model, self.tokenizer, [text], max_new_tokens=max_new_tokens)[0]


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < _LARGEST else math.inf


def _block(ids: list[int]) -> Encoded:
    """Return tokens that are all learned but the first, which none predicts."""
    return Encoded(input_ids=ids, labels=list(ids), cut=0)
