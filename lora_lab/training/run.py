"""A `Run`: training in the background, the notebook stays yours."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.own_warnings import collected
from lora_lab._util.torch_modes import plain_modes
from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.api import attach, detach
from lora_lab.methods.attached import attached, require_adapters
from lora_lab.methods.base import Adapter
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.head.adapter import with_head
from lora_lab.methods.own_draws import drawing
from lora_lab.methods.turns import at_work, turn, turn_at_rest
from lora_lab.models.fresh_head import draw_head
from lora_lab.runs import signature
from lora_lab.runs.checkpoints import Checkpoint
from lora_lab.runs.samples import Sample
from lora_lab.runs.store import NullStore, RunStore
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.families.api import family_of
from lora_lab.training import announced, at_exit, own_adapter, processes, queue
from lora_lab.training.checks import check, check_rows, check_settings
from lora_lab.training.control import Control
from lora_lab.training.data import RunData
from lora_lab.training.description import describe
from lora_lab.training.fingerprints import base_fingerprint
from lora_lab.training.isolation import ADAPTER
from lora_lab.training.kept import kept_parts
from lora_lab.training.observer import copy_update
from lora_lab.training.outcome import RunResult, outcome_of, result_of
from lora_lab.training.progress import Curves
from lora_lab.training.snapshot import Failure, RunState, Snapshot
from lora_lab.training.start_from import Start, start_notes
from lora_lab.training.worker import Worker

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lora_lab.models.load import LoadedModel

_INIT_BATCHES = 16  # that an initialization from data gets to see


class Run(Curves):
    """One training of an adapter on a thread of its own.

    All methods may be called from any thread and only set a flag, except `wait`, `result` and
    `paused`, which wait. The model is the one in the notebook: between `pause()` and `resume()`,
    or in a ``with run.paused() as model:`` block, it may be used and looked into.

    A run draws its dropout from random numbers of its own: what is seeded or drawn in the notebook
    meanwhile changes no step, nor does a pause, and torch's global numbers are left alone.

    Attributes:
        id: name of the folder, unique.
        folder: where config, metrics, checkpoints and the adapter go.
        asked_training: how it trains, as it was asked for: epochs may be no steps yet.
        config, training: what is trained and how; of a combination `config` is a tuple. Where the
            task has classes, the model's head is in it; see `HeadConfig`.
        lm, task: the model with tokenizer and card, and the data.
        adapter: the `Adapter` in training; None before `start`.
        samples: a few held-out prompts with the answers known so far.
        notes: what the libraries underneath logged, each line once.
        error: the exception of a failed run; tokens in its text are redacted.
        resumes: the checkpoint that it goes on from; None of a new run, and once it goes on.
        start_from: the adapter that it starts from, if it is no fresh one.
        kept: {metric: what it is measured on beside its task}; see `lora_lab.training.kept`.
        is_again: whether it goes on in the folder of a run that ended.
        wait_at_exit: whether a script that ends meanwhile waits for it; see `lora_lab.train`.
    """

    def __init__(
        self,
        lm: LoadedModel,
        task: Task,
        config: MethodConfig | Sequence[MethodConfig] | None,
        training: TrainingConfig,
        output_dir: str | os.PathLike[str] = "runs",
        name: str | None = None,
        *,
        store: RunStore | None = None,
        resumes: Checkpoint | None = None,
        start_from: Start | None = None,
        wait_at_exit: bool = True,
    ) -> None:
        check(lm, task)
        self.lm = lm
        self.task = task
        self.start_from = start_from
        self.config = self._chosen(config)
        self.asked_training = training
        self.training = training = training.for_examples(len(task.train), processes.count())
        check_settings(lm, task, self.configs, training)
        check_rows(lm, task, self.configs, training)
        self.resumes = resumes
        self.notes: list[str] = [*task.notes, *start_notes(self)]
        self.notes += family_of(task, lm).notes(lm, task)
        self.kept = kept_parts(self)
        self.is_again = store is not None
        folder = (
            processes.from_main(lambda: RunStore.create(output_dir, name).folder)
            if store is None
            else store.folder
        )
        kind = RunStore if processes.main() else NullStore
        self.store = kind(folder, None if store is None else store.config)
        self.id = self.store.id
        self.folder = self.store.folder
        self.adapter: Adapter | None = None
        self.samples: tuple[Sample, ...] = ()
        self.error: Exception | None = None
        self.wait_at_exit = wait_at_exit
        self._watch: str | None = None
        self._publishing = threading.Lock()
        self._snapshot = Snapshot(self.id, total_steps=training.max_steps, loss_unit=task.loss_unit)
        self.control = Control(self.id, self._enter, queue.start_next)

    def __repr__(self) -> str:
        seen = self.snapshot
        loss = "" if seen.loss is None else f", loss {seen.loss:.3f}"
        return f"<Run {self.id}: {seen.state}, step {seen.step} of {seen.total_steps}{loss}>"

    @property
    def model(self) -> PreTrainedModel:
        """The model that is trained, the one in the notebook."""
        return self.lm.model

    @property
    def configs(self) -> tuple[MethodConfig, ...]:
        """The configs of all parts; one, unless methods are combined."""
        return self.config.parts

    @property
    def state(self) -> RunState:
        """The state now."""
        at_exit.seen(self)
        return self.control.state

    @property
    def title(self) -> str:
        """What lines for people call it."""
        return f"run {self.id}"

    @property
    def is_paused(self) -> bool:
        """Whether it rests, or is about to, until `resume` is called."""
        return self.control.is_paused

    @property
    def snapshot(self) -> Snapshot:
        """How the run stands; immutable, costs nothing, from any thread."""
        at_exit.seen(self)
        return self._snapshot

    @property
    def watch(self) -> str | None:
        """Name of the site whose factors go into the Snapshot; None: nobody looks.

        Setting it also makes spectra come up to 4 times a second instead of every 10 s.
        """
        return self._watch

    @watch.setter
    def watch(self, site: str | None) -> None:
        adapter = self.adapter
        if site is not None and adapter is not None and site not in adapter.sites:
            some = ", ".join(list(adapter.sites)[:3])
            which = f"it adapts {some}, …" if some else f"{adapter.method} has no factors to watch"
            raise RunError(f"run {self.id} does not adapt {site!r}; {which}")
        self._watch = site
        at_rest = self.state is RunState.PAUSED or self.state.final
        if site is not None and adapter is not None and at_rest:
            # No step will come to copy them, and none changes them meanwhile.
            self.publish(factors=copy_update(adapter, site, self.snapshot.step))

    def start(self, *, beside: bool = False) -> Run:
        """Attach the adapter (name "default", replacing one of that name) and train; return self.

        While another run trains in this process, this one waits in the queue (state "queued") and
        starts by itself; what does not fit is then told by its Snapshot and by `result`. A no-op
        while the run runs or waits.

        Args:
            beside: do not wait, train beside it, on another model. Both take the steps that they
                would take alone; whether their memory fits together is for you to see.

        Raises:
            ConfigError: the config does not fit the model.
            RunError: the run was started before, another process is at work on its folder, or
                `beside` a run on the same model.
        """
        with turn(self.model):  # somebody may have it for a moment
            queue.start(self, beside)
        return self

    def start_now(self) -> None:
        """Start on the spot. For `queue`, which knows who else trains."""
        try:
            self.control.start(self._work, self._prepare)
        except BaseException:
            if self.state is RunState.IDLE:
                announced.withdraw(self)
            raise

    def begin(self) -> bool:
        """Start if it is queued still; return whether it was. For `queue`."""
        return self.control.begin(self._work_from_the_queue)

    def pause(self) -> None:
        """Pause at the next optimizer step. See `Control.pause`."""
        self.control.pause()

    def resume(self) -> None:
        """Go on after a pause. See `Control.resume`."""
        self.control.resume()

    def checkpoint(self) -> None:
        """Have a checkpoint written at the next optimizer step, or at the end of a pause.

        After the last step the adapter that is saved at the end stands for it.
        """
        self.control.request_checkpoint()

    def stop(self) -> None:
        """End at the next optimizer step; the adapter is saved as it is, not evaluated again.

        `lora_lab.resume` goes on from there. A queued run leaves the queue and is done.
        """
        was_queued = self.control.state is RunState.QUEUED
        self.control.stop()
        if was_queued and self.control.state.final:
            queue.dequeue(self)
            self.publish(phase="")
            announced.withdraw(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run is over; return whether it is. See `Control.wait`."""
        return self.control.wait(timeout)

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait until the run is over and return what it leaves.

        Raises:
            RunError: the run failed (the cause is attached), has not started, or is not over
                after `timeout` seconds.
        """
        if not self.wait(timeout):
            raise RunError(f"run {self.id} is still {self.state} after {timeout:g} s")
        return result_of(self)

    @property
    def is_attached(self) -> bool:
        """Whether the model has the run's own adapter, and not another one in its place."""
        return own_adapter.is_attached(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Save the run's own adapter, in PEFT's format where it has one; return the folder.

        As it is after the step under way; if the model has it no more, as the run left it. See
        `save_adapter`.

        Raises:
            RunError: the run has no adapter, neither on the model nor on disk.
        """
        return own_adapter.save(self, Path(folder))

    def paused(self) -> AbstractContextManager[PreTrainedModel]:
        """Return a ``with`` block that has the model, the run at rest between two optimizer steps.

        The model is in the mode that training left it in. Afterwards its modes and its active
        adapter are put back, gradients are dropped, and the run goes on unless it was paused
        before. Of an idle or finished run, simply the model.
        """
        return self.control.visit(self.model)

    def publish(self, **changes: Any) -> None:
        """Replace the Snapshot by one with `changes`. For the run's own parts."""
        with self._publishing:
            version = self._snapshot.version + 1
            self._snapshot = dataclasses.replace(self._snapshot, version=version, **changes)

    def outcome(self) -> str:
        """Return in one line how the run ended, and how to go on with it."""
        return outcome_of(self)

    def become_copy(self, owner: int) -> None:
        """Let go of the run: this process is a forked child of the one that trains it."""
        self._publishing = threading.Lock()  # a thread that is not here may have it
        self.control.become_copy(owner)
        line = f"it trains in process {owner}, of which this one is a forked copy"
        self.publish(state=self.state, failure=Failure(line, "ask it there"))

    def _enter(self, state: RunState) -> None:
        self.publish(state=state)
        if state.final:
            at_exit.discard(self, failed=state is RunState.FAILED)
        else:
            at_exit.add(self)

    def _prepare(self) -> None:
        if self.is_again:
            log_bytes = 0 if self.resumes is None else int(self.resumes.state["log_bytes"])
            self.curve_before = processes.from_main(lambda: self.store.reopen(log_bytes))
        else:
            processes.from_main(self.store.begin)
        try:
            base = base_fingerprint(self.model)
            with drawing(self.training.seed, self.training.init_draws), plain_modes():
                self.adapter = self._attach()
            self.adapter.run, self.adapter.trains = self.id, self.control.works
            self.adapter.at_rest = functools.partial(self.control.visit, None)
            known = require_adapters(self.model)
            known.trained = self.adapter
            if (watch := known.watch) is not None:
                watch.tell = self.notes.append  # a warning would be printed into some cell
            if self._watch not in self.adapter.sites:
                self._watch = None  # set before there was anything to compare it with
            if not self.is_again:
                self.store.write_config(signature.signed(describe(self, base)))
        except BaseException:
            self.store.close()
            raise

    def _chosen(self, given: MethodConfig | Sequence[MethodConfig] | None) -> MethodConfig:
        """Return what is trained: what was asked for, or what the run starts from, with a head."""
        config = None if given is None else as_config(given)
        if self.task.head and config is not None:  # it starts at random, whatever the method
            config = as_config(with_head(self.model, config.parts))
        if self.start_from is not None:
            return self.start_from.config_for(self.model, config)
        if config is None:
            raise ConfigError("no method is given; name one, such as LoraConfig()")
        return config

    def _attach(self) -> Adapter:
        if self.start_from is not None and self.resumes is None:
            return self.start_from.attach(self.model, self.config, ADAPTER)
        adapter = attach(self.model, self.config, ADAPTER, batches=self._batches())
        if self.resumes is None and self.task.head:
            draw_head(self.model, adapter, self.training.seed)
        return adapter

    def _batches(self) -> list[dict[str, Tensor]] | None:
        """Return what an initialization that starts from data gets to see: the first of them."""
        if not self.config.needs_batches:
            return None
        data = RunData(self.lm, self.task, self.training, [], self.config.tokens)
        return data.first_batches(_INIT_BATCHES)

    def _work(self) -> None:
        with self._explained(), at_work():
            Worker(self).work()

    def _work_from_the_queue(self) -> None:
        with self._explained():
            self.publish(phase="")
            # Somebody may have the model since before its turn.
            with turn_at_rest(self.model, self.control.rest):
                if (before := attached(self.model).get(ADAPTER)) is not None:
                    detach(self.model, ADAPTER)
                    whose = f"of run {before.run}" if before.run else "that was there"
                    self.notes.append(f"took the adapter {ADAPTER!r} {whose} off the model")
                with collected() as said:  # not printed into some cell
                    self._prepare()
                self.notes += said
        self._work()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Keep what went wrong, for people, and without the tensors that its frames hold."""
        try:
            yield
        except Exception as error:
            if self.error is None:  # before the worker could keep it
                announced.fail(self, error)
            error.__traceback__ = None  # the worker's frames have been added on the way here
            raise RunError(f"run {self.id} failed") from None

    def description(self) -> dict[str, Any]:
        """Return what the run was made of, as plain JSON: model, task, configs, versions."""
        return describe(self)


def runs_on(model: nn.Module) -> list[Run]:
    """Return the runs that train a model, or wait for their turn to."""
    return [job for job in at_exit.jobs() if isinstance(job, Run) and job.model is model]
