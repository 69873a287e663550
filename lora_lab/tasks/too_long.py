"""Examples of more tokens than there is room for: cut, left out, or refused; counted together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lora_lab.tasks.families.base import NO_LIMIT, Family

TooLong = Literal["cut", "drop", "error"]
CHUNK = 1000  # examples that are encoded at a time


@dataclass(frozen=True)
class Tally:
    """How many examples were looked at, and how many of them did not fit.

    Attributes:
        count: of all.
        long: of more tokens than there is room for.
        left_out: of those; the others were cut.
        longest: tokens of the longest; of an encoder-decoder model, of its longer side.
        of: how many examples there are, where not all of them were looked at; else 0.
    """

    count: int = 0
    long: int = 0
    left_out: int = 0
    longest: int = 0
    of: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.count + other.count,
            self.long + other.long,
            self.left_out + other.left_out,
            max(self.longest, other.longest),
        )

    def note(self, family: Family, part: str, too_long: TooLong, most: int) -> str:
        """Return what a run notes of a part of the data; "" where all fits.

        Args:
            family: what they were encoded for.
            part: "training", "held-out".
            too_long: what was done with them.
            most: tokens that the model can read, if `max_length` is raised.
        """
        if not self.long:
            return ""
        length, count, cut = family.max_length, self._counted, self.long - self.left_out
        said = []
        if cut:
            said.append(family.cut_note.format(cut=cut, count=count, part=part, length=length))
        if self.left_out:
            why = f"they are longer than max_length={length}"
            if too_long == "cut":
                why = f"what is learned of them leaves no room in max_length={length}"
            said.append(f"{self.left_out} of {count} {part} examples were left out: {why}")
        return f"{'; '.join(said)}; {self._remedy(most)}"

    def refusal(self, family: Family, part: str, most: int) -> str:
        """Return the line where examples that do not fit are an error."""
        return (
            f"{self.long} of {self._counted} {part} examples are longer than "
            f"max_length={family.max_length}; {self._remedy(most)}, or set too_long='cut' or 'drop'"
        )

    @property
    def _counted(self) -> str:
        return f"the first {self.count}" if self.count < self.of else str(self.count)

    def _remedy(self, most: int) -> str:
        if self.longest <= most:
            return f"max_length={self.longest} would do"
        return f"the longest has {self.longest} tokens, and the model can read {most}"


@dataclass(frozen=True)
class Fitted:
    """Examples that fit, in their order: as they are, as tokens, and how many did not.

    Those of a family that packs are blocks as tokens.
    """

    examples: list[Any]
    encoded: list[Mapping[str, Any]]
    tally: Tally


def fit_examples(
    family: Family, examples: Sequence[Any], too_long: TooLong, chunk: int = CHUNK
) -> Iterator[Fitted]:
    """Encode examples, and do with those of more than `family.max_length` tokens as told.

    Args:
        family: its `encode` cuts.
        examples: of the family's task.
        too_long: "cut" cuts them, and leaves those out that cannot be: what is learned of them
            would not be whole. "drop" and "error" leave all of them out.
        chunk: so many are encoded at a time, if not more than `CHUNK`.

    Yields:
        What becomes of the next examples; of a large data set not all need be looked at.

    Raises:
        TaskError: an example that cannot be encoded at any length.
    """
    if family.packs:  # put end to end, nothing is too long
        blocks = list(family.encode(examples)[0])
        longest = max((token_count(family, block) for block in blocks), default=0)
        yield Fitted(list(examples), blocks, Tally(len(examples), longest=longest))
        return
    whole = copy.copy(family)
    whole.max_length = NO_LIMIT
    size = min(chunk, CHUNK)
    for start in range(0, len(examples), size):
        rows = examples[start : start + size]
        encoded, _ = whole.encode(rows)
        lengths = [token_count(family, item) for item in encoded]
        long = [i for i, length in enumerate(lengths) if length > family.max_length]
        kept: dict[int, Mapping[str, Any] | None] = dict(enumerate(encoded)) | dict.fromkeys(long)
        if long and too_long == "cut":
            cut = family.cut([rows[i] for i in long], [encoded[i] for i in long])
            kept |= zip(long, cut, strict=True)
        fits = {i: item for i, item in kept.items() if item is not None}
        tally = Tally(len(rows), len(long), len(rows) - len(fits), max(lengths, default=0))
        yield Fitted([rows[i] for i in fits], list(fits.values()), tally)


def token_count(family: Family, item: Mapping[str, Any]) -> int:
    """Return how long an encoded example is; of an encoder-decoder model, its longer side."""
    return max(length for length in family.longest([item]) if length is not None)
