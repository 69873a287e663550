"""How answers that are scored are decoded: greedily, or as a task asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_lab.errors import ConfigError


@dataclass(frozen=True)
class Decoding:
    """Decoding settings of a task; names are transformers' `GenerationConfig`'s.

    >>> task = dataclasses.replace(task, decoding=Decoding(num_beams=4))

    Attributes:
        num_beams: of the beam search; 1: greedy.
        length_penalty: a beam's score is divided by its length to this power.
        no_repeat_ngram_size: no so many tokens come twice in a row in an answer; 0: any may.
        max_new_tokens: where an answer that does not end is broken off; None: at half as many
            tokens again as the longest right one has.

    Raises:
        ConfigError: a number that cannot be.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_beams", 1), ("no_repeat_ngram_size", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not whole and not (name == "max_new_tokens" and value is None):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number from {least} on")
        penalty = self.length_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, int | float):
            raise ConfigError(f"length_penalty is {penalty!r}; it must be a number")

    def settings(self) -> dict[str, Any]:
        """Return what of it is not greedy, as fields of a `GenerationConfig`."""
        found: dict[str, Any] = {}
        if self.num_beams > 1:
            found |= {"num_beams": self.num_beams, "length_penalty": self.length_penalty}
        if self.no_repeat_ngram_size:
            found["no_repeat_ngram_size"] = self.no_repeat_ngram_size
        return found


GREEDY = Decoding()
E2E_OF_THE_PAPER = Decoding(num_beams=10, length_penalty=0.9, no_repeat_ngram_size=4)
"""Hu et al. (2021), table 11: inference on the E2E NLG challenge."""
