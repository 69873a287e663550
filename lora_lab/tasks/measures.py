"""Columns of numbers: names of classes, or measures, which are learned by regression?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MANY = 20  # different numbers, above which classes are doubted
_NUMBER = re.compile(r"[-+]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][-+]?\d+)?")
_NOTHING = {"", "nan", "na", "n/a", "none", "null"}  # as libraries write what is missing
_ODD = 10  # one text in so many may be no number: "?", "inf", a mark of the file's own


def are_measures(texts: Sequence[str]) -> bool:
    """Return whether a column holds measures, and no classes that are called by numbers.

    They are numbers, not all of them whole, and more than classes are: over 20 different ones, or
    more than half as many as there are rows. Versions (1.10) and half stars are classes. One text
    in ten may be something else.
    """
    there = [text for text in map(str.strip, texts) if not is_missing(text)]
    written = [text for text in there if _NUMBER.fullmatch(text)]
    found = numbers_in(written)
    fractions = any(not number.is_integer() for number in found)
    most = _ODD * (len(there) - len(written)) <= len(there)
    return fractions and most and (len(found) > MANY or 2 * len(found) > len(there))


def is_missing(text: str) -> bool:
    """Return whether a text stands for no number at all."""
    return text.strip().casefold() in _NOTHING


def numbers_in(texts: Iterable[str]) -> set[float]:
    """Return the different numbers among texts, written with a point or a comma."""
    written = filter(_NUMBER.fullmatch, map(str.strip, set(texts)))
    return {float(text.replace(",", ".")) for text in written}
