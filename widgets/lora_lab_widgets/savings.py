"""What the painted plan saves against full fine-tuning, priced in the browser."""

from __future__ import annotations

import traitlets

from lora_lab._format import format_change, format_count
from lora_lab.budget import evaluate_price
from lora_lab.budget.costs import Budget
from lora_lab_widgets._base import Panel


class Savings(Panel):
    """Trainable parameters, checkpoint, and memory as stacked bars.

    The browser computes every number from `price` and the ranks. It hears the document's
    "lora-lab:ranks" events ({bench, ranks}) while ranks are being painted, so that the bars move
    without a message to Python.

    Attributes:
        price: what `lora_lab.budget.price_table` returns.
        ranks: {site name: rank}.
        bench: which grid's events to listen to.
        measured: {"kind", "current", "peak"} in bytes while a run measures, else {}.
        settings_text: the subtitle; empty: made from the price's own settings.
    """

    static_files = ("savings_price", "savings")

    price = traitlets.Dict().tag(sync=True)
    ranks = traitlets.Dict().tag(sync=True)
    bench = traitlets.Unicode().tag(sync=True)
    measured = traitlets.Dict().tag(sync=True)
    settings_text = traitlets.Unicode().tag(sync=True)

    @property
    def budget(self) -> Budget | None:
        """The plan's budget, the same numbers as the browser's; None before a price is set."""
        if not self.price:
            return None
        # Ranks of the model before, while ranks and price are being replaced one after the other.
        known = {name: r for name, r in self.ranks.items() if name in self.price["sites"]}
        return evaluate_price(self.price, known)

    def summary(self) -> str:
        """Return the plan's size and saving in a few words."""
        budget = self.budget
        if budget is None:
            return "no model"
        if not budget.parameters_trainable:
            return "no rank painted"
        return (
            f"{format_count(budget.parameters_trainable)} of "
            f"{format_count(budget.parameters_total)} trainable, peak memory "
            f"{format_change(budget.adapted.total, budget.full.total)}"
        )

    def fallback_html(self) -> str:
        """Return the budget's table."""
        budget = self.budget
        return super().fallback_html() if budget is None else budget._repr_html_()
