"""What the held-out examples say while a run trains, which of it is best, and when it is enough.

As HF Trainer does it, with its EarlyStoppingCallback. Nothing is drawn and no mode is left behind:
a run that is evaluated takes the steps that it takes without.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lora_lab._util.host_memory import HostRoom
from lora_lab.methods.attached import require_adapters
from lora_lab.runs.metrics import EVALUATED
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.metrics import metric_of
from lora_lab.training import processes
from lora_lab.training.resume_state import fitting
from lora_lab.training.scores import telling
from lora_lab.training.step import NotFiniteError

if TYPE_CHECKING:
    from lora_lab.training.worker import Worker


@dataclass(frozen=True)
class Best:
    """The best evaluation so far.

    Attributes:
        step: after which it was.
        value: of the metric.
        adapter: `Adapter.snapshot` then; [] where it is not to be put back.
        statistics: of the base's buffers, likewise.
    """

    step: int
    value: float
    adapter: list[Tensor]
    statistics: Mapping[str, Tensor]


class Evaluations:
    """The evaluations of one run, on its thread.

    Attributes:
        examples: that the run trains on; an epoch has gone through them all.
        rows: {"step": …, "loss": …, the task's metrics, and what is kept}, in their order.
        best: of them by `metric_for_best_model`; None before the first.
        is_enough: early stopping's patience is at its end.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.examples = 1
        self.rows: list[dict[str, float]] = []
        self.best: Best | None = None
        self._loaded_after: int | None = None  # steps: of the checkpoint that they came from
        self._waited = 0  # evaluations in a row that were no better
        self._seconds = 0.0  # that the latest took
        self._metric = metric_of(worker.run.training.best_metric)
        family = worker.data.family
        self._writes = family.writes and self._metric.name != "loss"

    @property
    def _training(self) -> TrainingConfig:
        return self._worker.run.training

    @property
    def is_enough(self) -> bool:
        """Whether patience is at its end."""
        patience = self._training.early_stopping_patience
        return patience is not None and self._waited >= patience

    def run_if_due(self, step: int) -> None:
        """Score the held-out examples if they are to be after so many steps, and were not yet.

        Raises:
            NotFiniteError: their loss is no number.
        """
        done = self.rows[-1]["step"] if self.rows else 0
        if not step or done == step or self._count(step) == self._count(step - 1):
            return
        worker, begun = self._worker, time.monotonic()
        pacing = worker.pace.is_running
        worker.pace.stop()  # it is that of the steps alone
        self._run(step)
        if pacing:
            worker.pace.start()
        self._seconds = time.monotonic() - begun

    def _run(self, step: int) -> None:
        worker = self._worker
        worker.check_base()
        phase = f"evaluating at step {step}"
        worker.enter(phase)
        told = telling(worker, phase)
        data = worker.data
        found = data.evaluate(True, told) if self._writes else data.evaluate_quickly(told)
        kept = None if found is None else worker.kept.measure()
        if found is None or kept is None:  # somebody ends the run; a resumed one comes here again
            return
        both = found | kept
        scores = processes.from_main(lambda: both)
        if not math.isfinite(scores["loss"]):
            raise NotFiniteError(f"the held-out loss is {scores['loss']} after step {step}", True)
        finite = {name: value for name, value in scores.items() if math.isfinite(value)}
        self._take(step, finite)
        worker.enter("training")

    def _take(self, step: int, scores: Mapping[str, float]) -> None:
        worker = self._worker
        self.rows.append({"step": step, **scores})
        seconds = {"seconds": round(worker.pace.seconds, 4)}
        told = {f"{EVALUATED}{name}": value for name, value in scores.items()}
        worker.run.store.log({"step": step, **told, **seconds})
        if worker.fit is not None and worker.fit.trackers is not None:
            worker.fit.trackers.log_evaluation(step, told)
        self._compare(step, scores.get(self._metric.name))
        self.publish()

    def _compare(self, step: int, value: float | None) -> None:
        best = None if self.best is None else self.best.value
        better = value is not None and (best is None or self._gain(value, best) > 0)
        threshold = self._training.early_stopping_threshold
        enough = better and (best is None or self._gain(value or 0.0, best) > threshold)
        self._waited = 0 if enough else self._waited + 1
        if better:
            assert value is not None
            self.best = Best(step, value, *self._copy())

    def _gain(self, value: float, best: float) -> float:
        higher = self._training.greater_is_better
        if higher is None:
            higher = self._metric.higher_is_better
        return value - best if higher else best - value

    def _copy(self) -> tuple[list[Tensor], Mapping[str, Tensor]]:
        if not self._training.load_best_model_at_end:
            return [], {}
        model, adapter = self._worker.model, self._worker.adapter
        if self.best is None:
            room = HostRoom("the best of what a run learns", "leave load_best_model_at_end out")
            room.take(adapter.live_values())
        return adapter.snapshot(), require_adapters(model).statistics.values(adapter.name)

    def publish(self) -> None:
        """Show them."""
        self._worker.run.publish(
            evaluations=tuple(self.rows), best_step=self.best.step if self.best else None
        )

    def seconds_left(self, step: int) -> float:
        """Return what the evaluations after so many steps will take, by the latest one."""
        return self._seconds * (self._count(self._training.max_steps) - self._count(step))

    def end(self) -> None:
        """Put the best adapter back, if that is asked for, and note how the training ended."""
        worker, best, training = self._worker, self.best, self._training
        if self.is_enough:
            times = training.early_stopping_patience
            worker.run.notes.append(
                f"stopped early after step {worker.step} of {training.max_steps}: {times} "
                f"evaluations in a row had no better {self._metric.label}"
            )
            worker.run.publish(stopped_early=worker.step < training.max_steps)
        if best is None or not training.load_best_model_at_end or best.step == worker.step:
            return
        loaded = self._loaded_after
        with contextlib.nullcontext() if loaded is None else fitting(loaded):
            worker.adapter.restore(best.adapter)
            statistics = require_adapters(worker.model).statistics
            statistics.replace(worker.adapter.name, best.statistics)
        if worker.held:
            worker.held.follow(worker.model)  # other ranks are other parameters
        worker.run.notes.append(
            f"the adapter is that of step {best.step}, whose {self._metric.label} was the best of "
            f"{len(self.rows)} evaluations: {best.value:.4g}"
        )

    def _count(self, step: int) -> int:
        """Return how many evaluations there are up to a step, that after it included."""
        training = self._training
        if training.evaluates == "no" or not self._worker.data.held_out:
            return 0
        if (every := training.evaluated_every) is not None:
            return step // every
        if training.num_train_epochs is not None:
            epochs = step / training.steps_per_epoch(self.examples, processes.count())
        else:
            epochs = step * training.step_size * processes.count() / self.examples
        # As in HF Trainer an epoch that the last step breaks off ends there.
        return math.ceil(epochs) if step >= training.max_steps else math.floor(epochs)

    def state(self) -> dict[str, Any]:
        """Return what `load_state` takes."""
        best = self.best
        return {
            "rows": [dict(row) for row in self.rows],
            "waited": self._waited,
            "best": best and {**vars(best), "statistics": dict(best.statistics)},
        }

    def load_state(self, state: Mapping[str, Any], step: int) -> None:
        """Go on from what `state` returned.

        Args:
            state: {} of a run that had none.
            step: that the checkpoint was made after.
        """
        if state:
            self._loaded_after = step
            self.rows, self._waited = [dict(row) for row in state["rows"]], state["waited"]
            self.best = state["best"] and Best(**state["best"])
            self.publish()

    def summary(self) -> dict[str, Any]:
        """Return what a run's summary says of them; {} where there were none."""
        if self.best is None:
            return {}
        early = self.is_enough and self._worker.step < self._training.max_steps
        return {
            "best_step": self.best.step,
            "best_metric": self.best.value,
            **({"stopped_early": True} if early else {}),
        }
