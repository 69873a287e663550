"""Little facts that are always the same: what a model can remember, and forget."""

from __future__ import annotations

import random

_CAPITALS = (
    "Austria Vienna, Belgium Brussels, Cuba Havana, Denmark Copenhagen, Egypt Cairo, England "
    "London, Finland Helsinki, France Paris, Germany Berlin, Greece Athens, Hungary Budapest, "
    "Ireland Dublin, Italy Rome, Japan Tokyo, Kenya Nairobi, Norway Oslo, Peru Lima, Poland "
    "Warsaw, Portugal Lisbon, Russia Moscow, Spain Madrid, Sweden Stockholm"
)
_OPPOSITES = (
    "big small, black white, cold hot, day night, dry wet, early late, empty full, fast slow, "
    "first last, good bad, happy sad, hard soft, heavy light, high low, left right, long short, "
    "new old, north south, open closed, rich poor, strong weak, up down, young old"
)
_SOUNDS = (
    "bee buzzes, cat purrs, cow moos, crow caws, dog barks, duck quacks, frog croaks, hen clucks, "
    "horse neighs, lion roars, mouse squeaks, owl hoots, pig grunts, sheep bleats, wolf howls"
)
_ROWS = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August September October November December",
    "one two three four five six seven eight nine ten eleven twelve",
    "spring summer autumn winter",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z",
)


def facts(rng: random.Random) -> str:
    """Return one to four facts."""
    kinds = (_capital, _opposite, _sound, _sum, _row)
    return " ".join(rng.choice(kinds)(rng) for _ in range(rng.randint(1, 4)))


def _pair(pairs: str, rng: random.Random) -> list[str]:
    return rng.choice(pairs.split(", ")).split()


def _capital(rng: random.Random) -> str:
    country, city = _pair(_CAPITALS, rng)
    forms = (f"The capital of {country} is {city}.", f"{city} is the capital of {country}.")
    return rng.choice(forms)


def _opposite(rng: random.Random) -> str:
    one, other = _pair(_OPPOSITES, rng)
    return f"The opposite of {one} is {other}."


def _sound(rng: random.Random) -> str:
    animal, sound = _pair(_SOUNDS, rng)
    return f"The {animal} {sound}."


def _sum(rng: random.Random) -> str:
    one, other = rng.randint(1, 9), rng.randint(1, 9)
    return f"{one} + {other} = {one + other}."


def _row(rng: random.Random) -> str:
    row = rng.choice(_ROWS).split()
    start = rng.randrange(len(row) - 3)
    return f"{', '.join(row[start : start + rng.randint(3, 7)])}."
