"""What a run does on its thread: evaluate the base, train, evaluate, save; and how it fails.

Nothing here prints, displays or touches a widget: all that is to be seen goes into the run's
Snapshot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from lora_lab.budget.meter import Meter
from lora_lab.errors import ModelError
from lora_lab.methods.base import Adapter
from lora_lab.methods.offload import offload_notes
from lora_lab.methods.own_modes import OwnModes
from lora_lab.runs.records import SAMPLES_FILE
from lora_lab.runs.samples import Sample
from lora_lab.training import device_memory, isolation, lost_adapter, processes, saved_state
from lora_lab.training.base_weights import BaseWeights
from lora_lab.training.data import RunData
from lora_lab.training.divergence import Divergence
from lora_lab.training.epochs import settle_steps
from lora_lab.training.evaluations import Evaluations
from lora_lab.training.failing import fail
from lora_lab.training.gpu_memory import Forecast
from lora_lab.training.held import Held
from lora_lab.training.isolation import ModelState, diverted_log, thread_settings
from lora_lab.training.kept import Kept
from lora_lab.training.last_good import LastGood
from lora_lab.training.learned import checksum, learned_notes
from lora_lab.training.loss_scale import precision_notes
from lora_lab.training.observer import Observer
from lora_lab.training.padding import Padding
from lora_lab.training.progress import LossHistory, Pace
from lora_lab.training.recorder import Recorder
from lora_lab.training.resume_state import fitting
from lora_lab.training.scores import score_adapted, score_base
from lora_lab.training.sharding import settle
from lora_lab.training.step import Step
from lora_lab.training.trainer import Fit

if TYPE_CHECKING:
    from lora_lab.training.run import Run

_GOOD_EVERY = 50  # steps between copies of the adapter to fall back to, where save_steps is 0
_SAVE_SECONDS = 60.0  # what a killed run loses at most, unless save_steps is 0
_SAVE_SHARE = 20  # a checkpoint that took t seconds is not repeated by the clock for 20·t


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
        self.home = processes.training_device(self.meter.device)
        learned_tokens = sum(getattr(config, "tokens", 0) for config in run.configs)
        self.data = RunData(
            run.lm, run.task, run.training, run.notes, learned_tokens, self._evaluation_ends
        )
        self.kept = Kept(self.model, run.kept, run.training, run.notes, self._evaluation_ends)
        self.metrics: dict[str, float] = {}
        self.intervals: dict[str, tuple[float, float]] = {}
        self.scoring_seconds = 0.0  # that scoring the base model took
        self.padding = Padding()
        self.fit: Fit | None = None
        self.forecast: Forecast | None = None
        self.step = 0
        self.divergence = Divergence(rise=self.data.family.rise)
        self.evaluations = Evaluations(self)
        self._checkpoint_at = 0  # the step of the latest
        self._checkpoint_due = math.inf  # by the clock
        self.last_good = LastGood(self.model, self.adapter)
        self.modes = OwnModes(self.model, apart=processes.count() == 1, whose=f"run {run.id}")
        self.held: Held | None = None  # from the first that it does with the model
        self.base: BaseWeights | None = None  # likewise; among several processes nobody is beside

    def work(self) -> None:
        """Do all of it.

        Raises:
            Exception: what went wrong; the run's Snapshot tells of it, the frames are cleared.
        """
        told = processes.lost_in_words(self.run.folder)
        try:
            with thread_settings(self.home), self.modes.here(), diverted_log(self.run.notes), told:
                self._phases()
        except Exception as error:
            fail(self, error)
            raise
        finally:
            self.recorder.close()
            self.run.store.close()

    def at_step_boundary(self) -> bool:
        """Rest if somebody wants that; return whether the run is to end.

        A checkpoint that somebody asks for is written here, while the run trains. Of several
        processes, all come here, and end together when one of them is to; the others wait while
        one rests, and are told every now and then that it does.
        """
        control = self.run.control
        before: ModelState | None = None
        waiting, pacing = True, self.pace.is_running
        while waiting:
            if before is None and control.pause_wanted:
                before = self._start_rest()
            resting = before is not None and control.rest(processes.longest_silence())
            if before is not None and not resting:
                before.restore(self.adapter)
                before = None
                if self.base is not None:
                    self.base.note()
                if self.fit is not None:
                    self.fit.follow()
                if pacing:
                    self.pace.start()
            waiting, ends = processes.any_of(resting or control.pause_wanted, control.stop_wanted)
            if ends:
                control.stop()
        self._checkpoint_if_asked()
        return ends

    def _start_rest(self) -> ModelState:
        """Make ready for a rest; return what has to be put back after it."""
        self.check_base()
        self._checkpoint_if_asked()
        self.pace.stop()
        looks = self.fit is not None and processes.main()  # before it trains nothing is to be seen
        seen = self.observer.catch_up(self.step, self.run.watch) if looks else {}
        self.run.publish(elapsed_seconds=self.pace.seconds, eta_seconds=None, **seen)
        return ModelState(self.model, self.modes, self.held)

    def _should_stop(self) -> bool:
        (ends,) = processes.any_of(self.run.control.stop_wanted)
        if ends:
            self.run.control.stop()
        return ends

    def _evaluation_ends(self) -> bool:
        # Several processes need not come here equally often: they end when the evaluation is over.
        return processes.count() == 1 and self.at_step_boundary()

    def _phases(self) -> None:
        self.at_step_boundary()  # somebody may have the model since before the start
        before = self.run.resumes
        if before is not None:
            self._resume(before.step, before.state)
        if processes.sharded() and before is None:
            self._begin_records()  # which look at whole matrices
        self.run.notes += settle(self.model, self.adapter, self.meter.device, self.home)
        self.meter = Meter(self.model)  # it may have come to another device
        self.held = Held(self.model)
        self.base = BaseWeights(self.model, self.adapter) if processes.count() == 1 else None
        processes.equalise(saved_state.exact_state(self.adapter).values())
        self.last_good.keep(self.step)
        self.last_good.confirm()  # the base model, B being zero, or what a checkpoint held
        self.run.publish(memory=self.meter.reading())
        self.enter("reading the data")
        examples = self.data.training_examples()
        self.evaluations.examples = len(examples)
        settle_steps(self.run, len(examples))
        self._check_gpu_memory(*self.data.longest(examples))
        if self.data.held_out and before is None:
            score_base(self)
        begun = None if before or processes.sharded() else checksum(self.adapter)
        if not self._should_stop():
            self._train(examples)
        self.check_base()
        if not self._should_stop():
            self.evaluations.end()
            self.run.publish(**self._observe(now=True))
        if not self._should_stop() and self.data.held_out:
            score_adapted(self)
            lost_adapter.check_owned(self.model, self.adapter, self.held, when="was scored")
            lost_adapter.check_base(self.base, when="was scored", learns=False)
        if not self._should_stop():
            self.run.notes += learned_notes(self, moved=begun != checksum(self.adapter))
        self.enter("saving")
        self.save_end("stopped" if self._should_stop() else "done")
        self.enter("")

    def _check_gpu_memory(self, length: int, *others: int | None) -> None:
        """Refuse before the first step what the dry run says will not fit; see `Forecast`."""
        run = self.run
        self.forecast = Forecast(
            self.model, run.config, run.training, length, self.meter.device, *others
        )
        memories = device_memory.memories_of(self.model)
        memory = device_memory.together(memories)
        if memory is None or processes.sharded():  # forecasts know of no shards
            return
        self.enter("checking the memory")
        try:
            self.forecast.check(memory)
            run.notes += device_memory.notes(self.model, self.forecast, run.training, memories)
        except ModelError as error:  # it cannot be run on fake tensors: nothing is known
            run.notes.append(f"the memory was not checked before the start: {error}")

    def _train(self, examples: Sequence[Any]) -> None:
        run = self.run
        before = run.resumes
        if before is None and not processes.sharded():
            self._begin_records()
        self.evaluations.run_if_due(self.step)  # a resumed run may have been ended within one
        if self.evaluations.is_enough or self._should_stop():
            return
        self.enter("training")
        notes = [*precision_notes(self.model, self.adapter), *offload_notes(self.model)]
        notes += isolation.modes_notes(self.modes) + processes.unheard()
        run.notes += [note for note in notes if note not in run.notes]
        self.fit = Fit(
            model=self.model,
            adapter=self.adapter,
            examples=examples,
            collate=self.data.family.collate,
            training=run.training,
            folder=run.folder,
            meter=self.meter,
            on_step=self._step_done,
            loss=self.data.family.loss,
            lengths=self.data.lengths(examples),
            padding=self.padding,
            all_or_nothing=self.last_good.all_or_nothing,
            gradients=isolation.own_gradients(run.id, self.modes),
            held=self.held,
            completed_steps=self.step,
            resume_state=None if before is None else before.state,
        )
        run.resumes = before = None  # the moments would be there twice
        self._checkpoint_due = time.monotonic() + _SAVE_SECONDS
        self.pace.start()
        try:
            self.fit.run()
        finally:
            self.pace.stop()
            self.fit = None
        saved_state.check_numbers(self.model, self.adapter)  # before its spectra are looked at
        run.publish(**self._observe(now=True), eta_seconds=self.scoring_seconds)

    def _begin_records(self) -> None:
        if processes.main():
            with torch.no_grad():
                self.recorder.begin()

    def _step_done(self, step: Step) -> bool:
        run, training = self.run, self.run.training
        self.step, last = step.number, step.number == training.max_steps
        self.losses.add(step.number, step.loss)
        self.divergence.add(step.loss)
        if not self.divergence.high_in_a_row:
            self.last_good.confirm()  # this step's loss was finite, and not far up
        self.pace.step()
        rate, seconds = self.pace.steps_per_second, self.pace.seconds
        seen, memory = self._observe(now=run.control.pause_wanted), self.meter.recent(now=last)
        run.store.log(step.row(seconds))
        run.notes += [note for note in step.notes if note not in run.notes]
        run.publish(
            step=step.number,
            skipped_steps=self.fit.skipped_steps if self.fit else 0,
            loss=step.loss,
            losses=self.losses.points(),
            learning_rate=step.learning_rate,
            steps_per_second=rate,
            elapsed_seconds=seconds,
            eta_seconds=self._seconds_left(step.number),
            memory=memory,
            padding=self.padding.share,
            **seen,
        )
        if self.fit is not None and self.fit.trackers is not None:
            self.fit.trackers.log_seen(step.number, seen.get("spectra"), memory.peak)
        self.divergence.check(step.number, step.loss)
        self.evaluations.run_if_due(self.step)
        last = last or self.evaluations.is_enough
        if step.number % (training.save_steps or _GOOD_EVERY) == 0 and not last:
            self.check_base()
            if not self.divergence.high_in_a_row:
                self.last_good.keep(self.step)
            if training.save_steps:
                self._checkpoint()
        elif training.save_steps and time.monotonic() >= self._checkpoint_due and not last:
            self._checkpoint(passing=True)
        stop = self.at_step_boundary()
        if stop and not last:
            self._checkpoint(passing=True)  # so that it can be gone on with from here
        return stop or last

    def _seconds_left(self, step: int) -> float | None:
        """Return the seconds to the run's end, in which the held-out examples are scored again."""
        rate = self.pace.steps_per_second
        left = self.run.training.max_steps - step
        scoring = self.scoring_seconds + self.evaluations.seconds_left(step)
        return left / rate + scoring if rate else None

    def _observe(self, now: bool) -> dict[str, Any]:
        return self.observer.observe(self.step, self.run.watch, now) if processes.main() else {}

    def enter(self, phase: str) -> None:
        """Say what the run is at."""
        self.run.publish(phase=phase)

    def check_base(self) -> None:
        """Raise `LostAdapterError` if the base's weights are others than a while ago."""
        lost_adapter.check_base(self.base)

    # Saving --------------------------------------------------------------------------------------

    def _checkpoint_if_asked(self) -> None:
        # Between the phases there is no optimizer: the request waits for the first step's end.
        if self.fit is not None and self.step and self.run.control.take_checkpoint_request():
            self._checkpoint()

    def _checkpoint(self, passing: bool = False) -> None:
        """Write what `_resume` reads, unless this step has one already."""
        assert self.fit is not None
        self.check_base()
        saved_state.check_numbers(self.model, self.adapter)
        if self._checkpoint_at == self.step or not processes.main():
            return
        start = time.monotonic()
        state = saved_state.checkpoint_state(self)
        self.run.store.save_checkpoint(self.step, self._write_adapter, state, passing=passing)
        self._checkpoint_at = self.step
        end = time.monotonic()
        self._checkpoint_due = end + max(_SAVE_SECONDS, _SAVE_SHARE * (end - start))

    def _resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Put back what `_checkpoint` wrote; the optimizer's part is for `Fit`."""
        run = self.run
        saved_state.load_state(self.model, self.adapter, state)
        self.step = self._checkpoint_at = step
        self.losses = LossHistory(run.curve_before)
        self.divergence = Divergence(self.losses.values, self.data.family.rise)
        self.pace = Pace(state["seconds"])
        if processes.main():
            with torch.no_grad():
                kept = state.get("spectra_step")
                run.notes += self.recorder.resume(step, len(run.curve_before), kept)
        samples = tuple(Sample(**values) for values in state["samples"])
        self.data.samples = run.samples = samples or self.data.samples
        self.metrics = dict(state["metrics"])
        self.intervals = {n: (low, high) for n, (low, high) in state.get("intervals", {}).items()}
        with fitting(step):
            self.kept.load_state(state.get("kept", {}))
        self.padding.load_state(state.get("padding", {}))
        self.evaluations.load_state(state.get("evaluations", {}), step)
        run.publish(
            step=step,
            skipped_steps=state.get("loss_scale", {}).get("skipped", 0),
            loss=self.losses.values[-1] if self.losses.values else None,
            losses=self.losses.points(),
            elapsed_seconds=self.pace.seconds,
            metrics=dict(self.metrics),
            intervals=dict(self.intervals),
            padding=self.padding.share,
        )

    def _write_adapter(self, folder: Path) -> None:
        lost_adapter.write(self.model, self.adapter, folder)

    def save_end(self, state: str, **more: Any) -> None:
        """Write what a run leaves, however it has ended.

        Args:
            state: of the run.
            **more: for its summary.
        """
        run = self.run
        run.notes += saved_state.end_notes(self, state)
        folder = run.folder / "adapter"
        if self.step or state != "stopped":
            run.store.save_adapter(self._write_adapter)
        run.store.write_json(SAMPLES_FILE, [sample.to_dict() for sample in run.samples])
        run.store.write_summary({**saved_state.summary(self, state, folder), **more})
        run.curve = self.losses.curve()
