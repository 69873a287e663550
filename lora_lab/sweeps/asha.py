"""ASHA: stop what is behind, early (Li et al., "Massively parallel hyperparameter tuning", 2020).

At steps g, gη, gη², … (the rungs) a run's loss is compared with those of all runs that were there
before it; one that is not among the best 1/η ends there. Nobody waits for anybody, so the rule is
the same one after another here and side by side on a cluster.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_lab._util.format import plural
from lora_lab.errors import ConfigError


@dataclass(frozen=True)
class AshaConfig:
    """When runs are compared, and how many go on.

    Attributes:
        grace_steps: g, optimizer steps that every run gets.
        reduction: η; of those that have come to a rung the best 1/η go on.
    """

    grace_steps: int = 20
    reduction: int = 3

    def __post_init__(self) -> None:
        for name, least in (("grace_steps", 1), ("reduction", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number ≥ {least}")

    def rungs(self, max_steps: int) -> tuple[int, ...]:
        """Return the rungs below the end of a run of so many steps."""
        found = []
        rung = self.grace_steps
        while rung < max_steps:
            found.append(rung)
            rung *= self.reduction
        return tuple(found)

    def check(self, steps: Iterable[int]) -> None:
        """Refuse a rule that would end nothing: no cell trains beyond its first rung.

        Args:
            steps: of every cell.

        Raises:
            ConfigError: which steps would do.
        """
        longest = max(steps, default=0)
        if longest and not self.rungs(longest):
            raise ConfigError(
                f"grace_steps is {self.grace_steps} and no cell trains longer than "
                f"{plural(longest, 'step')}, so nothing would be ended early; use fewer, or leave "
                "early_stopping out"
            )


class Asha:
    """What has been seen at the rungs.

    Args:
        config: the rule.
        losses: {rung: losses seen there}, of an earlier call.
    """

    def __init__(self, config: AshaConfig, losses: Mapping[int, list[float]] | None = None) -> None:
        self.config = config
        self._losses = {rung: sorted(map(_ranked, seen)) for rung, seen in (losses or {}).items()}

    def goes_on(self, rung: int, loss: float) -> bool:
        """Note a run's loss at a rung; return whether it is among the best 1/η seen there.

        A loss that is no number is the worst of all.
        """
        seen = self._losses.setdefault(rung, [])
        value = _ranked(loss)
        bisect.insort(seen, value)
        best = max(1, len(seen) // self.config.reduction)
        return value < math.inf and value <= seen[best - 1]


def _ranked(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
