"""`compare`: methods, each at its own best learning rate, on held-out data that chose nothing."""

from __future__ import annotations

import dataclasses
import os
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.json_files import read_json
from lora_lab.analysis.choices import Choices, MethodChoice, best_rate, remarks
from lora_lab.analysis.methods import named, settings_of_rows, trained
from lora_lab.anatomy.api import anatomy
from lora_lab.budget.forecast import budget as forecast
from lora_lab.checkpoint.loading import load_adapter
from lora_lab.errors import ConfigError, RunError, TaskError
from lora_lab.methods.api import detach
from lora_lab.methods.attached import bare
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.registry import method_of
from lora_lab.models.given import as_loaded
from lora_lab.runs.records import RunRecord
from lora_lab.runs.store import RunStore
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.sweeps.cells import Cell, Space, cells
from lora_lab.sweeps.local import Sweep
from lora_lab.sweeps.store import checked_name
from lora_lab.tasks.load import Data, as_task
from lora_lab.training.data import RunData
from lora_lab.training.fingerprints import task_fingerprints

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_lab.anatomy.types import Anatomy
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# Full fine-tuning's best rate is about a tenth (Schulman et al., LoRA Without Regret, 2025).
_OF_ALL_WEIGHTS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
_MOST_HELD_OUT = 400
_REPORTED = "reported.json"
_BASE = "base"
_NAME = "compared"  # of the adapter that is scored

Methods = Sequence[MethodConfig | Sequence[MethodConfig]]
Rates = Sequence[float] | Mapping[str, Sequence[float]]


class Comparison:
    """Methods that are tried in the background; see `compare`.

    Attributes:
        sweeps: {number of training examples: the sweep that trains on them}. The first one trains
            from the start; `results` has the others follow it.
        metric: what the rates are chosen by.
    """

    def __init__(
        self,
        lm: LoadedModel,
        sweeps: Mapping[int, Sweep],
        report: Task,
        metric: str,
    ) -> None:
        self.sweeps, self.metric = sweeps, metric
        self._lm, self._report = lm, report

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(map(repr, self.sweeps.values()))}>"

    def start(self) -> Comparison:
        """Train what has not been trained yet; return self."""
        next(iter(self.sweeps.values())).start()
        return self

    def stop(self) -> None:
        """End after the optimizer step that is under way; the same call goes on from there."""
        for sweep in self.sweeps.values():
            sweep.stop()

    def results(self, timeout: float | None = None) -> Choices:
        """Wait until all is trained, score the chosen on the reporting half, and return the rows.

        Args:
            timeout: seconds for each sweep.

        Raises:
            RunError: it is not over, was stopped, or nothing of a method came to its end.
        """
        rows: list[MethodChoice] = []
        base = 0.0
        for size, sweep in self.sweeps.items():
            ended = sweep.start().results(timeout)
            if len(ended) < len(sweep.cells):
                raise RunError(f"{sweep.outcome()}; compare() goes on with it")
            records = {record.folder.name: record for record in sweep.records()}
            reported = _Reported(sweep, self._lm, self._report, self.metric)
            of_method: defaultdict[str, list[Cell]] = defaultdict(list)
            for cell in sweep.cells:
                of_method[repr(cell.configs)].append(cell)
            found = [self._chosen(own, sweep, records) for own in of_method.values()]
            firsts = [first for _, _, first, _ in found]
            words = settings_of_rows(firsts, ("learning_rate", "seed"))
            for (curve, rate, first, chosen), setting in zip(found, words, strict=True):
                values = tuple(reported.score(records[name], cell) for name, cell in chosen)
                name, trainable = named(first), trained(first)
                rows.append(MethodChoice(name, setting, size, trainable, curve, rate, values))
            base = reported.base()
        rows.sort(key=lambda row: (row.train_examples, row.trainable, row.name))
        first_sweep = next(iter(self.sweeps.values()))
        return Choices(
            metric=self.metric,
            model=self._lm.card.name,
            task=self._report.name,
            chosen_on=len(first_sweep.task.validation),
            reported_on=len(self._report.validation),
            rows=tuple(rows),
            base=base,
            note="; ".join(remarks(rows)),
        )

    def _chosen(
        self, own: Sequence[Cell], sweep: Sweep, records: Mapping[str, RunRecord]
    ) -> tuple[dict[float, tuple[float, ...]], float, RunRecord, list[tuple[str, Cell]]]:
        """Return one method's curve, its best rate, and its runs at that."""
        ended, key = sweep.snapshot.ended, f"{self.metric}_after"
        scores: dict[float, list[float]] = {cell.training.learning_rate: [] for cell in own}
        for cell in own:
            result = ended[cell.id]
            if result.state == "done" and result.run in records:
                if key not in result.metrics:
                    known = ", ".join(k.removesuffix("_after") for k in result.metrics)
                    raise RunError(f"the runs have no {self.metric!r}; they have {known}")
                scores[cell.training.learning_rate].append(result.metrics[key])
        curve = {rate: tuple(values) for rate, values in sorted(scores.items())}
        seeds = len({cell.training.seed for cell in own})
        rate = best_rate(curve, seeds, self.metric)
        if rate is None:
            problem = next((r.problem for c in own if (r := ended[c.id]).problem), "")
            raise RunError(f"{own[0]} and its other cells did not end at any rate: {problem}")
        chosen = [(ended[c.id].run, c) for c in own if c.training.learning_rate == rate]
        return curve, rate, records[chosen[0][0]], chosen


class _Reported:
    """The scores on the reporting half, kept in the sweep's folder."""

    def __init__(self, sweep: Sweep, lm: LoadedModel, report: Task, metric: str) -> None:
        self._folder, self._lm, self._task, self._metric = sweep.folder, lm, report, metric
        self._training = sweep.cells[0].training
        self._rows = task_fingerprints(report)["held_out"]
        try:
            found = read_json(self._folder / _REPORTED, dict[str, Any])
        except (OSError, ValueError):
            found = {}
        same = found.get("held_out") == self._rows
        self._known: dict[str, dict[str, float]] = found["scores"] if same else {}

    def score(self, record: RunRecord, cell: Cell) -> float:
        if record.folder.name not in self._known:
            load_adapter(self._lm.model, record.folder / "adapter", _NAME)
            try:
                self._keep(record.folder.name, as_config(cell.configs).tokens)
            finally:
                detach(self._lm.model, _NAME)
        return self._known[record.folder.name][self._metric]

    def base(self) -> float:
        if _BASE not in self._known:
            with bare(self._lm.model):
                self._keep(_BASE, 0)
        return self._known[_BASE][self._metric]

    def _keep(self, name: str, tokens: int) -> None:
        training = self._training.replace(eval_examples=len(self._task.validation))
        scores = RunData(self._lm, self._task, training, [], tokens).evaluate(adapted=True)
        self._known[name] = dict(scores or {})
        told = {"held_out": self._rows, "scores": self._known}
        RunStore(self._folder).write_json(_REPORTED, told)


def compare(
    lm: LoadedModel | PreTrainedModel | str,
    task: Task | Data,
    methods: Methods,
    *,
    rates: Rates = RATES,
    seeds: Sequence[int] | int = 3,
    train_examples: Sequence[int] | int | None = None,
    budget: int | None = None,
    metric: str = "loss",
    tokenizer: PreTrainedTokenizerBase | None = None,
    output_dir: str | os.PathLike[str] = "runs",
    name: str = "compare",
    start: bool = True,
    **training: Any,
) -> Comparison:
    """Hold methods against each other, each at its own best learning rate; returns at once.

    Each method is trained at every rate with every seed. The held-out examples are halved: one half
    chooses a method's rate, by the mean over its seeds, and the other one says how good it is
    there. All of it is a sweep, so the same call goes on where an earlier one was cut off.

    >>> methods = [LoraConfig(r=8), BitFitConfig(), FullConfig()]
    >>> found = compare(lm, task, methods, seeds=3, train_examples=[100, 1000], metric="accuracy")
    >>> found.results()

    Args:
        lm, task, tokenizer, output_dir: as `sweep` takes them.
        methods: configs, or lists of configs that are combined.
        rates: learning rates; or {method's name, such as "LoRA" or "FT": its rates}, "" for those
            that are not named. FT's are a tenth of `RATES` by default.
        seeds: the seeds, or how many.
        train_examples: how many to learn from, or several numbers of them; the smaller lie within
            the larger. None: all.
        budget: trainable parameters, a head without: methods with a rank get the largest that
            stays within; others that exceed it are refused.
        metric: of the task, or "loss".
        name: of the sweeps' folders.
        start: False makes it and leaves it idle.
        **training: the fields of `TrainingConfig`. `eval_examples`, here of both halves together,
            is up to 400 by default.

    Raises:
        ConfigError: a setting that cannot be, in any cell; nothing is trained then.
        TaskError: the task cannot be loaded, or has too few examples.
        RunError: the folder belongs to other data.
    """
    checked_name(name)
    common = _common(training)
    task = as_task(task, common.max_steps, common.step_size)
    lm = as_loaded(lm, tokenizer, task.head, "ll.compare(model, …, tokenizer=tokenizer)")
    choose, report = _halves(task, training.get("eval_examples", _MOST_HELD_OUT))
    common = common.replace(eval_examples=len(choose.validation))
    made = _cells(_within(budget, methods, lm), rates, seeds, common)
    folder = Path(output_dir).expanduser().resolve()
    sizes = {len(own.train): own for own in _smaller(choose, train_examples)}
    sweeps = {n: Sweep(lm, own, made, folder / f"{name}-{n}") for n, own in sizes.items()}
    found = Comparison(lm, sweeps, report, metric)
    return found.start() if start else found


def _common(training: Mapping[str, Any]) -> TrainingConfig:
    if refused := training.keys() & {"learning_rate", "seed"}:
        raise ConfigError(f"{min(refused)} is what is compared over; give rates and seeds")
    return TrainingConfig.from_dict(training)


def _halves(task: Task, count: int) -> tuple[Task, Task]:
    """Return the task with one half of its held-out examples, and with the other."""
    rows = list(task.validation[:count])
    if len(rows) < 4:
        raise TaskError(
            f"{task.name} is left with {len(rows)} held-out examples, and half of them are to "
            "choose rates, half to report on; give it more, or a larger eval_examples"
        )
    own: Any = task
    first, second = (dataclasses.replace(own, validation=rows[i::2]) for i in (0, 1))
    return first, second


def _smaller(task: Task, sizes: Sequence[int] | int | None) -> list[Task]:
    """Return the task with each number of training examples, drawn at random, one in the other."""
    if sizes is None:
        return [task]
    asked = [sizes] if isinstance(sizes, int) else list(sizes)
    rows = list(task.train)
    order = random.Random("train_examples").sample(range(len(rows)), len(rows))
    for size in asked:
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= len(rows):
            raise TaskError(
                f"train_examples is {size!r}; {task.name} has 1 to {len(rows):,} to learn from"
            )
    if not asked:
        raise ConfigError("train_examples is empty; give a number, or leave it out")
    drawn = ([rows[i] for i in sorted(order[:size])] for size in dict.fromkeys(sorted(asked)))
    own: Any = task
    return [dataclasses.replace(own, train=part) for part in drawn]


def _cells(
    methods: Sequence[MethodConfig],
    rates: Rates,
    seeds: Sequence[int] | int,
    training: TrainingConfig,
) -> list[Cell]:
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not methods or not seeds:
        raise ConfigError("there is nothing to compare; give one or more methods and seeds")
    rates_of = {repr(own): _rates(own, rates) for own in methods}
    every = sorted({rate for own in rates_of.values() for rate in own})
    grid: dict[str, list[Any]] = {"configs": list(methods), "learning_rate": every, "seed": seeds}
    found = cells(methods[0], training, Space(grid))
    return [c for c in found if c.training.learning_rate in rates_of[repr(as_config(c.configs))]]


def _rates(config: MethodConfig, rates: Rates) -> list[float]:
    own = rates.get(config.method, rates.get("", RATES)) if isinstance(rates, Mapping) else rates
    if own is RATES and any(method_of(part).trains_everything for part in config.parts):
        own = _OF_ALL_WEIGHTS
    if isinstance(own, str) or not isinstance(own, Sequence) or not own:
        raise ConfigError(f"rates of {config.method} is {own!r}; give a list, such as [1e-4, 1e-3]")
    return list(own)


def _within(most: int | None, methods: Methods, lm: LoadedModel) -> list[MethodConfig]:
    """Return the methods' configs, with the largest ranks that stay within a budget."""
    configs = [as_config(own) for own in methods]
    if most is None:
        return configs
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise ConfigError(f"budget is {most!r}; it is a number of trainable parameters")
    found = anatomy(lm.model)
    return [_largest(own, most, found) for own in configs]


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
