"""A published number of parameters, counted again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from functools import cached_property
from typing import Any, Literal

import lora_lab as ll
from lora_lab import models
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.lora.config import LoraConfig

Verdict = Literal["exact", "truncated", "does not reproduce"]

_MILLION = 1_000_000


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table.

    Attributes:
        table: such as "Table 4".
        model: a catalogue name.
        method: as the paper names it.
        configs: what counts it.
        printed: millions of parameters, with the digits that the paper prints.
        scores: {metric: value} of the same row.
        note: what is known about a number that does not come out.
        setting: what sets the row apart, such as "r = 8".
        doubled: whether the paper printed twice the truncated half.
        architecture: the transformers class to count on, where it is not the catalogue's.
    """

    table: str
    model: str
    method: str
    configs: tuple[MethodConfig, ...] = field(repr=False)
    printed: str
    scores: Mapping[str, float] = field(default_factory=dict, repr=False)
    note: str = ""
    setting: str = ""
    doubled: bool = False
    architecture: str = ""

    @cached_property
    def count(self) -> int:
        """How many parameters are trained, counted on the model; heads are not.

        The model's config is transformers', so counting needs torch and transformers; what is
        printed does not.
        """
        return ll.budget(self._counted_on(), self.configs).parameters_trainable

    @property
    def verdict(self) -> Verdict:
        """Whether the count gives what is printed: rounded, cut off behind its digits, or not."""
        if self._digits(ROUND_HALF_UP) == self._published:
            return "exact"
        return "truncated" if self._digits(ROUND_DOWN) == self._published else "does not reproduce"

    @property
    def published(self) -> int:
        """The printed number of parameters."""
        return int(self._published * _MILLION)

    def to_json(self) -> dict[str, Any]:
        """Return the row and its verdict as plain JSON."""
        return {
            "table": self.table,
            "method": self.method,
            "setting": self.setting,
            "published": self.published,
            "printed": f"{self.printed}M",
            "counted": self.count,
            "verdict": self.verdict,
            "note": self.note,
            "scores": dict(self.scores),
        }

    @property
    def _published(self) -> Decimal:
        return Decimal(self.printed.replace(",", ""))

    def _digits(self, rounding: str) -> Decimal:
        """Return the count in millions with the printed number's digits."""
        step = Decimal(1).scaleb(self._published.as_tuple().exponent)  # type: ignore[arg-type]
        parts = 2 if self.doubled else 1
        return parts * (Decimal(self.count) / _MILLION / parts).quantize(step, rounding)

    def _counted_on(self) -> Any:
        if not self.architecture:
            return self.model
        config = models.model_config(self.model)
        config.architectures = [self.architecture]
        return ll.anatomy(config)


def published_rows(
    rows: Iterable[PublishedRow], model: str, configs: Sequence[MethodConfig]
) -> tuple[PublishedRow, ...]:
    """Return the rows that print this very plan; a combination's parts in any order."""
    wanted = _plan(configs)
    return tuple(row for row in rows if row.model == model and _plan(row.configs) == wanted)


def _plan(configs: Sequence[MethodConfig]) -> list[Any]:
    return [_counted(config) for config in sorted(configs, key=lambda config: config.method)]


def _counted(config: MethodConfig) -> Any:
    """Return what a config's count depends on: of LoRA not its α, its dropout or its start."""
    if isinstance(config, LoraConfig):
        targets = config.target_modules
        named = (targets,) if isinstance(targets, str) else tuple(sorted(targets))
        return LoraConfig(r=config.r, target_modules=named, rank_pattern=config.rank_pattern)
    return config
