"""What is chosen gets loaded, on a thread: it says what it is at, and can be given up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_lab._util.files import user_path
from lora_lab._util.own_warnings import collected
from lora_lab._util.warn import warn
from lora_lab.errors import ConfigError, LoraLabError, ModelError, as_cause
from lora_lab.models.given import as_loaded
from lora_lab.models.load import LoadedModel, wanted_device, wanted_dtype
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.families.api import family_of, longest_and_labels
from lora_lab.tasks.load import as_task, load_task
from lora_lab_widgets.background import Background
from lora_lab_widgets.cell_line import Tell
from lora_lab_widgets.defaults import DATA, first_model
from lora_lab_widgets.loading import load_telling
from lora_lab_widgets.methods import max_length_of
from lora_lab_widgets.plan import PlanModel

if TYPE_CHECKING:
    from lora_lab.tasks.base import Task
    from lora_lab_widgets.plan import Configs

OWN = "the model on show"  # what a model of the user's own is called among the choices


@dataclass(frozen=True)
class Wish:
    """What was chosen.

    Attributes:
        model: what `load_model` takes, or `OWN`; device, dtype: likewise.
        data: what `load_task` takes as a name.
        options: what else it takes: columns, config_name.
    """

    model: str
    device: str
    dtype: str
    data: str
    options: Mapping[str, str] = field(default_factory=dict)


class Opened(NamedTuple):
    """What came of it: a plan for the bench to open on, or a task more for the one on show."""

    plan: PlanModel | None
    task: Task
    notes: tuple[str, ...]


class GivenUpError(LoraLabError):
    """Nobody wants any more what is being loaded."""


class Opening:
    """One opening of the bench.

    Args:
        wish: what was chosen.
        shown: the plan on show; its model is taken where it is the one that was chosen.
        config: to show first, where it fits the model.
        settings: fields of `TrainingConfig` for the new plan.

    Attributes:
        shown: as given.
        text: what it is at.
        share: how far, 0 to 1; None where nobody knows.
    """

    def __init__(
        self,
        wish: Wish,
        shown: PlanModel | None,
        config: Configs | None,
        settings: Mapping[str, Any],
    ) -> None:
        self._wish, self.shown, self._config, self._settings = wish, shown, config, settings
        self._ended = threading.Event()
        self._start = time.monotonic()
        self._job: Background[Opened] = Background()
        self.text = "getting ready"
        self.share: float | None = None

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._start

    def start(self) -> None:
        """Begin, on a thread."""
        self._job.start(self._open)

    def give_up(self) -> None:
        """Want it no more; what cannot be broken off is dropped when it comes."""
        self._ended.set()

    def take(self) -> Opened | Exception | None:
        """Return what came of it, once; None while there is nothing yet."""
        if self._ended.is_set():
            return GivenUpError("cancelled: nothing was opened")
        outcome = self._job.take()
        return None if outcome is None else outcome.value or outcome.error

    def _tell(self, text: str, share: float | None = None) -> None:
        if self._ended.is_set():
            raise GivenUpError("cancelled")
        self.text, self.share = text, share

    def _open(self) -> Opened:
        with collected() as said:  # not printed into some cell
            opened = self._opened()
        return opened._replace(notes=tuple(said))

    def _opened(self) -> Opened:
        wish, shown = self._wish, self.shown
        self._tell(f"reading {wish.data}")
        known = None if shown is None or wish.options else shown.tasks.get(wish.data)
        options: dict[str, Any] = dict(wish.options)
        task = known or load_task(wish.data, **options)
        if shown is not None and is_on_show(wish, shown.lm) and not _needs_head(task, shown.task):
            check_fit(shown.lm, task)
            self._tell("counting tokens")
            longest_and_labels(shown.lm, task, max_length_of(shown.settings))
            return Opened(None, task, ())
        lm = self._load(task)
        check_fit(lm, task)
        self._tell("counting tokens")
        return Opened(plan_on(lm, task, self._config, self._settings), task, ())

    def _load(self, task: Task) -> LoadedModel:
        wish, shown = self._wish, self.shown
        TrainingConfig.from_dict(self._settings)  # refuses what cannot be before it takes a while
        name = wish.model
        if name == OWN:
            assert shown is not None
            if shown.lm.card.source == "given":
                if not task.head:
                    check_fit(shown.lm, task)  # a classifier writes nothing
                raise ConfigError(
                    f"{task.name} needs a model with another head than the one on show, which you "
                    "gave: load it with load_model(…, labels=task.labels) and open it in a cell"
                )
            name = shown.lm.card.name
        return load_telling(name, wish.device, wish.dtype, task.head, self._tell, ended=self._ended)


def planned(
    shown: PlanModel | None,
    settings: Mapping[str, Any],
    given: tuple[Any, Any],
    data: Any,
    config: Configs | None,
    tell: Tell,
) -> PlanModel:
    """Load what a bench is to open on, and make a plan of it.

    Args:
        shown: the plan on show; what is left out stays as it is there.
        settings: of training, for a first plan.
        given: the model and its tokenizer, as `Workbench` takes them.
        data: as `Workbench` takes its task.
        config: of any method; None: that on show, or the first one.
        tell: told what is being done.
    """
    model, tokenizer = given
    settings = settings if shown is None else shown.training()
    training = TrainingConfig.from_dict(settings)
    chosen = (shown.task if shown else DATA) if data is None else data
    tell(f"reading {chosen if isinstance(chosen, (str, os.PathLike)) else 'the data'}")
    task = as_task(chosen, training.max_steps, training.step_size)

    def load(name: str, device: str = "auto", dtype: str = "auto", **head: Any) -> LoadedModel:
        return load_telling(name, device, dtype, head, tell)

    if model is None and shown is not None:
        model, card = shown.lm, shown.lm.card
        if (task.head or shown.task.head) and card.source != "given":
            model = load(card.name, card.device, card.dtype, **task.head)
    elif model is None:
        model, why = first_model()
        if why:
            warn(why)
    lm = as_loaded(model, tokenizer, task.head, "Workbench(model, tokenizer)", load)
    try:
        check_fit(lm, task)
    except ConfigError as error:
        if data is not None or shown is not None:
            raise
        fix = "or give the workbench a task for this model, task=…"
        raise ConfigError(f"{error}, {fix}") from as_cause(error)
    tell("counting tokens")
    if config is None and shown is not None:
        return plan_on(lm, task, shown.planned.config, settings)
    return PlanModel(lm, task, config, settings)


def check_fit(lm: LoadedModel, task: Task) -> None:
    """Refuse a task that the model is not for, before anything is shown of the two.

    Raises:
        ConfigError: a task of classes or numbers without a head for them, one of texts on a model
            that writes none; the line names the fix.
    """
    family_of(task, lm).check(lm, task)


def plan_on(
    lm: LoadedModel, task: Task, config: Configs | None, settings: Mapping[str, Any]
) -> PlanModel:
    """Return a plan; a config of another model's, which does not fit this one, gives way.

    Raises:
        ConfigError: settings that cannot be.
    """
    try:
        return PlanModel(lm, task, config, settings)
    except ConfigError as error:
        if config is None:
            raise
        plan = PlanModel(lm, task, None, settings)
        warn(f"what was on show does not fit {lm.card.name}: {error}; the plan begins anew")
        return plan


def is_on_show(wish: Wish, lm: LoadedModel) -> bool:
    """Whether a wish is for the model as it is on show."""
    card = lm.card
    if wish.model == OWN:
        return True
    device = wanted_device(wish.device)
    dtype = str(wanted_dtype(wish.dtype, device)).removeprefix("torch.")
    same = card.source != "given" and _place(card.name) == _place(wish.model)
    return same and card.device.partition(":")[0] == device.type and card.dtype == dtype


def _place(name: str) -> str:
    """Return a folder's full path, or the name of what is none."""
    folder = user_path(name, ModelError)
    return str(folder.resolve()) if folder.is_dir() else name


def _needs_head(task: Task, shown: Task) -> bool:
    """Whether a task needs another head on its model than the one on show."""
    return bool(task.head or shown.head) and task.head != shown.head
