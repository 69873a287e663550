"""What a run does on its thread: evaluate the base, train, evaluate, save; and how it fails.

Imports transformers; loaded by a run's own thread when it starts. Nothing here prints, displays or
touches a widget: all that is to be seen goes into the run's Snapshot.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lora_lab.adapters import Adapter, activate
from lora_lab.checkpoint import save_adapter
from lora_lab.errors import RunError
from lora_lab.memory import Meter
from lora_lab.runs.data import RunData
from lora_lab.runs.observer import Observer
from lora_lab.runs.problems import explain, forget_frames
from lora_lab.runs.progress import LossHistory, Pace
from lora_lab.runs.recorder import Recorder
from lora_lab.runs.surroundings import (
    ADAPTER,
    ModelState,
    diverted_log,
    empty_cache,
    random_state,
    thread_settings,
)
from lora_lab.runs.trainer import Fit, NotFiniteError, Step

if TYPE_CHECKING:
    from lora_lab.runs.run import Run

_GOOD_EVERY = 50  # steps between copies of the adapter to fall back to, where save_steps is 0


Copy = tuple[int, Sequence[Tensor]]  # the adapter's parameters after so many steps


class Worker:
    """Does one run's work, on the run's thread."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.model: Any = run.model
        self.adapter = cast(Adapter, run.adapter)
        self.losses = LossHistory()
        self.pace = Pace()
        self.recorder = Recorder(run.store, self.adapter)
        self.observer = Observer(self.adapter, self.recorder)
        self.meter = Meter(self.model)
        self.data = RunData(run.lm, run.task, run.training, self.boundary, run.notes)
        self.metrics: dict[str, float] = {}
        self.fit: Fit | None = None
        self.step = 0
        self._candidate: Copy = (0, [])
        self._good: Copy = (0, [])

    def work(self) -> None:
        """Do all of it.

        Raises:
            Exception: what went wrong; the run's Snapshot tells of it, the frames are cleared.
        """
        try:
            with thread_settings(self.meter.device), diverted_log(self.run.notes):
                self._phases()
        except Exception as error:
            self._fail(error)
            raise
        finally:
            self.recorder.close()
            self.run.store.close()

    def boundary(self) -> bool:
        """Rest if somebody wants that; return whether the run is to end."""
        control = self.run.control
        if control.pause_wanted:
            self.pace.stand()
            self.run.publish(elapsed_seconds=self.pace.seconds, eta_seconds=None)
            kept = ModelState(self.model, self.meter.device)
            control.rest()
            kept.restore(self.adapter)
            if self.fit is not None:
                self.pace.go()
        return control.stop_wanted

    def _phases(self) -> None:
        control = self.run.control
        self.boundary()  # somebody may have the model since before the start
        self._keep_copy()
        self._good = self._candidate  # it is the base model: B is zero
        self.run.publish(memory=self.meter.reading())
        if self.data.held_out:
            self._evaluate_base()
        if not control.stop_wanted:
            self._train()
        if self.data.held_out and not control.stop_wanted:
            self._evaluate_adapted()
        self._enter("saving")
        self._save_end("stopped" if control.stop_wanted else "done")
        self._enter("")

    def _evaluate_base(self) -> None:
        self._enter("evaluating the base model")
        activate(self.model, None)
        try:
            scores = self.data.evaluate(adapted=False)
        finally:
            activate(self.model, ADAPTER)
        if scores is not None:
            if not math.isfinite(scores["loss"]):
                raise RunError(
                    f"the base model's own loss on the held-out examples is {scores['loss']}; load "
                    'it with dtype="float32", or look for examples with an empty completion'
                )
            self._add_metrics({f"{name}_before": value for name, value in scores.items()})

    def _evaluate_adapted(self) -> None:
        self._enter("evaluating")
        scores = self.data.evaluate(adapted=True)
        if scores is not None:
            if not math.isfinite(scores["loss"]):
                raise NotFiniteError(f"the held-out loss is {scores['loss']} after training", True)
            self._add_metrics({f"{name}_after": value for name, value in scores.items()})

    def _train(self) -> None:
        run = self.run
        self._enter("reading the data")
        examples = self.data.training_examples()
        with torch.no_grad():
            self.recorder.begin()
        self._enter("training")
        self.fit = Fit(
            model=self.model,
            adapter=self.adapter,
            examples=examples,
            collate=self.data.collate,
            training=run.training,
            folder=run.folder,
            meter=self.meter,
            on_step=self._step_done,
        )
        self.pace.go()
        try:
            self.fit.run()
        finally:
            self.pace.stand()
            self.fit = None
        run.publish(**self._look(now=True), eta_seconds=0.0)

    def _step_done(self, step: Step) -> bool:
        run, training = self.run, self.run.training
        self._good = self._candidate  # this step's loss was finite
        self.step = step.number
        self.losses.add(step.number, step.loss)
        self.pace.step()
        rate = self.pace.steps_per_second
        seconds = self.pace.seconds
        run.store.log(
            {
                "step": step.number,
                "loss": step.loss,
                "learning_rate": step.learning_rate,
                "tokens": step.tokens,
                "seconds": round(seconds, 4),
            }
        )
        run.publish(
            step=step.number,
            loss=step.loss,
            losses=self.losses.points(),
            learning_rate=step.learning_rate,
            steps_per_second=rate,
            elapsed_seconds=seconds,
            eta_seconds=(training.max_steps - step.number) / rate if rate else None,
            memory=self.meter.reading(),
            **self._look(now=run.control.pause_wanted),
        )
        last = step.number == training.max_steps
        if step.number % (training.save_steps or _GOOD_EVERY) == 0 and not last:
            self._keep_copy()
            if training.save_steps:
                self._checkpoint()
        return self.boundary()

    def _look(self, now: bool) -> dict[str, Any]:
        with torch.no_grad():
            return self.observer.look(self.step, self.run.watch, now)

    def _enter(self, phase: str) -> None:
        self.run.publish(phase=phase)

    def _add_metrics(self, values: dict[str, float]) -> None:
        self.metrics.update(values)
        self.run.samples = self.data.samples
        self.run.publish(metrics=dict(self.metrics))

    # Saving --------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        assert self.fit is not None
        assert self.fit.optimizer is not None
        state = {
            "step": self.step,
            "optimizer": self.fit.optimizer.state_dict(),
            "scheduler": self.fit.scheduler.state_dict(),
            "random": random_state(self.meter.device),
            "method": self.adapter.training_state(),
        }
        self.run.store.save_checkpoint(self.step, self._write_adapter, state)

    def _write_adapter(self, folder: Path) -> None:
        save_adapter(self.model, folder, name=ADAPTER)

    def _save_end(self, state: str) -> None:
        run = self.run
        run.store.save_adapter(self._write_adapter)
        run.store.write_json("samples.json", [sample.to_dict() for sample in run.samples])
        summary = {
            "state": state,
            "steps": self.step,
            "seconds": round(self.pace.seconds, 3),
            "metrics": self.metrics,
            "notes": list(run.notes),
        }
        run.store.write_json("summary.json", summary)
        run.losses = tuple(self.losses.all)

    # Failing -------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        run = self.run
        problem = explain(error, run.training)
        run.error = error
        forget_frames(error)
        self.fit = None
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        empty_cache(self.meter.device)
        run.losses = tuple(self.losses.all)
        kept = ""
        with contextlib.suppress(RunError):  # the disk may be what failed; the first error counts
            if isinstance(error, NotFiniteError):
                if error.adapter_suspect:
                    self._restore_good()
                kept = f"the adapter is as it was after step {self.step}"
                self._save_end("failed")
            else:
                summary = {"state": "failed", "steps": self.step, "problem": problem.message}
                run.store.write_json("summary.json", summary)
        remedy = "; ".join(filter(None, (kept, problem.remedy)))
        run.publish(problem=replace(problem, remedy=remedy), eta_seconds=None)

    def _keep_copy(self) -> None:
        """Copy the adapter to the CPU. The copy is good when the next step's loss is finite."""
        self._candidate = (self.step, self.adapter.values())

    def _restore_good(self) -> None:
        """Put the adapter back to the newest copy that is known to be good."""
        self.step, copy = self._good
        self.adapter.set_values(copy)
