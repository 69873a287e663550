"""Columns of numbers: names of classes, or measures, which are learned by regression?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MANY = 20  # different numbers, above which classes are doubted
_NUMBER = re.compile(r"[-+]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][-+]?\d+)?")
_NOTHING = {"", "nan", "na", "n/a", "none", "null"}  # as libraries write what is missing


def are_measures(texts: Sequence[str]) -> bool:
    """Return whether a column holds measures, and no classes that are called by numbers.

    They are numbers all, not all of them whole, and more than classes are: over 20 different ones,
    or more than half as many as there are rows. Versions (1.10) and half stars are classes.
    """
    there = [text for text in map(str.strip, texts) if text.casefold() not in _NOTHING]
    found = numbers_in(there)
    fractions = any(not number.is_integer() for number in found)
    return fractions and (len(found) > MANY or 2 * len(found) > len(there))


def numbers_in(texts: Iterable[str]) -> set[float]:
    """Return the different numbers that texts are; none, where one is no number."""
    found = set()
    for text in set(texts):
        if not _NUMBER.fullmatch(text):
            return set()
        found.add(float(text.replace(",", ".")))
    return found
