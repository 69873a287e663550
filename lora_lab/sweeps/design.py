"""What a comparison tries: methods × their learning rates × seeds, and the halves of held-out data.

Nothing here needs a model in memory: the same design has the same cells on every machine.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_lab._util.format import plural, shown
from lora_lab.budget.forecast import budget as forecast
from lora_lab.errors import ConfigError, TaskError
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig, need_positive
from lora_lab.methods.descriptor import LEARNING_RATE
from lora_lab.methods.registry import method_of
from lora_lab.methods.registry import methods as registered
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.sweeps.cells import Cell, Space, cells
from lora_lab.tasks.classification import ClassificationTask, LabeledText

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy
    from lora_lab.tasks.base import Task

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = 3
# Full fine-tuning's best rate is about a tenth (Schulman et al., LoRA Without Regret, 2025).
_OF_ALL_WEIGHTS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
_MOST_HELD_OUT = 400

Methods = Sequence[MethodConfig | Sequence[MethodConfig]]
Rates = Sequence[float] | Sequence[Sequence[float]] | Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Design:
    """A comparison without its model and its data; see `compare` for what each means.

    Attributes:
        methods: a config each; a combination is one.
        rates, seeds, train_examples, budget: what is tried.
        training: what all runs share.
        held_out: examples of both halves together.
        metric: by which rates are chosen.
    """

    methods: tuple[MethodConfig, ...]
    rates: Rates
    seeds: tuple[int, ...]
    train_examples: Sequence[int] | int | None
    budget: int | None
    training: TrainingConfig
    held_out: int
    metric: str

    @classmethod
    def of(
        cls,
        methods: Methods,
        *,
        rates: Rates = RATES,
        seeds: Sequence[int] | int = SEEDS,
        train_examples: Sequence[int] | int | None = None,
        budget: int | None = None,
        metric: str = "loss",
        training: Mapping[str, Any] | None = None,
    ) -> Design:
        """Return a design of what `compare` takes.

        Raises:
            ConfigError: there is nothing to compare, or a setting cannot be.
        """
        training = training or {}
        if isinstance(methods, MethodConfig | str) or not isinstance(methods, Iterable):
            raise ConfigError(f"methods is {shown(methods)}; give a list, such as [LoraConfig()]")
        own_methods = tuple(map(as_config, methods))
        _check_names(rates, [own.method for own in own_methods])
        if refused := training.keys() & {"learning_rate", "seed"}:
            raise ConfigError(f"{min(refused)} is what is compared over; give rates and seeds")
        for name, value in (("seeds", seeds), ("train_examples", train_examples)):
            several = isinstance(value, Iterable) and not isinstance(value, str)
            if not (several or _is_whole(value) or (value is None and name != "seeds")):
                raise ConfigError(f"{name} is {value!r}; give a whole number, or a list of some")
        own = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
        if not own_methods or not own:
            raise ConfigError("there is nothing to compare; give one or more methods and seeds")
        if budget is not None and not (_is_whole(budget) and budget > 0):
            raise ConfigError(f"budget is {budget!r}; it is a whole number of trainable parameters")
        return cls(
            methods=own_methods,
            rates=rates,
            seeds=own,
            train_examples=train_examples,
            budget=budget,
            training=TrainingConfig.from_dict(training),
            held_out=training.get("eval_examples", _MOST_HELD_OUT),
            metric=metric,
        )

    @property
    def has_own_rates(self) -> bool:
        """Whether the rates of some method are left to its own, which follow the model's width."""
        given = self._named_rates
        if given is None or "" in given:
            return False
        return any(method.method not in given for method in self.methods)

    @property
    def _named_rates(self) -> Mapping[str, Sequence[float]] | None:
        """Those that were given by methods' names; None: they were given otherwise."""
        given: Rates = {} if self.rates is RATES else self.rates
        return given if isinstance(given, Mapping) else None

    def at_width(self, width: int | None) -> Design:
        """Return it with the rates for a model of this width, where none were given.

        `RATES`, and a tenth of them for FT, are LoRA's and FT's on models as wide as the
        literature's. Another method's, and a smaller model's, are as many times as high as the
        rate is to begin with (`Method.rate_for`), which therefore lies among them.
        """
        if not self.has_own_rates:
            return self
        own = {method.method: _rates_at(method, width) for method in self.methods}
        return dataclasses.replace(self, rates={**own, **(self._named_rates or {})})

    def tasks(self, task: Task) -> tuple[dict[int, Task], Task]:
        """Return ({training examples: the task that chooses rates}, the task that reports).

        Raises:
            TaskError: it has too few examples for either.
            ConfigError: `train_examples` names none, or the task does not have the metric, or
                has answers of which it says nothing.
        """
        known = ["loss", *(metric.name for metric in task.metrics)]
        if self.metric not in known:
            raise ConfigError(f"metric is {self.metric!r}; {task.name} has {', '.join(known)}")
        choose, report = _halves(task, self.held_out)
        for half in (choose, report):
            self._check_metric(half)
        return {len(own.train): own for own in _smaller(choose, self.train_examples)}, report

    def _check_metric(self, half: Task) -> None:
        """Refuse a metric that says nothing of such answers, or has no value of them.

        Runs leave out the former, and 0 stands for the latter: any rate would be as good.
        """
        chosen_by = next((own for own in half.metrics if own.name == self.metric), None)
        right = [half.reference(row) for row in half.validation]
        if chosen_by is not None and (why := chosen_by.no_use(right)):
            raise ConfigError(
                f"metric is {self.metric!r}, which says nothing of {half.name} ({why}); use "
                "another one, such as loss"
            )

    def cells(self, choose: Task, anatomy: Anatomy | None) -> list[Cell]:
        """Return what each number of training examples trains.

        Args:
            choose: one of the tasks that choose rates.
            anatomy: of the model; needed where there is a budget.

        Raises:
            ConfigError: a method cannot stay within the budget, or a value cannot be.
        """
        methods = self._within_budget(anatomy)
        rates_of: dict[str, list[float]] = {}
        for own, rates in zip(methods, _of_each(methods, self.rates), strict=True):
            rates_of[repr(own)] = rates_of.get(repr(own), []) + rates
        every = sorted({rate for own in rates_of.values() for rate in own})
        grid: dict[str, list[Any]] = {
            "configs": methods,
            "learning_rate": every,
            "seed": list(self.seeds),
        }
        training = self.training.replace(eval_examples=len(choose.validation))
        found = cells(methods[0], training, Space(grid))
        return [
            c for c in found if c.training.learning_rate in rates_of[repr(as_config(c.configs))]
        ]

    def merged(self, anatomy: Anatomy | None) -> list[str]:
        """Say of which methods one row is trained, as they come to the same; a line each.

        Args:
            anatomy: as `cells` takes it.
        """
        tried: dict[str, list[MethodConfig]] = {}
        for given, own in zip(self.methods, self._within_budget(anatomy), strict=True):
            tried.setdefault(repr(own), []).append(given)
        return [self._alike(alike) for alike in tried.values() if len(alike) > 1]

    def _alike(self, alike: Sequence[MethodConfig]) -> str:
        name = alike[0].method
        if len({*map(repr, alike)}) == 1:
            return f"{name} is listed {len(alike)} times, and has one row"
        told = " and ".join(f"{name} ({apart})" for apart in _apart(alike))
        return f"{told} are the same within the budget of {self.budget:,}, and have one row"

    def _within_budget(self, anatomy: Anatomy | None) -> list[MethodConfig]:
        if self.budget is None:
            return list(self.methods)
        assert anatomy is not None, "a budget is counted on a model"
        return [_largest(own, self.budget, anatomy) for own in self.methods]


def _apart(methods: Sequence[MethodConfig]) -> list[str]:
    """Return in words what tells configs of one method apart, of each the fields that differ."""
    every = [[part.to_dict() for part in own.parts] for own in methods]
    return [
        ", ".join(
            f"{name} {shown(value)}"
            for number, part in enumerate(own)
            for name, value in part.items()
            if any(other[number].get(name) != value for other in every)
        )
        for own in every
    ]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _halves(task: Task, count: int) -> tuple[Task, Task]:
    """Return the task with one half of its held-out examples, and with the other."""
    rows = list(task.validation[:count])
    if len(rows) < 4:
        raise TaskError(
            f"{task.name} is left with {len(rows)} held-out examples, and half of them are to "
            "choose rates, half to report on; give it more, or a larger eval_examples"
        )
    own: Any = task
    if isinstance(task, ClassificationTask):
        rows = _mixed(rows)
    first, second = (dataclasses.replace(own, validation=rows[i::2]) for i in (0, 1))
    return first, second


def _mixed(rows: list[LabeledText]) -> list[LabeledText]:
    """Return rows so that every other one is of any class of which there are two.

    They are sorted by class only where they have to be, such as where classes alternate.
    """
    count = Counter(row.label for row in rows)
    several = {label for label, number in count.items() if number > 1}
    if all(several <= {row.label for row in rows[i::2]} for i in (0, 1)):
        return rows
    return sorted(rows, key=lambda row: row.label)


def _smaller(task: Task, sizes: Sequence[int] | int | None) -> list[Task]:
    """Return the task with each number of training examples, drawn at random, one in the other."""
    if sizes is None:
        return [task]
    asked = [sizes] if isinstance(sizes, int) else list(sizes)
    rows = list(task.train)
    order = random.Random("train_examples").sample(range(len(rows)), len(rows))
    for size in asked:
        if not _is_whole(size) or not 1 <= size <= len(rows):
            raise TaskError(
                f"train_examples is {size!r}; {task.name} has 1 to {len(rows):,} to learn from"
            )
    if not asked:
        raise ConfigError("train_examples is empty; give a number, or leave it out")
    drawn = ([rows[i] for i in sorted(order[:size])] for size in dict.fromkeys(sorted(asked)))
    own: Any = task
    return [dataclasses.replace(own, train=part) for part in drawn]


def _check_names(rates: Rates, compared: Sequence[str]) -> None:
    """Refuse rates of what is no method: they would be passed over in silence."""
    for name in rates if isinstance(rates, Mapping) else ():
        known = {"", *compared, *registered()}
        first = str(name).partition("+")[0].partition("-")[0]  # of a combination
        if name not in known and (first not in known or str(name).endswith("+")):
            raise ConfigError(
                f"rates names {name!r}, which is no method; compared are {', '.join(compared)}; "
                '"" is for those that are not named'
            )


def _of_each(methods: Sequence[MethodConfig], rates: Rates) -> list[list[float]]:
    """Return the rates of each method: those of its name, of its place, or those of all."""
    if isinstance(rates, Mapping):
        return [_checked(own, rates.get(own.method, rates.get("", RATES))) for own in methods]
    if not any(isinstance(own, list | tuple) for own in _listed(rates)):
        return [_checked(own, rates) for own in methods]
    if len(rates) != len(methods):
        raise ConfigError(
            f"rates has {plural(len(rates), 'list')} for {plural(len(methods), 'method')}; give "
            "one list a method, in their order"
        )
    return [_checked(own, each) for own, each in zip(methods, rates, strict=True)]


def _listed(rates: Any) -> Sequence[Any]:
    return rates if isinstance(rates, list | tuple) else ()


def _checked(config: MethodConfig, own: Any) -> list[float]:
    if own is RATES and any(method_of(part).trains_everything for part in config.parts):
        own = _OF_ALL_WEIGHTS
    if isinstance(own, str) or not isinstance(own, Sequence) or not own:
        raise ConfigError(f"rates of {config.method} is {own!r}; give a list, such as [1e-4, 1e-3]")
    for rate in own:
        need_positive("learning_rate", rate)
    return list(own)


def _rates_at(config: MethodConfig, width: int | None) -> tuple[float, ...]:
    parts = [method_of(part) for part in config.parts]
    lowest = min(parts, key=lambda part: part.rate_for(width))
    everything = any(part.trains_everything for part in parts)
    rates, of = (_OF_ALL_WEIGHTS, lowest.learning_rate) if everything else (RATES, LEARNING_RATE)
    times = lowest.rate_for(width) / of
    return tuple(float(f"{times * rate:.1e}") for rate in rates)


def _largest(config: MethodConfig, most: int, found: Anatomy) -> MethodConfig:
    def fits(r: int) -> bool:
        try:
            return forecast(found, ranked(r)).parameters_trainable <= most
        except ConfigError:  # a rank that is no rank of some matrix
            return False

    def ranked(r: int) -> MethodConfig:
        parts = [(part, method_of(part).rank) for part in config.parts]
        return as_config([part.replace(**{name: r}) if name else part for part, name in parts])

    if not any(method_of(part).rank for part in config.parts):
        if (size := forecast(found, config).parameters_trainable) > most:
            raise ConfigError(
                f"{config.method} trains {size:,} parameters and has no rank to lower; the budget "
                f"is {most:,}: leave it out, or raise the budget"
            )
        return config
    if not fits(1):
        raise ConfigError(
            f"{config.method} trains more than {most:,} parameters at rank 1; raise the budget"
        )
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return ranked(low)
