"""What settings and painted ranks come to: a price, configs, words; values that never change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lora_lab.budget.costs import Budget, Memory
from lora_lab.budget.evaluate import evaluate_price
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.head.beside import with_heads
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.training.planned_cost import Longest
from lora_lab_widgets.methods import Entry, numbers


@dataclass(frozen=True)
class Price:
    """What every plan is priced for: the batch and the sequences of the settings.

    Attributes:
        inputs: as `budget` takes them; {} where the settings could never be priced.
        table: of LoRA, for the browser to price any ranks; see `price_table`.
        text: the settings in words.
        longest: the longest that any batch can be; None: never priced.
        lora: the one that the table is of, but for its ranks.
        drawn: the longest that a batch of just these steps will be; None: that is `longest`.
        expected, expected_table: inputs and table at that length; {} where `drawn` is None.
        heads: the modules that the task has trained whole beside every plan.
    """

    inputs: dict[str, Any] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    longest: Longest | None = None
    lora: LoraConfig | None = None
    drawn: Longest | None = None
    expected: dict[str, Any] = field(default_factory=dict)
    expected_table: dict[str, Any] = field(default_factory=dict)
    heads: tuple[str, ...] = ()

    def trained(self, config: MethodConfig) -> MethodConfig:
        """Return what a run of a config trains: with the head, where the task needs one."""
        return as_config(with_heads(self.heads, config.parts)) if self.heads else config


@dataclass(frozen=True, eq=False)
class Planned:
    """What settings and ranks come to together; never changed, so that any thread may read it.

    Attributes:
        settings: as they were typed.
        ranks: {site: rank}, as painted.
        price: under these settings.
        entry: the one chosen; None: there is none of that name.
        config: what would be trained; None where settings and ranks make no plan.
        cost: of what is not LoRA's factors alone, which `price.table` prices.
        expected: the plan's memory at the longest batch that its steps draw; None: at the longest
            that there is.
        error: why they make no plan, "" where they do.
        automatic: {setting: what it is where nothing is typed}.
        line: what the method does, or why it cannot.
        instead: why the grid is not the method's own, "" where it is.
        wrong: {setting on show: why it cannot be, in the form's words}.
    """

    settings: dict[str, Any]
    ranks: dict[str, int]
    price: Price
    entry: Entry | None = None
    config: MethodConfig | None = None
    cost: Budget | None = None
    expected: Memory | None = None
    error: str = ""
    automatic: Mapping[str, int] = field(default_factory=dict)
    line: str = ""
    instead: str = ""
    wrong: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_lora(self) -> bool:
        """Whether the painted ranks are the whole plan."""
        return bool(self.settings["method"] == "LoRA" and self.cost is None)

    @cached_property
    def code(self) -> str:
        """The config as Python, "" where there is none."""
        if self.config is None:
            return ""
        return f"import lora_lab as ll\n\nconfig = {self.config.to_python()}"

    @cached_property
    def budget(self) -> Budget | None:
        """What the plan costs in closed form, and for which batch; None without a plan."""
        price = self.price
        if self.config is None or price.longest is None:
            return None
        cost = self.cost or evaluate_price(price.table, self.ranks)
        drawn = price.drawn.text if price.drawn else ""
        return replace(
            cost, longest=price.longest.text, expected=self.expected, expected_longest=drawn
        )

    @property
    def trained(self) -> MethodConfig | None:
        """What a run of it trains: the config, and the head where the task needs one."""
        return None if self.config is None else self.price.trained(self.config)

    @property
    def title(self) -> tuple[str, str]:
        """The method's name, and its own numbers."""
        if self.config is not None:
            return self.config.method, numbers(self.config)
        return self.entry.name if self.entry else "", ""
