"""What a run's model keeps of what its base could: the loss on text that the run does not teach.

The base model writes the text itself, before the first step; see `lora_lab.tasks.own_text`. Its
loss there is the least that any model has on average, and what the adapted model's lies above it
has been lost, in nats per token. "kept_loss" stands beside each score of the held-out examples:
before, in each evaluation, after. "kept_data_loss" is the loss on data that was named for it, such
as an earlier task's. All runs of a base are measured on the same text, and no step of a run, nor
any random number of it, is another one for it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lora_lab._util.devices import on_device_of
from lora_lab.anatomy.vocabulary import embedded_rows
from lora_lab.errors import ConfigError, LoraLabError, TaskError, as_cause
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.encoding import Encoded
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.families.base import Family
from lora_lab.tasks.families.language_modeling import LanguageModeling, LanguageModelingTask
from lora_lab.tasks.intervals import Interval, Sums, of_rise
from lora_lab.tasks.load import load_task
from lora_lab.tasks.metrics import KEPT, KEPT_DATA
from lora_lab.tasks.own_text import as_text, why_no_text, write_texts
from lora_lab.tasks.too_long import fit_examples
from lora_lab.training import processes
from lora_lab.training.data import run_family

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.training.run import Run

_TOKENS = 32  # of each text
_ROWS = 32  # of the data that was named


@dataclass
class Part:
    """Something that a run's model is measured on.

    Attributes:
        family: measures it.
        rows: encoded.
        name: of the data; "" of the base model's own text.
        of: how many rows the data has; of texts, how many are to be written.
        before: what each row cost the base model.
    """

    family: Family
    rows: Sequence[Mapping[str, Any]]
    name: str = ""
    of: int = 0
    before: Sums = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """A hash of the rows."""
        return hashlib.sha256(repr(list(map(dict, self.rows))).encode()).hexdigest()


def kept_parts(run: Run) -> dict[str, Part]:
    """Return {metric: what a run that is to start measures it on}; {} where it scores nothing.

    What is not measured though one might look for it is noted.

    Raises:
        ConfigError: `kept_data` is not for this model, or the run scores no held-out examples.
        TaskError: it cannot be read.
    """
    lm, task, training = run.lm, run.task, run.training
    learned_tokens = sum(config.tokens for config in run.configs)
    found: dict[str, Part] = {}
    if training.kept_data is not None:
        try:
            part = _data(lm, task, training, learned_tokens)
        except LoraLabError as error:
            if run.resumes is None:
                raise
            run.notes.append(f"{error}; the loss on it is not measured any more")
        else:
            found[KEPT_DATA.name] = part
            if len(part.rows) < part.of and not part.family.packs:
                run.notes.append(
                    f"kept_data: {len(part.rows)} of {part.of:,} examples are measured"
                )
    if not training.kept_texts or not _scores(task, training):
        return found
    assert lm.tokenizer is not None, "tasks need one"
    why = why_no_text(lm.model, lm.tokenizer)
    if not why:
        length = min(_TOKENS + 1, LanguageModeling.room(lm) - learned_tokens)
        own = LanguageModelingTask("the base model's own text", True, (), ())
        family = LanguageModeling(lm, own, max(2, length))
        return {KEPT.name: Part(family, [], of=training.kept_texts), **found}
    if training.kept_data is None:
        run.notes.append(
            f"what training keeps of the base model is not measured: {why}; kept_data=… names data "
            "for it"
        )
    return found


def _scores(task: Task, training: TrainingConfig) -> bool:
    return bool(len(task.validation[: training.eval_examples]))


def _data(lm: LoadedModel, task: Task, training: TrainingConfig, learned_tokens: int) -> Part:
    name = training.kept_data
    if not _scores(task, training):
        none = "eval_examples is 0" if len(task.validation) else f"{task.name} has none"
        raise ConfigError(
            f"kept_data={name!r} is measured with the held-out examples, and {none}; leave it out, "
            "or give the run some"
        )
    try:
        found: Task = load_task(name)
        family_of(found, lm).check(lm, found)
        family = run_family(lm, found, training, learned_tokens)
        rows = [*found.validation, *found.train]
        encoded = _encoded(family, rows[:_ROWS])[:_ROWS]
    except LoraLabError as error:
        raise type(error)(f"kept_data={name!r}: {error}") from as_cause(error)
    if not encoded:
        raise TaskError(
            f"kept_data={name!r}: none of its first {len(rows[:_ROWS])} examples fits "
            f"max_length={training.max_length}; raise it"
        )
    return Part(family, encoded, found.name, len(rows))


def _encoded(family: Family, rows: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
    if family.packs:
        return family.encode(rows)[0]
    return [item for found in fit_examples(family, rows, "cut") for item in found.encoded]


class Kept:
    """Measures it for one run, on the run's thread.

    Args:
        model: adapted or not.
        parts: what `kept_parts` returned.
        training: how it is trained.
        notes: get a line on what cannot be measured after all.
        should_stop: asked between batches and tokens; it may wait (a pause).

    Attributes:
        intervals: the 95 % intervals of the latest scores.
        rises: those of how far they lie above the base model's.
        seconds: that the latest measurement took.
    """

    def __init__(
        self,
        model: Any,
        parts: Mapping[str, Part],
        training: TrainingConfig,
        notes: list[str],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model, self._parts, self._training = model, dict(parts), training
        self._notes, self._should_stop = notes, should_stop
        self.intervals: dict[str, Interval] = {}
        self.rises: dict[str, Interval] = {}
        self.seconds = 0.0

    def what(self) -> Any:
        """Return all that the base's scores hang on beside the model, to be compared."""
        data = self._parts.get(KEPT_DATA.name)
        return [*self._parts], self._training.kept_texts, data and data.fingerprint

    def begin(self, enter: Callable[[str], None]) -> dict[str, float] | None:
        """Have the model write, if it does, and measure it; it is to be the base as it stands.

        Args:
            enter: told what is done.

        Returns:
            The scores, or None where `should_stop` ended it.
        """
        if (part := self._parts.get(KEPT.name)) is not None:
            enter("the base model writes text, to measure what is kept")
            model, tokenizer = part.family.model, part.family.tokenizer
            length = part.family.max_length - 1
            try:
                written = write_texts(model, tokenizer, part.of, length, self._should_stop)
            except TaskError as error:
                self._notes.append(f"what training keeps is not measured: {error}")
                del self._parts[KEPT.name]
            else:
                if not written:
                    return None
                part.rows = processes.from_main(lambda: written)
        for one in self._parts.values():
            one.before = []
        return self.measure()

    def measure(self) -> dict[str, float] | None:
        """Return {"kept_loss": …, "kept_data_loss": …} of the model as it stands.

        None where `should_stop` ended it.
        """
        scores: dict[str, float] = {}
        self.intervals, self.rises, begun = {}, {}, time.monotonic()
        for name, part in self._parts.items():
            found = part.family.measure_all(self._batches(part), self._should_stop)
            if found is None:
                return None
            scores[name] = found.mean
            self.intervals |= found.between(name)
            rise = of_rise(part.before, found.each) if part.before else None
            part.before = part.before or list(found.each)
            if rise is not None:
                self.rises[name] = rise
        self.seconds = time.monotonic() - begun
        return scores

    def _batches(self, part: Part) -> Iterator[dict[str, Tensor]]:
        size = self._training.per_device_train_batch_size
        for start in range(0, len(part.rows), size):
            batch = part.family.collate(part.rows[start : start + size])
            yield on_device_of(self._model, batch)

    def summary(self) -> dict[str, Any]:
        """Return what a run's summary says of it; {} where nothing is measured."""
        found: dict[str, Any] = {}
        if (own := self._parts.get(KEPT.name)) is not None and own.rows:
            tokens = sum(len(row["input_ids"]) - 1 for row in own.rows)
            found |= {"texts": len(own.rows), "tokens": tokens}
        if (data := self._parts.get(KEPT_DATA.name)) is not None:
            found |= {"data": data.name, "examples": len(data.rows), "of": data.of}
        return {"kept": found} if found else {}

    def state(self) -> dict[str, Any]:
        """Return what `load_state` takes: numbers, and containers of them."""
        return {
            name: {
                "texts": [list(row["input_ids"]) for row in part.rows] if name == KEPT.name else [],
                "data": "" if name == KEPT.name else part.fingerprint,
                "before": [list(pair) for pair in part.before],
            }
            for name, part in self._parts.items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned: on the same text, whatever the base would write now.

        Args:
            state: {} of a run that measured nothing; then nothing is.

        Raises:
            ValueError: texts that the model cannot read.
        """
        for name, part in list(self._parts.items()):
            told = state.get(name)
            if told is None or (name == KEPT.name and not told["texts"]):
                del self._parts[name]  # nothing was written
            elif name == KEPT.name:
                part.rows = [self._text(ids) for ids in told["texts"]]
                part.before = told["before"]
            elif told["data"] == part.fingerprint:
                part.before = told["before"]
            else:
                del self._parts[name]
                self._notes.append(
                    f"kept_data={self._training.kept_data!r} has other rows than when the run "
                    "began; its loss is not measured any more"
                )
            if part.before and len(part.before) != len(part.rows):
                raise ValueError(f"{name} has {len(part.before)} scores of {len(part.rows)} rows")

    def _text(self, ids: Sequence[int]) -> Encoded:
        rows = embedded_rows(self._model)
        if len(ids) < 2 or (rows is not None and max(ids) >= rows):
            raise ValueError("a text of the base model's has tokens that it does not know")
        return as_text(list(ids))
