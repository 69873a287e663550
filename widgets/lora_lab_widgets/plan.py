"""What is planned: the method chosen, its settings, the ranks painted; and what they come to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import traitlets

from lora_lab.anatomy.api import anatomy
from lora_lab.budget.dry_run import dry_run
from lora_lab.budget.forecast import budget
from lora_lab.errors import ConfigError, TaskError
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.descriptor import Field
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.registry import method_of
from lora_lab.redaction import redacted
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.load import load_task
from lora_lab.training.checks import check, check_settings
from lora_lab_widgets.decoding_fields import decoded_by, decoding_fields, decoding_values
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
    method_fields,
    ranks_of,
    typed,
)
from lora_lab_widgets.planned import Planned, Price
from lora_lab_widgets.pricing import EXPECTED, REPRICED, Pricer, priced_by_ranks
from lora_lab_widgets.training_fields import NAMES, TRAINING, given_training, training_values
from lora_lab_widgets.wrong_entries import in_labels, refusal, wrong_entries

if TYPE_CHECKING:
    from lora_lab.budget.costs import Budget, Memory
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task

Configs = MethodConfig | Sequence[MethodConfig]


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
        self._pricer = Pricer(lm, self.anatomy)
        self._templates: dict[str, MethodConfig] = {}
        # Set from Python, and what no method of the drop-down can show.
        self._given: tuple[Entry, MethodConfig] | None = None
        # What LoRA shows first stays painted under a method that has no ranks.
        values, ranks = self._values_of(first_config(self.anatomy))
        if config is not None:
            budget(self.anatomy, config, sequence_length=1)  # refuses what the model cannot use
            own, painted = self._values_of(config)
            values, ranks = values | own, ranks if painted is None else painted
        given = dict(training or {})
        shown = training_values(TrainingConfig.from_dict(given))  # which refuses what cannot be
        self._unshown = {k: v for k, v in given.items() if k not in (*NAMES, "warmup_ratio")}
        others = {**default_values(), **decoding_values()}
        self._starts = {**training_values(TrainingConfig()), **others}
        settings = {"task": task.name, **shown, **others, **values}
        self._rates: dict[str, Any] = {}  # {entry: the rate that it was last shown with}
        if "learning_rate" not in given:
            settings["learning_rate"] = self.rate_of(settings["method"])
        super().__init__(settings=settings, ranks=ranks or {})
        self._replan(self._priced(Price()))
        self.observe(self._changed, ["settings", "ranks"])

    def __repr__(self) -> str:
        return redacted(f"<PlanModel {' · '.join(filter(None, self.planned.title))}>")

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
            self.settings = {**self.settings, **self._with_rate({**values, **settings})}
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
        self.settings = {**self.settings, **self._with_rate(changes)}

    def take_training(self, fields: Mapping[str, Any]) -> None:
        """Set fields of `TrainingConfig`; those that are no setting hold for every run."""
        shown = {name: value for name, value in fields.items() if name in NAMES}
        self._unshown |= {name: value for name, value in fields.items() if name not in shown}
        self.merge(shown)

    def rate_of(self, method: str) -> Any:
        """Return the learning rate that an entry of the drop-down brings: the last, or its own."""
        if method in self._rates:
            return self._rates[method]
        width = self.anatomy.shape.hidden_size
        if self._given and method == self._given[0].name:
            return min(method_of(part).rate_for(width) for part in self._given[1].parts)
        known = entries()
        return known[method].rate_for(width) if method in known else TrainingConfig.learning_rate

    def _with_rate(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return changes with the learning rate of a method that is chosen."""
        chosen = changes.get("method", self.settings["method"])
        if chosen == self.settings["method"]:
            return dict(changes)
        self._rates[self.settings["method"]] = self.settings["learning_rate"]
        return {"learning_rate": self.rate_of(chosen), **changes}

    def add_task(self, task: Task) -> None:
        """Let a task be chosen; one of the same name gives way, and the plan is priced anew."""
        self.tasks[task.name] = task
        if task.name not in self.task_names:
            self.task_names = [*self.task_names, task.name]
        self._pricer.forget()
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

    def fields(self, values: Mapping[str, Any]) -> tuple[Field, ...]:
        """Return those that settings make something of: the chosen method's, and training's.

        Not steps where there are epochs; nor LoRA+ without a B and a head's rate without a head,
        where they are empty.
        """
        chosen, task = entries().get(values["method"]), self.tasks.get(values["task"])
        empty = {name for name in NAMES if values[name] in ("", None)}
        none = empty & {"loraplus_lr_ratio"} if not chosen or not chosen.paints else set()
        none |= empty & {"head_learning_rate"} if task is None or not task.head else set()
        none |= set() if "num_train_epochs" in empty else {"max_steps"}
        own = chosen.fields if chosen else ()
        training = (field for field in TRAINING if field.name not in none)
        return (*own, *training, *decoding_fields(task))

    def typed(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return settings as numbers, whole ones as int; the configs check the ranges later.

        Raises:
            ConfigError: on what is no number, as the browser may send any text. What other methods
                than the chosen one would need is not looked at.
        """
        values = self.settings if values is None else values
        return {**values, **typed(values, self.fields(values))}

    def training(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the fields of `TrainingConfig`, with these settings or with those on show."""
        values = self.settings if values is None else values
        names = {field.name for field in self.fields(values)}
        shown = {name: values[name] for name in NAMES if name in names}
        return given_training(shown) | self._unshown

    def steps(self, values: Mapping[str, Any]) -> Any:
        """Return how many steps settings come to; `max_steps` as it was typed without epochs.

        Raises:
            ConfigError, TypeError: a setting that cannot be.
        """
        if values["num_train_epochs"] in ("", None):
            return values["max_steps"]
        training = TrainingConfig.from_dict(self.training(values))
        return training.for_examples(len(self.task_called(values["task"]).train)).max_steps

    def dry_run(self, full: bool) -> Callable[[], Memory]:
        """Return what measures the plan on a thread, or raises there why it cannot be.

        Args:
            full: measure full fine-tuning in its place.
        """
        planned, network = self.planned, self.lm.model
        model = network if planned.price.heads else network.config  # its class has the head
        config = None if full else planned.trained

        def measure() -> Memory:
            if not full and config is None:
                raise ConfigError(planned.line)
            return dry_run(model, config, **planned.price.inputs).memory

        return measure

    def _changed(self, _change: object) -> None:
        before = self.planned
        if self.settings == before.settings and self.ranks == before.ranks:
            return  # both were changed together, and this is the second of them
        price = before.price
        changed = {name for name in self.settings if self.settings[name] != before.settings[name]}
        if changed.intersection(REPRICED):
            price = self._priced(price)
        elif changed.intersection(EXPECTED):
            price = self._pricer.expect(price, self.task, lambda: self.training(self.typed()))
        self._replan(price)

    def _replan(self, price: Price) -> None:
        self.set_trait("planned", self._planned(price))

    def _planned(self, price: Price) -> Planned:
        settings, ranks, steps = self.settings, self.ranks, None
        entry, config, cost, error = None, None, None, ""
        try:
            entry = self.entry(settings)
            steps = self.steps(settings)
            config, cost = self._made(settings, price)
        except (ConfigError, TypeError) as refused:  # TypeError: max_steps is no number yet
            config, error = None, str(refused)
        if entry is None:
            return Planned(settings, ranks, price, error=error, line=error)
        return Planned(
            settings,
            ranks,
            price,
            entry,
            config,
            cost,
            self._pricer.expected(price, config, cost, ranks),
            error,
            automatic=automatic(self.anatomy, ranks, steps) if isinstance(steps, int) else {},
            line=entry.about(config, self.anatomy) if config else self.in_words(error),
            instead=entry.instead(config),
            wrong=self._wrong(price),
        )

    def _made(self, values: Mapping[str, Any], price: Price) -> tuple[MethodConfig, Budget | None]:
        """Return the config that settings make, and its price if the table has no part of it."""
        config = self.config_of(values, self.ranks)
        by_ranks = isinstance(config, LoraConfig) and priced_by_ranks(config)
        if values["method"] == "LoRA" and by_ranks:
            return config, None
        return config, budget(self.anatomy, price.trained(config), **price.inputs)

    def _wrong(self, price: Price) -> dict[str, str]:
        """Return {setting on show: why it cannot be}."""

        def check_all(values: dict[str, Any]) -> None:
            task = decoded_by(self.task_called(values["task"]), self.typed(values))
            training = TrainingConfig.from_dict(self.training(self.typed(values)))
            config, _ = self._made(values, price)
            training = training.for_examples(len(task.train))
            check_settings(self.lm, task, config.parts, training)

        if why := refusal(self._check_task):
            return {"task": why}
        fields = self.fields(self.settings)
        found = wrong_entries(self.settings, fields, self._starts, check_all)
        return {name: self.in_words(line) for name, line in found.items()}

    def _check_task(self) -> None:
        check(self.lm, self.task)

    def in_words(self, line: str) -> str:
        """Return an error's line with the form's labels, and what the workbench has for a remedy.

        Of a field that several methods have it is the chosen one's label.
        """
        with contextlib.suppress(ConfigError):  # there is no method of that name
            entry = self.entry(self.settings)
            line = entry.with_remedy(line, entry.name)
        every = [*self.fields(self.settings), *TRAINING, *method_fields()]
        return in_labels(line, {field.name: field for field in reversed(every)}.values())

    def _priced(self, before: Price) -> Price:
        """Return the price under the settings; that before where they cannot be."""
        with contextlib.suppress(ConfigError, TaskError, TypeError):  # said at the field
            lora = self._templates.get("LoRA", LoraConfig())
            assert isinstance(lora, LoraConfig)
            price = self._pricer.price(self.task, self.settings, lora, self._unshown)
            return self._pricer.expect(price, self.task, lambda: self.training(self.typed()))
        return before

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
