"""What examples look like as tokens: how long they are, what is learned of them, what is odd."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lora_lab._util.format import format_share
from lora_lab.errors import TaskError
from lora_lab.tasks.encoding import IGNORED
from lora_lab.tasks.families.base import NO_LIMIT, Family, encoded_apart
from lora_lab.tasks.findings import Finding, Severity, at_one_length, of_rows, read
from lora_lab.tasks.too_long import CHUNK, token_count

_SHOWN = 400  # tokens of the first example
_OFTEN = 0.01  # the share of unknown tokens from which that is a warning


class Token(NamedTuple):
    """One token of an example: its text, its number, and whether it is learned."""

    text: str
    id: int
    learned: bool


class Tokens:
    """Examples as tokens: counted, and let go of again.

    Args:
        family: of their task, at the length that is trained with.
        rows: a part of the task.
        places: those of `rows` that are looked at.

    Attributes:
        lengths: tokens of each.
        learned: learned tokens of each, where answers are written.
        long: places of those that are too long.
        left_out: those of them that cannot be cut.
        nothing: places of those of which nothing is learned.
        refused: places of those that cannot be encoded.
        twice: places of those that begin, or end, with one special token twice.
        unknown, count: tokens that the tokenizer does not know, and all.
        highest: the highest number of a token.
        first: the first example.
    """

    def __init__(self, family: Family, rows: Sequence[Any], places: Sequence[int]) -> None:
        self._family = family
        self._rows = rows
        self.lengths: list[int] = []
        self.learned: dict[int, int] = {}
        self.long: list[int] = []
        self.left_out: list[int] = []
        self.nothing: list[int] = []
        self.refused: list[int] = []
        self.twice: list[int] = []
        self.unknown = self.count = 0
        self.highest = -1
        self.first: tuple[Token, ...] = ()
        whole = copy.copy(family)
        whole.max_length = NO_LIMIT
        self._whole = whole
        tokenizer = family.tokenizer
        self._unknown_id = tokenizer.unk_token_id
        self._ends = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
        for start in range(0, len(places), CHUNK):
            chunk = places[start : start + CHUNK]
            self._look_at(chunk, [rows[place] for place in chunk])

    def _look_at(self, places: Sequence[int], rows: list[Any]) -> None:
        items = dict(zip(places, encoded_apart(self._whole, rows), strict=True))
        self.refused += [place for place, item in items.items() if item is None]
        encoded = {place: item for place, item in items.items() if item is not None}
        long = {place: item for place, item in encoded.items() if self._take(place, item)}
        self.long += long
        cut = self._family.cut([self._rows[place] for place in long], list(long.values()))
        self.left_out += [place for place, item in zip(long, cut, strict=True) if item is None]

    def _take(self, place: int, item: Mapping[str, Any]) -> bool:
        """Count an example; return whether it is too long."""
        ids, labels = item["input_ids"], item["labels"]
        if not self.lengths:
            two_sides = self._family.longest([item]).written is not None
            self.first = tuple(_shown(self._family.tokenizer, item, two_sides))
        length = token_count(self._family, item)
        self.lengths.append(length)
        self.count += len(ids)
        self.highest = max(self.highest, max(ids))
        self.unknown += ids.count(self._unknown_id)
        if self._family.writes:
            learned = len(labels) - labels.count(IGNORED)
            self.learned[place] = learned
            if not learned:
                self.nothing.append(place)
            if self._twice(ids[:2]) or self._twice(labels[-2:]):
                self.twice.append(place)
        return length > self._family.max_length and not self._family.packs

    def _twice(self, ids: Sequence[int]) -> bool:
        return len(ids) == 2 and ids[0] == ids[1] and ids[0] in self._ends

    def cut_at_one_length(self) -> list[int]:
        """Return the places of answers of so many tokens each that something cut them there."""
        places = list(self.learned)
        return [places[i] for i in at_one_length(list(self.learned.values()))]

    def findings(self, limit: int | None) -> Iterator[Finding]:
        """Yield what is odd; `limit` is what the model can read at most, None without one."""
        total, family = len(self.lengths) + len(self.refused), self._family
        yield from self._refused(total)
        yield from self._too_long(total, limit)
        yield from of_rows(
            "nothing_learned",
            "error",
            self.nothing,
            total,
            "{count} training examples have no token that is learned",
            "leave them out",
        )
        ends = family.tokenizer.eos_token if family.writes else None
        texts = {p: read(family.task, self._rows[p]).answer for p in self.learned} if ends else {}
        marked = {p for p, text in texts.items() if text.rstrip().endswith(ends or "")}
        yield from of_rows(
            "twice",
            "warning" if self.twice else "note",
            sorted({*self.twice, *marked}),
            total,
            "{count} training examples bring a token of their own for the beginning or the end",
            f"leave {ends!r} out of the texts; training sets it",
        )
        if self.unknown:
            often = self.unknown > _OFTEN * self.count
            share = format_share(self.unknown, self.count)
            text = (
                f"{self.unknown:,} of {self.count:,} tokens ({share}) are unknown to the tokenizer "
                f"({family.tokenizer.unk_token})"
            )
            fix = "look at the file's encoding, and whether the tokenizer is of this language"
            yield Finding("unknown", "warning" if often else "note", self.unknown, text, fix)

    def _refused(self, total: int) -> Iterator[Finding]:
        if not self.refused:
            return
        try:
            self._whole.encode([self._rows[self.refused[0]]])
        except TaskError as error:
            text, _, fix = str(error).partition("; ")
            line = f"{{count}} training examples cannot be encoded: {text}"
            yield from of_rows("refused", "error", self.refused, total, line, fix or "fix them")

    def _too_long(self, total: int, limit: int | None) -> Iterator[Finding]:
        longest, length = max(self.lengths, default=0), self._family.max_length
        fix = f"max_length={longest} takes all of them whole"
        if limit is not None and longest > limit:
            fix = f"the longest has {longest}, and the model can read {limit}; shorten them"
        cut = sorted({*self.long} - {*self.left_out})
        line = f"{{count}} training examples are longer than max_length={length}, and are "
        yield from of_rows("too_long", "warning", cut, total, f"{line}cut", fix)
        worst: Severity = "error" if len(self.left_out) == total else "warning"
        yield from of_rows("left_out", worst, self.left_out, total, f"{line}left out", fix)


def _shown(tokenizer: Any, item: Mapping[str, Any], two_sides: bool) -> list[Token]:
    ids, labels = item["input_ids"], item["labels"]
    if two_sides:  # of an encoder-decoder model
        marked = [(token, False) for token in ids] + [(token, True) for token in labels]
    elif isinstance(labels, list):
        marked = [(token, own != IGNORED) for token, own in zip(ids, labels, strict=True)]
    else:  # a class, or a number
        marked = [(token, False) for token in ids]
    befores = [None, *(token for token, _ in marked)]
    if two_sides:
        befores[len(ids)] = None  # what is written begins anew
    each = zip(befores, marked[:_SHOWN], strict=False)
    return [Token(_text(tokenizer, token, before), token, own) for before, (token, own) in each]


def _text(tokenizer: Any, token: int, before: int | None) -> str:
    """Return a token's text behind the one before it, with the space that lies between."""
    text = tokenizer.decode([token])
    if before is not None:  # alone, WordPiece's have no space, and "##" in its place
        first, both = tokenizer.decode([before]), tokenizer.decode([before, token])
        whole = both.startswith(first) and "\ufffd" not in both
        text = both[len(first) :] if whole else text
    # A part of a character has no text of its own.
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else str(text)
