"""`advise`: from model, data and memory to a method and its settings, each with its source."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.format import format_bytes
from lora_lab._util.tables import Table
from lora_lab.advice import rules
from lora_lab.advice.facts import Facts, read_facts
from lora_lab.advice.layers import cost
from lora_lab.advice.rules import Recommendation
from lora_lab.anatomy.types import Anatomy, Site
from lora_lab.budget.costs import Budget
from lora_lab.budget.forecast import budget
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.full.config import FullConfig
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.targets import resolve_targets
from lora_lab.methods.plain import method_to_dict
from lora_lab.redaction import shown_redacted
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training.gpu_memory import largest_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task
    from lora_lab.tasks.load import Data

_SHARE = 0.9  # of the memory that is planned with: allocators and libraries take the rest
_WIDTH = 96  # letters of a line


@shown_redacted
@dataclass(frozen=True, repr=False)
class Advice:
    """A method and its settings; printed, or as the last line of a cell, it shows itself.

    >>> advice = ll.advise(lm, "mini-e2e")
    >>> ll.train(lm, "mini-e2e", advice.config, **advice.training)

    Attributes:
        facts: that it was given for.
        recommendations: one a setting, each with the finding and the source that it rests on.
        config: the method's.
        training: fields of `TrainingConfig`.
        budget: what it costs; see `lora_lab.budget`.
        fits: whether that is within the memory; None: nobody knows how much there is.
        notes: what people should know besides.
    """

    facts: Facts
    recommendations: tuple[Recommendation, ...]
    config: MethodConfig
    training: Mapping[str, Any]
    budget: Budget
    fits: bool | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "facts": self.facts.to_json(),
            "advice": [
                {
                    "setting": each.setting,
                    "value": list(each.value) if isinstance(each.value, tuple) else each.value,
                    "finding": each.finding,
                    "source": each.source,
                    "heuristic": each.heuristic,
                }
                for each in self.recommendations
            ],
            "config": method_to_dict(self.config),
            "training": dict(self.training),
            "budget": self.budget.to_json(),
            "fits": self.fits,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return "\n".join([*self._lines(), *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = tuple(
            (each.setting, each.shown, each.finding, source_of(each))
            for each in self.recommendations
        )
        table = Table(("setting", "advice", "because", "source"), rows)._repr_html_()
        notes = "".join(f"<div>{html.escape(note)}</div>" for note in self.notes)
        return f"<div>{table}{notes}</div>"

    def _lines(self) -> Iterator[str]:
        for each in self.recommendations:
            yield f"{each.setting} = {each.shown}"
            told = f"{each.finding} [{source_of(each)}]"
            yield textwrap.fill(told, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def source_of(recommendation: Recommendation) -> str:
    """Return the source for people, "heuristic" before it where it is one."""
    mark = "heuristic; " if recommendation.heuristic else ""
    return f"{mark}{recommendation.source}"


def advise(
    model: LoadedModel | PreTrainedModel | Anatomy | str | Path,
    task: Task | Data = None,
    *,
    examples: int | None = None,
    length: int | None = None,
    memory: int | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> Advice:
    """Say which method, targets, rank, α, learning rate and batch to begin with, and why.

    Each comes with the finding and the source that it rests on; what is a habit or an estimate is
    called a heuristic. Nothing is loaded of a model that is named: its config is read, and with a
    task its tokenizer.

    Args:
        model: as `budget` takes it; with a task a name, what `load_model` returns, or a model of
            your own with its tokenizer.
        task: a task, or what `load_task` takes; its lengths and labels are counted.
        examples: to train on, where no task says it.
        length: tokens of an example, where no task says it.
        memory: that weights and training may take together, in bytes or as "16 GB" (binary, as
            nvidia-smi counts); None: what is free here, the model's own weights included.
        tokenizer: of a model of your own.
        dtype: of the base model, for the memory; None: its own.
        device: as in `budget`: whose kernels are used, such as "T4".

    Raises:
        ConfigError: a number that cannot be, or an anatomy with a task.
        ModelError, TaskError: as `load_model` and `load_task`.
    """
    facts = read_facts(
        model,
        task,
        examples=examples,
        length=length,
        memory=memory,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
    )
    return _Advisor(facts).advise()


class _Advisor:
    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.room = None if facts.memory is None else int(_SHARE * facts.memory)
        length = rules.max_length(facts)
        self.length = TrainingConfig.max_length if length is None else length.value
        self.bits = rules.data_bits(facts)
        self.step = rules.step_size(facts)

    def advise(self) -> Advice:
        grid = self.facts.anatomy
        per_rank = sum(map(cost, self._sites("all-linear")))
        r, enough = rules.rank_for(per_rank, _widest(grid), self.bits)
        everything = not enough and not self.facts.packed and self._full_fits()
        if everything:
            config: MethodConfig = FullConfig()
            found: tuple[dict[str, Any], bool] | None = self._fitting(config)
        else:
            lora = LoraConfig(r=r, target_modules="all-linear")
            config, found = lora, self._fitting(lora)
            if found is None and {"q", "v"} <= set(grid.roles):
                narrow = self._sites(("q", "v"))
                thinnest = min(min(s.in_features, s.out_features) for s in narrow)
                config = LoraConfig(r=min(r, thinnest), target_modules=("q", "v"))
                found = self._fitting(config)
        fits = None if self.room is None else found is not None
        fields, checkpointing = found or ({"per_device_train_batch_size": 1}, True)
        return self._advice(config, fields, checkpointing, fits, enough)

    def _advice(
        self,
        config: MethodConfig,
        fields: dict[str, Any],
        checkpointing: bool,
        fits: bool | None,
        enough: bool,
    ) -> Advice:
        facts, size = self.facts, fields["per_device_train_batch_size"]
        passes = max(1, self.step // size)
        price = self._price(config, size, checkpointing)
        memory = self._memory(price, fits)
        times = rules.epochs(facts)
        steps = None
        if times is not None and facts.examples is not None:
            steps = times.value * max(1, -(-facts.examples // (size * passes)))
        everything = isinstance(config, FullConfig)
        made = [rules.method(facts, everything)]
        if isinstance(config, LoraConfig):
            made.append(rules.targets(config.target_modules != "all-linear"))
            made.append(rules.rank(config.r, enough, price.parameters_trainable, self.bits))
        r = config.r if isinstance(config, LoraConfig) else 1
        made += rules.rate_and_alpha(facts, r, steps, everything)
        made.append(rules.batch(facts, size, passes, memory))
        made += filter(None, [_recompute(checkpointing, fits), rules.max_length(facts), times])
        values = {each.setting: each.value for each in made}
        if isinstance(config, LoraConfig):
            config = config.replace(lora_alpha=values["lora_alpha"])
        training = {name: values[name] for name in _TRAINING if name in values}
        if passes > 1:
            training["gradient_accumulation_steps"] = passes
        TrainingConfig.from_dict(training)
        return Advice(facts, tuple(made), config, training, price, fits, self._notes(price, fits))

    def _sites(self, targets: str | tuple[str, ...]) -> list[Site]:
        specs = resolve_targets(self.facts.anatomy, LoraConfig(r=1, target_modules=targets))
        return [spec.site for spec in specs]

    def _price(self, config: MethodConfig, size: int, checkpointing: bool) -> Budget:
        if isinstance(config, LoraConfig) and self.facts.kind in ("classes", "numbers"):
            config = config.replace(task_type="SEQ_CLS")  # a run of it trains the head too
        limit = self.facts.anatomy.shape.position_limit
        return budget(
            self.facts.anatomy,
            config,
            batch_size=size,
            sequence_length=min(self.length, limit or self.length),
            dtype=self.facts.dtype,
            gradient_checkpointing=checkpointing,
            padding_mask=size > 1,
            device=self.facts.device,
        )

    def _fitting(self, config: MethodConfig) -> tuple[dict[str, Any], bool] | None:
        """Return the batch that fits, and whether blocks are recomputed; None: none does."""
        whole = TrainingConfig(per_device_train_batch_size=self.step)
        if self.room is None:
            return {"per_device_train_batch_size": self.step}, False
        for checkpointing in (False, True):

            def needed(size: int, checkpointing: bool = checkpointing) -> int:
                return self._price(config, size, checkpointing).adapted.total

            if fields := largest_batch(whole, needed, self.room, self.step):
                return fields, checkpointing
        return None

    def _full_fits(self) -> bool:
        return self.room is not None and self._fitting(FullConfig()) is not None

    def _memory(self, price: Budget, fits: bool | None) -> str:
        needed = format_bytes(price.adapted.total)
        if fits is None or self.facts.memory is None:
            return f"A step needs {needed}; how much there is, nobody has said"
        there = f"{format_bytes(self.facts.memory)} {self.facts.where}"
        return f"A step needs {needed} of {there}"

    def _notes(self, price: Budget, fits: bool | None) -> tuple[str, ...]:
        notes = list(price.notes)
        if fits is False:
            weights = price.adapted.weights
            notes.insert(
                0,
                f"it does not fit: even one example a pass needs "
                f"{format_bytes(price.adapted.total)}, {format_bytes(weights)} of it for the "
                f"weights, and there are {format_bytes(self.facts.memory or 0)} "
                f"{self.facts.where}; take a smaller model, one that is quantized to 4 bits "
                "(QLoRA), or shorter examples",
            )
        if self.facts.examples is None:
            notes.append("name a task, or examples= and length=, for advice that knows the data")
        return tuple(notes)


_TRAINING = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_checkpointing",
    "max_length",
    "num_train_epochs",
)


def _recompute(checkpointing: bool, fits: bool | None) -> Recommendation | None:
    if not checkpointing or fits is None:
        return None
    return Recommendation(
        "gradient_checkpointing",
        True,
        "not one example fits otherwise: blocks are computed again in the backward pass, which "
        "takes about a third more time",
        "measured",
    )


def _widest(grid: Anatomy) -> int:
    """Return the rank at which A and B of the smallest square matrix hold as much as it does."""
    return (grid.shape.hidden_size or 2 * rules.RANKS[-1]) // 2
