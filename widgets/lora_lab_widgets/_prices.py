"""What a plan is priced for: the batch and the sequences of the settings on show."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_lab.budget.costs import Budget
from lora_lab.budget.dry_run import dry_run
from lora_lab.budget.forecast import budget
from lora_lab.budget.table import price_table, tokens_text
from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError, TaskError
from lora_lab.tasks.families.api import longest_example
from lora_lab.tasks.families.base import Lengths
from lora_lab.training.config import TrainingConfig

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy
    from lora_lab.budget.costs import Memory
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task
    from lora_lab_widgets._plans import Plans
    from lora_lab_widgets.savings import Savings

REPRICED = {"task", "per_device_train_batch_size", "max_length", "lora_dropout"}
"""The settings that change what every plan costs."""
_CHECKED = "max_steps", "per_device_train_batch_size", "learning_rate", "max_length"


class Prices:
    """Prices plans for the settings on show, as the savings panel shows them.

    Args:
        lm: the model.
        anatomy: its anatomy.
        plans: give LoRA as it is priced.
        savings: shows the prices.
        task: returns the task that is picked.
    """

    def __init__(
        self,
        lm: LoadedModel,
        anatomy: Anatomy,
        plans: Plans,
        savings: Savings,
        task: Callable[[], Task],
    ) -> None:
        self._lm = lm
        self._anatomy = anatomy
        self._plans = plans
        self._savings = savings
        self._task = task
        self._lengths: dict[tuple[str, int], Lengths] = {}  # by (task, max_length)
        self.known: dict[str, Any] = {}
        """What was priced for, as `budget` takes it; {} before the first `update`."""

    def update(self, settings: Mapping[str, Any]) -> None:
        """Price for these settings from now on; those that cannot be change nothing."""
        with contextlib.suppress(ConfigError, TaskError, TypeError):  # said when it is started
            checked = TrainingConfig(**{name: settings[name] for name in _CHECKED})
            batch = checked.per_device_train_batch_size
            longest = self._longest(self._task(), checked.max_length)
            self.known = {
                "batch_size": batch,
                "sequence_length": longest.read,
                "target_length": longest.written,
                "dtype": self._lm.card.dtype,
                "padding_mask": batch > 1,  # examples of one batch differ in length
            }
            lora = self._plans.lora(settings["lora_dropout"])
            self._savings.price = price_table(self._anatomy, lora=lora, **self.known)
            self._savings.settings_text = (
                f"against full fine-tuning, batch {batch} × {tokens_text(*longest)}, AdamW"
            )

    def forget_tasks(self) -> None:
        """Measure the tasks again: one of the same name may have other data."""
        self._lengths.clear()

    def budget(self, configs: Sequence[MethodConfig]) -> Budget:
        """Return what these configs cost."""
        return budget(self._anatomy, configs, **self.known)

    def dry_run(self, configs: Sequence[MethodConfig]) -> Callable[[], Memory]:
        """Return what measures these configs on a thread; none of them: full fine-tuning."""
        model, known = self._lm.model.config, dict(self.known)
        config = configs[0] if len(configs) == 1 else tuple(configs) or None
        return lambda: dry_run(model, config, **known).memory

    def _longest(self, task: Task, max_length: int) -> Lengths:
        key = (task.name, max_length)
        if key not in self._lengths:
            self._lengths[key] = longest_example(self._lm, task, max_length)
        return self._lengths[key]
