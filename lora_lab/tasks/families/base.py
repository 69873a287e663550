"""What a family of tasks must be able to do with a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from lora_lab._util.transformers_private import own_tokenizer
from lora_lab.errors import TaskError
from lora_lab.tasks import intervals
from lora_lab.tasks.base import Task
from lora_lab.tasks.encoding import IGNORED, need_tokenizer
from lora_lab.tasks.generation import evaluating
from lora_lab.tasks.intervals import Interval

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_lab.models.load import LoadedModel

NO_LIMIT = 1 << 20  # tokens


class Lengths(NamedTuple):
    """Tokens of the longest examples: what `budget` calls sequence_length and target_length."""

    read: int  # of a model with one sequence, all of it
    written: int | None = None  # by the decoder of an encoder-decoder model


class Measured(NamedTuple):
    """What one batch came to: the sum of its losses, of how many, and its answers.

    And of each example its own sum, and of how many; () where it is not known.
    """

    loss: float
    size: int
    answers: Sequence[Any] = ()
    each: Sequence[tuple[float, int]] = ()

    @property
    def mean(self) -> float:
        """The mean loss."""
        return self.loss / self.size

    def between(self, name: str) -> dict[str, Interval]:
        """Return {name: the mean loss's 95 % interval}; {} of fewer than two examples."""
        found = intervals.of_mean(self.each)
        return {} if found is None else {name: found}


class Evaluation(NamedTuple):
    """What held-out examples came to: {"loss": mean, and the task's metrics}, and the answers.

    Beside them the 95 % intervals of what is scored, of more than one example.
    """

    scores: dict[str, float]
    answers: Sequence[Any]
    intervals: Mapping[str, Interval] = MappingProxyType({})


class Family(ABC):
    """A task and the model that learns it.

    Args:
        lm: the model, adapted or not, with its tokenizer.
        task: of the family's kind.
        max_length: tokens of an example; what is longer is cut.

    Attributes:
        kind: the tasks that it is for.
        writes: its answers are written token by token.
        packs: it encodes all examples together, into others that hold them.
        smooths: its loss is a cross-entropy, and `loss`, where there is one, takes
            `label_smoothing`.
        tries: what "Try it" does, for people.
        cut_note: what a run notes of examples that were cut.
        loss: (output, labels, num_items_in_batch) → a pass's share of the step's mean loss; None:
            the model's own.
    """

    kind: ClassVar[type[Task]]
    writes: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    smooths: ClassVar[bool] = False
    tries: ClassVar[str] = "one prompt, answered"
    cut_note: ClassVar[str] = "{cut} of {count} {part} examples were cut to {length} tokens"
    loss: Callable[..., Tensor] | None = None

    def __init__(self, lm: LoadedModel, task: Any, max_length: int) -> None:
        self.model: Any = lm.model
        self.tokenizer: PreTrainedTokenizerBase = own_tokenizer(need_tokenizer(lm.tokenizer))
        self.task = task
        self.max_length = max_length

    @classmethod
    def suits(cls, lm: LoadedModel) -> bool:  # noqa: ARG003
        """Return whether it is for such models, of the families of one kind of task."""
        return True

    @classmethod
    @abstractmethod
    def check(cls, lm: LoadedModel, task: Any) -> None:
        """Refuse a model that cannot learn the task.

        Raises:
            ConfigError: why, and what to do.
        """

    @classmethod
    def notes(cls, lm: LoadedModel, task: Any) -> list[str]:  # noqa: ARG003
        """Return what a run is to note of such a model with such a task, a line each."""
        return []

    @classmethod
    def room(cls, lm: LoadedModel) -> int:  # noqa: ARG003
        """Return how many tokens examples are cut to on this model, learned ones included."""
        return NO_LIMIT

    @property
    def rise(self) -> float | None:
        """How far above its first ones a training loss is beyond all noise; None: 10, in nats."""
        return None

    @property
    def chance(self) -> float | None:
        """The loss of one who guesses without reading; None: not known."""
        return None

    @abstractmethod
    def encode(self, examples: Sequence[Any]) -> tuple[Sequence[Mapping[str, Any]], int]:
        """Return examples as tokens, and how many of them were cut.

        Each has "input_ids" and "labels".

        Raises:
            TaskError: an example that cannot be encoded.
        """

    def encode_each(self, examples: Sequence[Any]) -> list[Mapping[str, Any] | None]:
        """Return examples as tokens, each by itself also where the family packs.

        None stands for one that holds nothing to learn.

        Raises:
            TaskError: one that cannot be encoded.
        """
        return list(self.encode(examples)[0])

    def cut(
        self,
        examples: Sequence[Any],
        whole: Sequence[Mapping[str, Any]],  # noqa: ARG002
    ) -> list[Mapping[str, Any] | None]:
        """Return what `encode` makes of examples that are too long; None where it would raise.

        Args:
            examples: any.
            whole: the same, encoded without a limit.
        """
        return encoded_apart(self, examples)

    @abstractmethod
    def collate(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        """Return encoded examples as one padded batch: what the model takes."""

    def longest(self, encoded: Sequence[Mapping[str, Any]]) -> Lengths:
        """Return what a batch is padded to at most."""
        return Lengths(max(len(item["input_ids"]) for item in encoded))

    def most_labels(self, encoded: Sequence[Mapping[str, Any]]) -> int | None:
        """Return how many tokens of an example have a label at most; None: not of tokens."""
        if not self.writes:
            return None
        return max(sum(label != IGNORED for label in item["labels"]) for item in encoded)

    @abstractmethod
    def measure(self, batch: dict[str, Tensor]) -> Measured:
        """Return a batch's summed loss, and its answers where they come with it; no gradients."""

    def evaluate(
        self,
        examples: Sequence[Any],
        batches: Iterable[dict[str, Tensor]],
        should_stop: Callable[[], bool],
    ) -> Evaluation | None:
        """Score the model as it stands.

        Args:
            examples: what is scored.
            batches: the same, encoded, on the model's device.
            should_stop: asked between batches and tokens.

        Returns:
            None where `should_stop` ended it.
        """
        measured = self.measure_all(batches, should_stop)
        if measured is None:
            return None
        answers = measured.answers
        if self.writes:
            answers = self.write(examples, should_stop)
        if len(answers) < len(examples):
            return None
        scores = {"loss": measured.mean, **self.task.score(answers, examples)}
        between = self.task.intervals(answers, examples)
        return Evaluation(scores, answers, measured.between("loss") | between)

    def evaluate_quickly(
        self,
        examples: Sequence[Any],
        batches: Iterable[dict[str, Tensor]],
        should_stop: Callable[[], bool],
    ) -> Evaluation | None:
        """Score as `evaluate` does, without intervals, nor what is written token by token."""
        measured = self.measure_all(batches, should_stop)
        if measured is None:
            return None
        answers = measured.answers
        scores = {} if len(answers) < len(examples) else self.task.score(answers, examples)
        return Evaluation({"loss": measured.mean, **scores}, answers)

    def measure_all(
        self, batches: Iterable[dict[str, Tensor]], should_stop: Callable[[], bool]
    ) -> Measured | None:
        """Return what all batches came to together; None where `should_stop` ended it."""
        loss, size = 0.0, 0
        answers: list[Any] = []
        each: list[tuple[float, int]] = []
        with evaluating(self.model), torch.no_grad():
            for batch in batches:
                if should_stop():
                    return None
                measured = self.measure(batch)
                loss, size = loss + measured.loss, size + measured.size
                answers += measured.answers
                each += measured.each
        return Measured(loss, size, answers, each)

    def write(self, examples: Sequence[Any], should_stop: Callable[[], bool]) -> list[str]:
        """Return the model's answers, fewer after a stop. Only of a family that `writes`."""
        raise NotImplementedError

    def decoding(self, examples: Sequence[Any]) -> dict[str, Any]:  # noqa: ARG002
        """Return how answers to examples are written, for the record; {} where none are."""
        return {}

    def short_of_room(self, examples: Sequence[Any]) -> str:  # noqa: ARG002
        """Return a line on prompts that are cut so that an answer has room; "" where none is."""
        return ""

    @abstractmethod
    def sample(self, example: Any) -> tuple[str, tuple[str, ...]]:
        """Return what people read of an example: what the model sees, and the right answers."""

    def shown(self, answer: Any) -> str:
        """Return an answer as people read it."""
        return str(answer)

    @abstractmethod
    def answer(self, text: str, max_new_tokens: int) -> str:
        """Return what the model makes of a text that somebody typed, as people read it.

        Raises:
            TaskError: the text cannot be encoded.
        """


def encoded_apart(family: Family, examples: Sequence[Any]) -> list[Mapping[str, Any] | None]:
    """Encode examples by themselves; None for each one that cannot be, or holds nothing to learn.

    Those that can be are many as a rule, and tokenized together: halves of halves find the others.
    """
    try:
        return family.encode_each(examples)
    except TaskError:
        if len(examples) == 1:
            return [None]
        middle = len(examples) // 2
        return [
            *encoded_apart(family, examples[:middle]),
            *encoded_apart(family, examples[middle:]),
        ]


FAMILIES: list[type[Family]] = []
FamilyType = TypeVar("FamilyType", bound=type[Family])


def register_family(family: FamilyType) -> FamilyType:
    """Have runs, forecasts and the workbench know a family; the latest one for a task is taken."""
    FAMILIES.insert(0, family)
    return family
