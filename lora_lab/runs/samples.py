"""A held-out prompt and what the model makes of it, before and after."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lora_lab.redaction import shown_redacted


@shown_redacted
@dataclass(frozen=True)
class Sample:
    """One held-out example with its answers; None where the model has not answered yet."""

    prompt: str
    references: tuple[str, ...]
    base: str | None = None
    adapted: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)
