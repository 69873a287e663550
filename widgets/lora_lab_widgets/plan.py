"""What is planned: the method chosen, its settings, the ranks painted; and what they come to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import traitlets

from lora_lab.anatomy.api import anatomy
from lora_lab.budget.dry_run import dry_run
from lora_lab.budget.forecast import budget
from lora_lab.budget.table import price_table, tokens_text
from lora_lab.errors import ConfigError, TaskError
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.families.api import longest_and_labels
from lora_lab.tasks.families.base import Lengths
from lora_lab.tasks.load import load_task
from lora_lab_widgets.defaults import first_config, task_choice
from lora_lab_widgets.grid_cells import cells_of, checked_ranks
from lora_lab_widgets.methods import (
    Entry,
    as_given,
    automatic,
    choices,
    default_values,
    entries,
    entry_called,
    entry_of,
    number,
    ranks_of,
    typed,
)
from lora_lab_widgets.planned import Planned, Price

if TYPE_CHECKING:
    from lora_lab.budget.costs import Memory
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task

_Longest = tuple[Lengths, int | None]  # and how many tokens have a label
Configs = MethodConfig | Sequence[MethodConfig]
TRAINING = (
    "max_steps",
    "per_device_train_batch_size",
    "learning_rate",
    "max_length",
    "seed",
)
"""The fields of `TrainingConfig` that are settings."""
OPTIONAL = "num_train_epochs", "eval_steps"
"""Those that may be left empty; epochs take the place of steps."""
REPRICED = ("task", "per_device_train_batch_size", "max_length", "lora_dropout")
"""The settings that change what every plan costs."""
_UNSHOWN = "gradient_checkpointing", "recompute_mlp"  # and change what a step costs
_CHECKED = "max_steps", "per_device_train_batch_size", "learning_rate", "max_length"


class PlanModel(traitlets.HasTraits):
    """The one place that knows what is planned; panels set `settings` and `ranks` and observe.

    Whatever changes, `planned` changes once: observe it. `hold_trait_notifications` makes one
    change of settings and ranks.

    Args:
        lm: the model.
        task: the one picked at first.
        config: of any method, or a list of them; by default the paper's LoRA.
        training: fields of `TrainingConfig`; those that are no setting hold for every run.

    Attributes:
        settings: of all methods and of training, under the configs' field names, as typed.
        ranks: {site: rank} of the grid; a site that is not named is frozen.
        planned: what they come to.
        tasks: those that were loaded, by name.
        task_names: those to choose from.

    Raises:
        ConfigError: a config or a field that cannot be.
    """

    settings = traitlets.Dict()
    ranks = traitlets.Dict()
    planned = traitlets.Instance(Planned, read_only=True)

    def __init__(
        self,
        lm: LoadedModel,
        task: Task,
        config: Configs | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self.lm = lm
        self.anatomy = anatomy(lm.model)
        self.tasks = {task.name: task}
        self.task_names = task_choice(task)
        self._cells = cells_of(self.anatomy)
        self._lengths: dict[tuple[str, int], _Longest] = {}  # by (task, max_length)
        self._templates: dict[str, MethodConfig] = {}
        # Set from Python, and what no method of the drop-down can show.
        self._given: tuple[Entry, MethodConfig] | None = None
        # What LoRA shows first stays painted under a method that has no ranks.
        values, ranks = self._values_of(first_config(self.anatomy))
        if config is not None:
            budget(self.anatomy, config, sequence_length=1)  # refuses what the model cannot use
            own, painted = self._values_of(config)
            values, ranks = values | own, ranks if painted is None else painted
        default = TrainingConfig()
        given = dict(training or {})
        TrainingConfig.from_dict(given)  # refuses what does not exist or cannot work
        shown = {name: given.pop(name, getattr(default, name)) for name in TRAINING}
        shown |= {name: "" if (own := given.pop(name, None)) is None else own for name in OPTIONAL}
        self._unshown = given
        super().__init__(
            settings={"task": task.name, **shown, **default_values(), **values},
            ranks=ranks or {},
        )
        self._replan(self._priced(Price()))
        self.observe(self._changed, ["settings", "ranks"])

    # What is set ---------------------------------------------------------------------------------

    def take(self, config: Configs, **settings: Any) -> None:
        """Show a config, as one change; a method without ranks leaves the grid as it is.

        Args:
            config: of any method, or a list of them.
            settings: others that change with them.

        Raises:
            ConfigError: what is no config of a method, or does not fit the model.
        """
        values, ranks = self._values_of(config)
        checked = None if ranks is None else checked_ranks(ranks, self._cells)
        with self.hold_trait_notifications():
            self.settings = {**self.settings, **values, **settings}
            if checked is not None:
                self.ranks = checked
            self._replan(self._priced(self.planned.price))  # what no setting shows has a price too

    def merge(self, changes: Mapping[str, Any]) -> None:
        """Change some settings; nothing is said yet of values that cannot be.

        Raises:
            ConfigError: there is no setting of a name.
        """
        for name in changes:
            if name not in self.settings:
                known = ", ".join(self.settings)
                raise ConfigError(f"no setting {name!r}; the panel has {known}")
        self.settings = {**self.settings, **changes}

    def take_training(self, fields: Mapping[str, Any]) -> None:
        """Set fields of `TrainingConfig`; those that are no setting hold for every run."""
        names = *TRAINING, *OPTIONAL
        shown = {name: value for name, value in fields.items() if name in names}
        self._unshown |= {name: value for name, value in fields.items() if name not in shown}
        self.merge(shown)

    def add_task(self, task: Task) -> None:
        """Let a task be chosen; one of the same name gives way, and the plan is priced anew."""
        self.tasks[task.name] = task
        if task.name not in self.task_names:
            self.task_names = [*self.task_names, task.name]
        self._lengths.clear()
        self._replan(self._priced(self.planned.price))

    @traitlets.validate("ranks")
    def _check_ranks(self, proposal: Any) -> dict[str, int]:
        return checked_ranks(proposal["value"], self._cells)

    # What comes of it ----------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """The task that is picked."""
        return self.task_called(self.settings["task"])

    def task_called(self, name: str) -> Task:
        """Return the task of a name; loaded when it is first asked for."""
        if name not in self.tasks:
            self.tasks[name] = load_task(name)
        return self.tasks[name]

    def choices(self) -> list[dict[str, Any]]:
        """Return the entries of the methods' drop-down."""
        return choices(self.settings, self._given[0] if self._given else None)

    def entry(self, values: Mapping[str, Any]) -> Entry:
        """Return the entry of the drop-down that settings choose.

        Raises:
            ConfigError: there is none of that name.
        """
        if self._given and values["method"] == self._given[0].name:
            return self._given[0]
        return entry_called(values["method"])

    @property
    def config(self) -> MethodConfig:
        """What would be trained: one method's config, or several that are combined.

        Raises:
            ConfigError, TypeError: as `config_of`.
        """
        return self.config_of(self.settings, self.ranks)

    def config_of(self, values: Mapping[str, Any], ranks: Mapping[str, int]) -> MethodConfig:
        """Return what settings and ranks make.

        Raises:
            ConfigError: nothing is painted, or a setting that cannot be.
            TypeError: `max_steps` is no number yet.
        """
        entry = self.entry(values)
        if not entry.methods:
            assert self._given
            return self._given[1]
        return entry.config(values, self.anatomy, ranks, self._templates, self.steps(values))

    def typed(self) -> dict[str, Any]:
        """Return the settings as numbers, whole ones as int; the configs check the ranges later.

        Raises:
            ConfigError: on what is no number, as the browser may send any text. What other methods
                than the chosen one would need is not looked at.
        """
        values, chosen = self.settings, entries().get(self.settings["method"])
        training = {n: number(n, values[n], whole=n != "learning_rate") for n in TRAINING}
        given = (n for n in OPTIONAL if values[n] != "")
        training |= {n: number(n, values[n], whole=False) for n in given}
        return {**values, **training, **typed(values, chosen.fields if chosen else ())}

    def training(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the fields of `TrainingConfig`, with these settings or with those on show."""
        values = self.settings if values is None else values
        given = {name: values[name] for name in OPTIONAL if values[name] != ""}
        steps = {"max_steps": -1} if "num_train_epochs" in given else {}
        return {name: values[name] for name in TRAINING} | given | steps | self._unshown

    def steps(self, values: Mapping[str, Any]) -> Any:
        """Return how many steps settings come to; `max_steps` as it was typed without epochs.

        Raises:
            ConfigError, TypeError: a setting that cannot be.
        """
        if values["num_train_epochs"] == "":
            return values["max_steps"]
        training = TrainingConfig.from_dict(self.training(values))
        return training.for_examples(len(self.task_called(values["task"]).train)).max_steps

    def dry_run(self, full: bool) -> Callable[[], Memory]:
        """Return what measures the plan on a thread, or raises there why it cannot be.

        Args:
            full: measure full fine-tuning in its place.
        """
        planned, model = self.planned, self.lm.model.config
        config = None if full else planned.config

        def measure() -> Memory:
            if not full and config is None:
                raise ConfigError(planned.line)
            return dry_run(model, config, **planned.price.inputs).memory

        return measure

    def _changed(self, _change: object) -> None:
        before = self.planned
        if self.settings == before.settings and self.ranks == before.ranks:
            return  # both were changed together, and this is the second of them
        repriced = any(self.settings[name] != before.settings[name] for name in REPRICED)
        self._replan(self._priced(before.price) if repriced else before.price)

    def _replan(self, price: Price) -> None:
        self.set_trait("planned", self._planned(price))

    def _planned(self, price: Price) -> Planned:
        settings, ranks, steps = self.settings, self.ranks, None
        entry, config, cost, error = None, None, None, ""
        try:
            entry = self.entry(settings)
            steps = self.steps(settings)
            config = self.config
            if settings["method"] != "LoRA":
                cost = budget(self.anatomy, config, **price.inputs)
        except (ConfigError, TypeError) as refused:  # TypeError: max_steps is no number yet
            config, error = None, str(refused)
        if entry is None:
            return Planned(settings, ranks, price, error=error, line=error)
        free = automatic(self.anatomy, ranks, steps) if isinstance(steps, int) else {}
        line = entry.about(config, self.anatomy) if config else entry.with_remedy(error, entry.name)
        instead = entry.instead(config)
        return Planned(settings, ranks, price, entry, config, cost, error, free, line, instead)

    def _priced(self, before: Price) -> Price:
        """Return the price under the settings; that before where they cannot be."""
        settings = self.settings
        with contextlib.suppress(ConfigError, TaskError, TypeError):  # said when it is started
            checked = TrainingConfig(**{name: settings[name] for name in _CHECKED})
            batch = checked.per_device_train_batch_size
            longest, labels = self._longest(checked.max_length)
            inputs: dict[str, Any] = {
                "batch_size": batch,
                "sequence_length": longest.read,
                "target_length": longest.written,
                "label_length": labels,
                "dtype": self.lm.card.dtype,
                "padding_mask": batch > 1,  # examples of one batch differ in length
                "device": self.lm.model.device,
                **{name: self._unshown[name] for name in _UNSHOWN if name in self._unshown},
            }
            lora = self._templates.get("LoRA", LoraConfig())
            assert isinstance(lora, LoraConfig)
            lora = lora.replace(lora_dropout=settings["lora_dropout"])
            text = f"against full fine-tuning, batch {batch} × {tokens_text(*longest)}, AdamW"
            return Price(inputs, price_table(self.anatomy, lora=lora, **inputs), text)
        return before

    def _longest(self, max_length: int) -> _Longest:
        key = (self.settings["task"], max_length)
        if key not in self._lengths:
            self._lengths[key] = longest_and_labels(self.lm, self.task, max_length)
        return self._lengths[key]

    def _values_of(self, given: Configs) -> tuple[dict[str, Any], dict[str, int] | None]:
        """Return the settings and the ranks that show a config; None: it has no ranks.

        What no setting shows is kept for `config_of`.

        Raises:
            ConfigError: what is no config of a method, or does not fit the model.
        """
        config = as_config(given)
        entry, ranks = entry_of(config), ranks_of(self.anatomy, config)
        if ranks and ranks.keys() - {cell["site"] for cell in self._cells}:
            entry = as_given(config)  # an embedding, an output layer or a router has no cell
        if not entry.methods:
            self._given = entry, config
            return entry.values(config), None
        names = [method.name for method in entry.methods]
        self._templates |= dict(zip(names, config.parts, strict=True))
        return entry.values(config), ranks
