"""English sentences about a restaurant: every attribute said once, in one of several ways.

A sentence is a plan (where the name, the description and the place stand) filled with three kinds
of pieces: adjectives before the noun, clauses with a verb, and phrases that say where.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_SAYS_NOTHING = ("a place", "a venue")
_STARS = ("1 out of 5", "3 out of 5", "5 out of 5")


@dataclass
class _Pieces:
    """What is to be said, sorted by the grammatical place that it goes to."""

    noun: str
    kitchen: str = ""  # "French", straight before the noun
    adjectives: list[str] = field(default_factory=list)  # in the order English wants
    clauses: list[str] = field(default_factory=list)  # third person singular, no subject
    where: list[str] = field(default_factory=list)

    @property
    def description(self) -> str:
        """The noun with its adjectives and article: "a cheap, family-friendly French pub"."""
        words = _join(", ".join(self.adjectives), self.kitchen, self.noun)
        return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


# name, pieces, where, the source of chance → one or two sentences
_Plan = Callable[[str, _Pieces, str, random.Random], str]


def sentence(name: str, values: Mapping[str, str], rng: random.Random) -> str:
    """Return one or two fluent sentences that say all of `values` about `name`.

    Args:
        name: the restaurant's.
        values: at least one of E2E's attributes, with its value.
        rng: chooses among the wordings.
    """
    pieces = _choose_pieces(values, rng)
    where = " ".join(pieces.where)
    plans: list[_Plan] = [_plain, _there_is]
    if where:
        plans.append(_place_first)
    if pieces.clauses:
        plans += [_relative, _apposition]
    return rng.choice(plans)(name, pieces, where, rng)


def _plain(name: str, pieces: _Pieces, where: str, rng: random.Random) -> str:
    return f"{name} is {_join(pieces.description, where)}.{_second(pieces, rng)}"


def _there_is(name: str, pieces: _Pieces, where: str, rng: random.Random) -> str:
    called = rng.choice(("called", "named"))
    there = _join(f"There is {pieces.description} {called} {name}", where)
    return f"{there}.{_second(pieces, rng)}"


def _place_first(name: str, pieces: _Pieces, where: str, rng: random.Random) -> str:
    start = _capital(rng.choice(("", "located ")) + where)
    if pieces.description in _SAYS_NOTHING and pieces.clauses:
        return f"{start}, {name} {_and(pieces.clauses)}."
    return f"{start}, {name} is {pieces.description}.{_second(pieces, rng)}"


def _relative(name: str, pieces: _Pieces, where: str, _: random.Random) -> str:
    place = f" It is {where}." if where else ""
    return f"{name} is {pieces.description} that {_and(pieces.clauses)}.{place}"


def _apposition(name: str, pieces: _Pieces, where: str, _: random.Random) -> str:
    return f"{name}, {_join(pieces.description, where)}, {_and(pieces.clauses)}."


def _second(pieces: _Pieces, rng: random.Random) -> str:
    if not pieces.clauses:
        return ""
    return f" {rng.choice(('It', 'The ' + pieces.noun))} {_and(pieces.clauses)}."


def _choose_pieces(values: Mapping[str, str], rng: random.Random) -> _Pieces:
    kind = values.get("eatType")
    pieces = _Pieces(kind or rng.choice(("place", "venue")))
    # The order of these calls is the order of the adjectives: price, then families.
    if price := values.get("priceRange"):
        _say_price(price, pieces, rng)
    if families := values.get("familyFriendly"):
        _say_families(families == "yes", pieces, rng)
    if food := values.get("food"):
        _say_food(food, kind, pieces, rng)
    if rating := values.get("customer rating"):
        _say_rating(rating, pieces, rng)
    if area := values.get("area"):
        _say_area(area, pieces, rng)
    if near := values.get("near"):
        pieces.where.append(f"{rng.choice(('near', 'close to'))} {near}")
    rng.shuffle(pieces.clauses)
    rng.shuffle(pieces.where)
    return pieces


def _say_price(price: str, pieces: _Pieces, rng: random.Random) -> None:
    adjectives = {
        "cheap": ("cheap", "low-priced"),
        "moderate": ("moderately priced", "mid-priced"),
        "high": ("expensive", "high-priced"),
    }.get(price)
    if adjectives is None:
        pieces.clauses.append(rng.choice((f"charges {price}", f"has a price range of {price}")))
    elif rng.random() < 0.5:
        pieces.adjectives.append(rng.choice(adjectives))
    else:
        level = {"cheap": "low"}.get(price, price)
        pieces.clauses.append(rng.choice((f"has {level} prices", f"is {adjectives[0]}")))


def _say_families(welcome: bool, pieces: _Pieces, rng: random.Random) -> None:
    if welcome and rng.random() < 0.5:
        pieces.adjectives.append(rng.choice(("family-friendly", "child-friendly")))
    elif welcome:
        pieces.clauses.append(rng.choice(("is family-friendly", "welcomes families")))
    else:
        pieces.clauses.append(rng.choice(("is not family-friendly", "does not welcome families")))


def _say_food(food: str, kind: str | None, pieces: _Pieces, rng: random.Random) -> None:
    dish = "fast food" if food == "Fast food" else f"{food} food"
    # "A French restaurant", but a pub or a coffee shop serves French food.
    if kind in (None, "restaurant") and rng.random() < 0.5:
        pieces.noun = "restaurant"
        pieces.kitchen = "fast food" if food == "Fast food" else food
    else:
        pieces.clauses.append(rng.choice((f"serves {dish}", f"offers {dish}")))


def _say_rating(rating: str, pieces: _Pieces, rng: random.Random) -> None:
    if rating in _STARS:
        wordings = (f"is rated {rating}", f"has a customer rating of {rating}")
    else:
        article = "an" if rating == "average" else "a"
        wordings = (
            f"has {article} {rating} customer rating",
            f"has {article} {rating} rating from its customers",
        )
    pieces.clauses.append(rng.choice(wordings))


def _say_area(area: str, pieces: _Pieces, rng: random.Random) -> None:
    wordings = {
        "riverside": ("by the riverside", "in the riverside area"),
        "city centre": ("in the city centre", "in the centre of the city"),
    }
    pieces.where.append(rng.choice(wordings[area]))


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _and(items: list[str]) -> str:
    *firsts, last = items
    return f"{', '.join(firsts)} and {last}" if firsts else last


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
