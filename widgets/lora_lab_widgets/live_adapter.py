"""The adapter under the glass: what the views read of it, whether or not it trains meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lora_lab._util.files import user_path
from lora_lab.checkpoint.locate import holds_adapter
from lora_lab.checkpoint.saving import save_adapter
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import activate, active, attached
from lora_lab.methods.base import Adapter
from lora_lab.methods.registry import method_of
from lora_lab.methods.turns import turn_of
from lora_lab.redaction import redacted
from lora_lab.spectra.update import SiteUpdate
from lora_lab.tasks.chats import ChatTask
from lora_lab.tasks.families.language_modeling import LanguageModelingTask
from lora_lab.tasks.prompts import GenerationTask
from lora_lab.training import own_adapter
from lora_lab.training.observer import copy_update
from lora_lab.training.run import Run, runs_on
from lora_lab.training.snapshot import RunState

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lora_lab.tasks.base import Task
    from lora_lab.tasks.prompts import Example
    from lora_lab_widgets.session import Session

Whose = tuple[str, object]
"""What an adapter is called, "" where there is none, and what is equal for the same one alone."""
ADAPTER = "default"  # the name under which `train` attaches


class LiveAdapter:
    """The model and the adapter of the latest run, which another may have displaced on the model.

    All but `latest` and `adapter` may take a while: call them on a thread.

    Args:
        session: has the model, the latest run and the sweep that trains.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.lm = session.lm
        self._saved: dict[Path, str] = {}  # {folder: whose adapter it was given here}

    @property
    def run(self) -> Run | None:
        """The latest run."""
        return cast("Run | None", self._session.run)

    @property
    def latest(self) -> Adapter | None:
        """The latest run's adapter, of whatever method; before the first run the model's."""
        run = self.run
        return attached(self.lm.model).get(ADAPTER) if run is None else run.adapter

    @property
    def adapter(self) -> Adapter | None:
        """The same, if it has a ΔW = s·BA to look at."""
        adapter = self.latest
        return adapter if adapter is not None and adapter.sites else None

    @property
    def nothing(self) -> str:
        """Why there is no `adapter`: none has been trained yet, or it learns no low-rank ΔW."""
        adapter, run = self.latest, self.run
        if adapter is None and run is not None and not run.state.final:
            return "There is no ΔW yet: it shows here when the first step is done."
        if adapter is None or adapter.sites:
            return "There is no ΔW yet: press Start, and it shows here while it trains."
        return f"{adapter.method} has no low-rank ΔW = BA to look at; {_learns(adapter.config)}."

    @property
    def whose(self) -> Whose:
        """What the latest adapter is called, and what it is known by, held by nobody here."""
        adapter, run, used = self.latest, self.run, self._session.used
        if adapter is None:
            return "", None
        words = used.words if used is not None else "the model's own adapter"
        return words if run is None else f"run {run.id}", weakref.ref(adapter)

    def task(self) -> Task:
        """Return the task that the adapter learns."""
        return self.run.task if self.run else self._session.plan.task

    def examples(self, count: int) -> Task | Sequence[Example]:
        """Return that task with so many held-out examples; none if it has classes."""
        task: Any = self.task()
        writes = isinstance(task, (GenerationTask, ChatTask, LanguageModelingTask))
        few = list(task.validation[:count])
        return dataclasses.replace(task, validation=few) if writes else []

    def at_rest(self) -> AbstractContextManager[PreTrainedModel]:
        """Hold every run on the model between two steps: inside, the model may be used.

        Of a sweep no cell begins or ends meanwhile.
        """
        return self._held("")

    def alone(self, what: str) -> AbstractContextManager[PreTrainedModel]:
        """Hold every run at rest; none begins in the block, and nobody else switches adapters.

        Args:
            what: is done meanwhile, for whoever wants to start one: "an adapter is being kept".
        """
        return self._held(what)

    @contextlib.contextmanager
    def _held(self, alone_for: str) -> Iterator[PreTrainedModel]:
        model = self.lm.model
        with contextlib.ExitStack() as held:
            # In this order: a cell that begins holds its sweep, and waits for its turn.
            if sweep := self._session.training_sweep:
                held.enter_context(sweep.paused())
            if alone_for:
                held.enter_context(turn_of(model).taken_for(alone_for))
            for run in runs_on(model):
                held.enter_context(run.paused())
            yield model

    @contextlib.contextmanager
    def in_force(self) -> Iterator[str | None]:
        """Have the adapter active in the block and yield its name; None: there is none.

        It is put back for that long if another one is in its place. Call it within `alone`.

        Raises:
            LoraLabError: it cannot be put back.
        """
        run, model = self.run, self.lm.model
        if self.latest is None:
            yield None
            return
        own = contextlib.nullcontext(ADAPTER) if run is None else own_adapter.on_model(run)
        with own as name:
            before = active(model)
            activate(model, name)
            try:
                yield name
            finally:
                activate(model, before)

    def save(self, folder: Path) -> Path:
        """Write the adapter into a folder; return the folder.

        An adapter that was there is replaced, with a warning where it is not this one's.

        Raises:
            LoraLabError: there is none, or it is of a run that was not started here.
        """
        place, (whose, _) = user_path(folder, AdapterError).resolve(), self.whose
        another = holds_adapter(place) and self._saved.get(place) != whose
        folder = self._write(folder)
        self._saved[place] = whose
        if another:
            line = f"{folder} held another adapter, which is replaced; it has {whose}'s now"
            warnings.warn(redacted(line), stacklevel=3)
        return folder

    def _write(self, folder: Path) -> Path:
        if (run := self.run) is not None:
            return run.save(folder)
        if (adapter := self.latest) is not None and adapter.run is not None:
            raise AdapterError(
                f"the adapter on the model is of run {adapter.run}, which this workbench has not "
                "started; save it by its run: run.save(folder)"
            )
        return save_adapter(self.lm.model, folder, ADAPTER)

    def factors(self, site: str) -> SiteUpdate | None:
        """Return a copy of one site's ΔW; None while only the next snapshot can bring it."""
        run, adapter = self.run, self.adapter
        snapshot = run.snapshot if run else None
        if snapshot is not None and snapshot.factors and snapshot.factors.site.name == site:
            return snapshot.factors
        if snapshot is not None and not resting(snapshot.state):
            return None  # the optimizer is at work on them
        if adapter is None or site not in adapter.sites:
            return None
        return copy_update(adapter, site, snapshot.step if snapshot else 0)

    def copy(self, *names: str) -> tuple[int, tuple[SiteUpdate, ...]]:
        """Return the step, and copies of ΔW at the named sites: at all without a name.

        Raises:
            AdapterError: there is no adapter yet, or it has no such site.
        """
        with self.at_rest():
            adapter, run = self.adapter, self.run
            if adapter is None:
                raise AdapterError(self.nothing)
            if missing := [name for name in names if name not in adapter.sites]:
                raise AdapterError(f"{missing[0]} has no adapter; pick another matrix")
            # AdaLoRA may leave a site without a rank: there is nothing to look at then.
            sites = [adapter.sites[name] for name in names or adapter.sites]
            step = run.snapshot.step if run else 0
            copies = (SiteUpdate(s.site, s.update.copied(), step) for s in sites if s.r)
            return step, tuple(copies)

    def base_weight(self, site: str) -> torch.Tensor:
        """Return the frozen W₀ (out, in) of a site."""
        adapter = self.adapter
        if adapter is None or site not in adapter.sites:
            raise AdapterError(f"{site} has no adapter any more; look again")
        return adapter.base_weight(site)


def _learns(config: Any) -> str:
    """Say what a method learns in its place."""
    if len(config.parts) > 1:
        return "its parts learn something else"
    return f"it {method_of(config).no_ranks}"


def over(state: RunState) -> bool:
    """Return whether another run may start."""
    return state.final or state is RunState.IDLE


def resting(state: RunState) -> bool:
    """Return whether nothing changes the factors now."""
    return over(state) or state is RunState.PAUSED
