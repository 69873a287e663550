"""Dry runs in the background, while nothing trains: they correct the savings' closed form."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from lora_lab.budget.costs import Memory
from lora_lab.errors import LoraLabError
from lora_lab_widgets._background import Background
from lora_lab_widgets.savings import Savings

SETTLED = 0.8  # seconds that a plan has to stand unchanged before it is tried

Plan = Mapping[str, int] | None
"""{site: rank}, or None for full fine-tuning."""


class DryRuns:
    """Tries the painted plan, then full fine-tuning, each once for the savings' settings.

    Args:
        savings: what is corrected; its price stands for the settings.
        prepare: called on the clock's thread with a plan; returns the dry run itself, which is
            then called on a thread of its own.
    """

    def __init__(self, savings: Savings, prepare: Callable[[Plan], Callable[[], Memory]]) -> None:
        self._savings, self._prepare = savings, prepare
        self._job: Background[Memory] = Background()
        self._doing: tuple[object, Plan] = (None, None)  # (price, plan) that the job is at
        self._refused: list[Plan] = []  # of the price on show
        self._price: object = None
        self._ranks: Plan = None
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
        if savings.price is self._price and savings.ranks == self._ranks:
            return
        if savings.price is not self._price:
            self._refused = []
        self._price, self._ranks = savings.price, dict(savings.ranks)
        self._since = time.monotonic()

    def _due(self) -> list[Plan]:
        ranks, known = dict(self._savings.ranks), self._savings.dry_run
        due: list[Plan] = []
        if any(ranks.values()) and known.get("ranks") != ranks:
            due.append(ranks)
        if "full" not in known:
            due.append(None)
        return [plan for plan in due if plan not in self._refused]

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
        self._refused.append(plan)
        error = outcome.error
        line = str(error) if isinstance(error, LoraLabError) else f"{type(error).__name__}: {error}"
        self._savings.note = f"no dry run: {line.splitlines()[0][:200]}"
