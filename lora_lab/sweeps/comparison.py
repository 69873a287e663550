"""`compare`: methods, each at its own best learning rate, on held-out data that chose nothing."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.files import user_path
from lora_lab._util.format import plural
from lora_lab._util.json_files import read_json
from lora_lab._util.torch_modes import plain_modes
from lora_lab._util.warn import warn
from lora_lab.analysis.choices import Choices, MethodChoice, best_rate, remarks
from lora_lab.analysis.methods import measured, named, settings_of_rows, trained
from lora_lab.anatomy.api import anatomy
from lora_lab.errors import RunError
from lora_lab.methods.attached import bare
from lora_lab.methods.combined import method_name
from lora_lab.models.given import as_loaded
from lora_lab.runs.records import RunRecord, list_runs
from lora_lab.runs.store import RunStore
from lora_lab.sweeps.cells import Cell
from lora_lab.sweeps.design import RATES, SEEDS, Design, Methods, Rates
from lora_lab.sweeps.local import Sweep
from lora_lab.sweeps.store import CellResult, SweepStore, checked_name
from lora_lab.tasks.load import Data, as_task
from lora_lab.training.evaluate import scored, with_adapter
from lora_lab.training.fingerprints import task_fingerprints

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task
    from lora_lab.tasks.intervals import Interval

_REPORTED = "reported.json"
_BASE = "base"


class Comparison:
    """Methods that are tried in the background; see `compare`.

    Attributes:
        sweeps: {number of training examples: the sweep that trains on them}. The first one trains
            from the start; `results` has the others follow it.
        metric: what the rates are chosen by.
        notes: what is not tried as it was asked for.
    """

    def __init__(
        self,
        lm: LoadedModel,
        sweeps: Mapping[int, Sweep],
        report: Task,
        metric: str,
        notes: Sequence[str] = (),
    ) -> None:
        self.sweeps, self.metric, self.notes = sweeps, metric, tuple(notes)
        self._lm, self._report = lm, report

    @classmethod
    def of(cls, lm: LoadedModel, task: Task, design: Design, folder: Path, name: str) -> Comparison:
        """Return a comparison of this design on a model and data, idle.

        Args:
            lm: the model.
            task: the data, of which both halves are taken.
            design: what is tried.
            folder: where the sweeps' folders go.
            name: of these, before the number of training examples.

        Raises:
            ConfigError, TaskError: see `Design`.
        """
        tasks, report = design.tasks(task)
        layers = anatomy(lm.model)
        design = design.at_width(layers.shape.hidden_size)
        sweeps = {
            size: Sweep(lm, own, design.cells(own, layers), folder / f"{name}-{size}")
            for size, own in tasks.items()
        }
        notes = design.merged(layers)
        for line in notes:
            warn(line)
        return cls(lm, sweeps, report, design.metric, notes)

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

    def records(self) -> list[RunRecord]:
        """Return the runs on disk, of all its sweeps."""
        return [record for sweep in self.sweeps.values() for record in sweep.records()]

    def results(self, timeout: float | None = None) -> Choices:
        """Wait until all is trained, score the chosen on the reporting half, and return the rows.

        Args:
            timeout: seconds for each sweep.

        Raises:
            RunError: it is not over, was stopped, or no method came to its end.
        """
        for sweep in self.sweeps.values():
            if len(sweep.start().results(timeout)) < len(sweep.cells):
                raise RunError(f"{sweep.outcome()}; compare() goes on with it")
        return self.choices()

    def choices(self) -> Choices:
        """Return the rows of what has been trained, here or on other machines; trains nothing.

        A method of which no rate came to its end with every seed has no row; the note says so.

        Raises:
            RunError: cells have not ended, or no method came to its end.
        """
        rows: list[MethodChoice] = []
        failed: list[str] = []
        base: _Scores | None = None
        for size, sweep in self.sweeps.items():
            ended = SweepStore(sweep.folder).ended()
            if missing := sum(cell.id not in ended for cell in sweep.cells):
                raise RunError(
                    f"{sweep.title}: {missing} of {len(sweep.cells)} cells have not ended; "
                    "compare() goes on with them"
                )
            reported = _Reported(sweep, self._lm, self._report)
            rows += self._rows(size, sweep, ended, reported, failed)
            if rows and base is None:  # the same for all of them
                base = reported.base()
        if base is None:  # no rows
            raise RunError("; ".join(failed))
        rows.sort(key=lambda row: (row.train_examples, row.trainable, row.name))
        first_sweep = next(iter(self.sweeps.values()))
        return Choices(
            metric=self.metric,
            model=self._lm.card.name,
            task=self._report.name,
            chosen_on=len(first_sweep.task.validation),
            reported_on=len(self._report.validation),
            rows=tuple(rows),
            base=base.scores[self.metric],
            base_scores=base.scores,
            base_intervals=base.intervals,
            note="; ".join((*failed, *self.notes, *remarks(rows))),
            loss_unit=self._report.loss_unit,
        )

    def _rows(
        self,
        size: int,
        sweep: Sweep,
        ended: Mapping[str, CellResult],
        reported: _Reported,
        failed: list[str],
    ) -> list[MethodChoice]:
        """Return the rows of one sweep; a method without one is told of in `failed`."""
        records = {record.folder.name: record for record in list_runs(sweep.folder)}
        of_method: defaultdict[str, list[Cell]] = defaultdict(list)
        for cell in sweep.cells:
            of_method[repr(cell.configs)].append(cell)
        among = f" from {plural(size, 'example')}" if len(self.sweeps) > 1 else ""
        found = []
        for place, own in enumerate(of_method.values()):
            if (chosen := self._chosen(own, ended, records)) is not None:
                found.append((place, *chosen))
                continue
            problem = next((r.problem for c in own if (r := ended[c.id]).problem), "")
            if not problem and all(ended[cell.id].state == "done" for cell in own):
                problem = f"{self.metric} is no number"
            failed.append(
                f"{_named(own[0])} has no row{among}: its runs ended at no learning rate with "
                "every seed" + (f" ({problem})" if problem else "")
            )
        words = settings_of_rows([runs[0] for *_, runs in found], ("learning_rate", "seed"))
        rows = []
        for (place, curve, rate, runs), setting in zip(found, words, strict=True):
            each = [*map(reported.scores, runs)]
            scores = {name: tuple(own.scores[name] for own in each) for name in each[0].scores}
            if not all(map(math.isfinite, scores[self.metric])):
                failed.append(
                    f"{named(runs[0])} ({setting}) has no row{among}: on the half that reports its "
                    f"{self.metric} at {rate:g} is no number"
                )
                continue
            row = MethodChoice(
                method=named(runs[0]),
                setting=setting,
                train_examples=size,
                trainable=trained(runs[0]),
                curve=curve,
                learning_rate=rate,
                values=scores[self.metric],
                scores=scores,
                intervals=_of_seeds(each),
                place=place,
                **measured(runs),
            )
            rows.append(row)
        return rows

    def _chosen(
        self,
        own: Sequence[Cell],
        ended: Mapping[str, CellResult],
        records: Mapping[str, RunRecord],
    ) -> tuple[dict[float, tuple[float, ...]], float, list[RunRecord]] | None:
        """Return one method's curve, its best rate, and its runs at that; None: it has no rate."""
        key = f"{self.metric}_after"
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
            return None
        runs = [records[ended[c.id].run] for c in own if c.training.learning_rate == rate]
        return curve, rate, runs


def _named(cell: Cell) -> str:
    """Return a cell's method and what tells it from others of the same name, for people."""
    apart = ("method", "learning_rate", "seed")
    told = {name: value for name, value in cell.changes.items() if name not in apart}
    name = method_name(cell.configs)
    return f"{name} ({dataclasses.replace(cell, changes=told)})" if told else name


@dataclass(frozen=True)
class _Scores:
    """What the reporting half gives an adapter: {metric: score}, {metric: its 95 % interval}."""

    scores: Mapping[str, float]
    intervals: Mapping[str, Interval]


def _of_seeds(each: Sequence[_Scores]) -> dict[str, tuple[Interval, ...]]:
    """Return {metric: the interval of each seed's score}, of those that all seeds have."""
    shared = (name for name in each[0].intervals if all(name in own.intervals for own in each))
    return {name: tuple(own.intervals[name] for own in each) for name in shared}


class _Reported:
    """The scores on the reporting half, kept in the sweep's folder."""

    def __init__(self, sweep: Sweep, lm: LoadedModel, report: Task) -> None:
        self._folder, self._lm, self._task = sweep.folder, lm, report
        self._training = sweep.cells[0].training
        self._of = {
            "held_out": task_fingerprints(report)["held_out"],
            "metrics": [metric.name for metric in report.metrics],
            "reading": [self._training.max_length, self._training.too_long],
        }
        try:
            found = read_json(self._folder / _REPORTED, dict[str, Any])
        except (OSError, ValueError):
            found = {}
        same = {name: found.get(name) for name in self._of} == self._of
        # a file of an earlier version has no intervals: all is scored anew
        known = found["scores"] if same and "intervals" in found else {}
        self._known = {
            name: _Scores(scores, {k: (v[0], v[1]) for k, v in found["intervals"][name].items()})
            for name, scores in known.items()
        }

    def scores(self, record: RunRecord) -> _Scores:
        name = record.folder.name
        if name not in self._known:
            with with_adapter(self._lm.model, record.folder / "adapter"):
                self._keep(name)
        return self._known[name]

    def base(self) -> _Scores:
        if _BASE not in self._known:
            with bare(self._lm.model):
                self._keep(_BASE)
        return self._known[_BASE]

    def _keep(self, name: str) -> None:
        with plain_modes():
            found = scored(self._lm, self._task, "validation", self._training)
        self._known[name] = _Scores(dict(found.scores), dict(found.intervals))
        told = {
            **self._of,
            "scores": {name: own.scores for name, own in self._known.items()},
            "intervals": {name: own.intervals for name, own in self._known.items()},
        }
        RunStore(self._folder).write_json(_REPORTED, told)


def compare(
    lm: LoadedModel | PreTrainedModel | str,
    task: Task | Data,
    methods: Methods,
    *,
    rates: Rates = RATES,
    seeds: Sequence[int] | int = SEEDS,
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
    >>> rate_curves_figure(found.results())

    Args:
        lm, task, tokenizer, output_dir: as `sweep` takes them.
        methods: configs, or lists of configs that are combined.
        rates: learning rates; or {method's name: its rates}, "" for those that are not named; or a
            list of lists, one a method. By default five around its own rate (`Method.rate_for`).
        seeds: the seeds, or how many.
        train_examples: how many to learn from, or several numbers of them; the smaller lie within
            the larger. None: all.
        budget: trainable parameters, a head without: methods with a rank get the largest that
            stays within; others that exceed it are refused.
        metric: of the task, or "loss".
        name: of the sweeps' folders.
        start: False leaves it idle.
        **training: fields of `TrainingConfig`; `eval_examples` is of both halves, up to 400.

    Raises:
        ConfigError: a setting that cannot be, in any cell; nothing is trained then.
        TaskError: the task cannot be loaded, or has too few examples.
    """
    checked_name(name)
    design = Design.of(
        methods,
        rates=rates,
        seeds=seeds,
        train_examples=train_examples,
        budget=budget,
        metric=metric,
        training=training,
    )
    task = as_task(task, design.training.max_steps, design.training.step_size)
    lm = as_loaded(lm, tokenizer, task.head, "ll.compare(model, …, tokenizer=tokenizer)")
    folder = user_path(output_dir, RunError).resolve()
    found = Comparison.of(lm, task, design, folder, name)
    return found.start() if start else found
