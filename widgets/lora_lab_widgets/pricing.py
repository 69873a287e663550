"""What a plan's settings make of the table of prices, and of what is expected beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_lab.budget.evaluate import evaluate_price
from lora_lab.budget.forecast import budget
from lora_lab.budget.table import beside_head, price_table, tokens_text
from lora_lab.errors import ConfigError, TaskError
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.registry import offered
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training.planned_cost import Longest, longest_drawn, longest_of_task, step_inputs
from lora_lab_widgets.methods import typed
from lora_lab_widgets.planned import Price

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy
    from lora_lab.budget.costs import Budget, Memory
    from lora_lab.methods.config import MethodConfig
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task

_OF_LORA = "lora_dropout", "use_dora", "init_lora_weights"
_OF_STEPS = "per_device_train_batch_size", "max_length", "gradient_checkpointing"
REPRICED = ("task", *_OF_STEPS, *_OF_LORA)
"""The settings that change what every plan costs."""


EXPECTED = ("max_steps", "num_train_epochs", "gradient_accumulation_steps", "seed")
"""Those that change which examples a run draws, and nothing else of its price."""


class Pricer:
    """Prices plans on one model; of each task it counts the tokens once a `max_length`.

    Args:
        lm, anatomy: the model.
    """

    def __init__(self, lm: LoadedModel, anatomy: Anatomy) -> None:
        self._lm, self._anatomy = lm, anatomy
        self._longest: dict[tuple[str, int], Longest] = {}

    def forget(self) -> None:
        """Forget the lengths: a task of a known name may be another."""
        self._longest.clear()

    def price(
        self,
        task: Task,
        settings: Mapping[str, Any],
        lora: LoraConfig,
        unshown: Mapping[str, Any],
    ) -> Price:
        """Return the price of every plan under settings.

        Args:
            task: what is learned.
            settings: as typed.
            lora: with what no setting shows of it.
            unshown: fields of `TrainingConfig` that are no setting.

        Raises:
            ConfigError, TaskError: a setting that cannot be; an example that cannot be encoded.
        """
        more = {name: unshown[name] for name in ("recompute_mlp",) if name in unshown}
        step = TrainingConfig(**{name: settings[name] for name in _OF_STEPS}, **more)
        key = (task.name, step.max_length)
        if key not in self._longest:
            self._longest[key] = longest_of_task(self._lm, task, step.max_length)
        longest = self._longest[key]
        inputs = step_inputs(self._lm, step, longest)
        tokens = tokens_text(*longest.lengths)
        batch = step.per_device_train_batch_size
        text = f"against full fine-tuning, batch {batch} × {tokens}, AdamW"
        if step.gradient_checkpointing:
            text += ", recomputed"
        own = [field for field in offered()["LoRA"].fields if field.name in _OF_LORA]
        lora = lora.replace(**typed(settings, own))
        heads = self._anatomy.heads if task.head else ()
        table = self._table(inputs, lora, heads)
        return Price(inputs, table, text, longest, lora, heads=heads)

    def expect(self, price: Price, task: Task, training: Callable[[], dict[str, Any]]) -> Price:
        """Return a price with what just these steps are expected to take, where that is less.

        Args:
            price: of any batch.
            task: what is learned.
            training: returns fields of `TrainingConfig`; where they cannot be, nothing is expected.
        """
        drawn: Longest | None = None
        with contextlib.suppress(ConfigError, TaskError, TypeError):  # said at the field
            step = TrainingConfig.from_dict(training())
            drawn = longest_drawn(self._lm, task, step) if price.longest else None
        if drawn is None or price.longest is None or drawn.lengths == price.longest.lengths:
            return replace(price, drawn=None, expected={}, expected_table={})
        inputs = step_inputs(self._lm, step, drawn)
        return replace(
            price,
            drawn=drawn,
            expected=inputs,
            expected_table=self._table(inputs, price.lora, price.heads),
        )

    def expected(
        self,
        price: Price,
        config: MethodConfig | None,
        cost: Budget | None,
        ranks: Mapping[str, int],
    ) -> Memory | None:
        """Return what a plan's own steps are expected to take; None: what any batch may.

        Args:
            price: under its settings.
            config: None where there is no plan.
            cost: None: the ranks are the plan.
            ranks: {site: rank}.
        """
        if config is None or not price.expected:
            return None
        if cost is None:
            return evaluate_price(price.expected_table, ranks).adapted
        return budget(self._anatomy, price.trained(config), **price.expected).adapted

    def _table(
        self, inputs: Mapping[str, Any], lora: LoraConfig | None, heads: Sequence[str]
    ) -> dict[str, Any]:
        table = price_table(self._anatomy, lora=lora, **inputs)
        return beside_head(table, self._anatomy) if heads else table


def priced_by_ranks(config: LoraConfig) -> bool:
    """Whether the table has all of a LoRA: its factors, and nothing that is trained beside them."""
    beside = config.modules_to_save or config.trainable_token_indices or config.lora_bias
    return config.bias == "none" and not beside
