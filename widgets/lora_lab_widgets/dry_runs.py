"""Dry runs in the background, while nothing trains: they correct the savings' closed form."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from lora_lab.budget.costs import Memory
from lora_lab.errors import LoraLabError
from lora_lab_widgets.background import Background

if TYPE_CHECKING:
    from lora_lab_widgets.savings import Plan, Savings

SETTLED = 0.8  # seconds that a plan has to stand unchanged before it is tried


class DryRuns:
    """Tries the plan on show, then full fine-tuning, each once for the savings' settings.

    Args:
        savings: what is corrected; its price stands for the settings.
        prepare: called on the clock's thread with a plan, None for full fine-tuning; returns the
            dry run itself, which is then called on a thread of its own.
    """

    def __init__(
        self, savings: Savings, prepare: Callable[[Plan | None], Callable[[], Memory]]
    ) -> None:
        self._savings, self._prepare = savings, prepare
        self._job: Background[Memory] = Background()
        self._doing: tuple[object, Plan | None] = (None, None)  # (price, plan) that the job is at
        self._refused: list[tuple[Plan | None, str]] = []  # with why, of the price on show
        self._price: object = None
        self._plan: Plan | None = None
        self._since = 0.0

    def update(self, *, quiet: bool) -> None:
        """Take what has come in, and start what is due.

        Args:
            quiet: whether nothing trains. A dry run takes a core for seconds.
        """
        self._note_changes()
        self._take()
        savings = self._savings
        if not quiet or not savings.price or time.monotonic() - self._since < SETTLED:
            return
        for plan in self._due()[:1]:
            if self._job.busy or not self._job.start(self._prepare(plan)):
                return
            self._doing = savings.price, plan
            what = "full fine-tuning" if plan is None else "this plan"
            savings.note = f"a dry run of {what} is under way…"

    def _note_changes(self) -> None:
        savings = self._savings
        if savings.price is self._price and savings.plan == self._plan:
            return
        if savings.price is not self._price:
            self._refused = []
        self._price, self._plan = savings.price, savings.plan
        self._since = time.monotonic()
        if not self._job.busy:
            savings.note = next((why for plan, why in self._refused if plan == self._plan), "")

    def _due(self) -> list[Plan | None]:
        savings, plan = self._savings, self._savings.plan
        due: list[Plan | None] = []
        if plan and not savings.knows(plan):
            due.append(plan)
        if "full" not in savings.dry_run:
            due.append(None)
        refused = [plan for plan, _ in self._refused]
        return [plan for plan in due if plan not in refused]

    def _take(self) -> None:
        outcome = self._job.take()
        if outcome is None:
            return
        price, plan = self._doing
        if price is not self._savings.price:
            return  # the settings have changed meanwhile
        if outcome.value is not None:
            self._savings.note = ""
            self._savings.learn(plan, outcome.value)
            return
        error = outcome.error
        line = str(error) if isinstance(error, LoraLabError) else f"{type(error).__name__}: {error}"
        self._savings.note = f"no dry run: {line.splitlines()[0][:200]}"
        self._refused.append((plan, self._savings.note))
