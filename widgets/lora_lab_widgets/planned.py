"""What settings and painted ranks come to: a price, configs, words; values that never change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lora_lab.budget.costs import Budget
from lora_lab.configs import MethodConfig
from lora_lab.methods.combined import method_name, to_python
from lora_lab_widgets.methods import Entry, numbers


@dataclass(frozen=True)
class Price:
    """What every plan is priced for: the batch and the sequences of the settings.

    Attributes:
        inputs: as `budget` takes them; {} where the settings could never be priced.
        table: of LoRA, for the browser to price any ranks; see `price_table`.
        text: the settings in words.
    """

    inputs: dict[str, Any] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True, eq=False)
class Planned:
    """What settings and ranks come to together; never changed, so that any thread may read it.

    Attributes:
        settings: as they were typed.
        ranks: {site: rank}, as painted.
        price: under these settings.
        entry: the one chosen; None: there is none of that name.
        configs: what would be trained; () where settings and ranks make no plan.
        cost: of another method than LoRA, which `price.table` prices.
        error: why they make no plan, "" where they do.
        automatic: {setting: what it is where nothing is typed}.
        line: what the method does, or why it cannot.
        instead: why the grid is not the method's own, "" where it is.
    """

    settings: dict[str, Any]
    ranks: dict[str, int]
    price: Price
    entry: Entry | None = None
    configs: tuple[MethodConfig, ...] = ()
    cost: Budget | None = None
    error: str = ""
    automatic: Mapping[str, int] = field(default_factory=dict)
    line: str = ""
    instead: str = ""

    @property
    def is_lora(self) -> bool:
        """Whether the painted ranks are the whole plan."""
        return bool(self.settings["method"] == "LoRA")

    @cached_property
    def code(self) -> str:
        """The configs as Python, "" where there are none."""
        if not self.configs:
            return ""
        return f"import lora_lab as ll\n\nconfig = {to_python(self.configs)}"

    @property
    def title(self) -> tuple[str, str]:
        """The method's name, and its own numbers."""
        if self.configs:
            return method_name(self.configs), numbers(self.configs)
        return self.entry.name if self.entry else "", ""
