"""A record of a house, and a sentence or two that say all of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pretraining import names

_KINDS = "bakery bank farm garden hotel library mill museum school shop station theatre".split()
_ADJECTIVES = {
    "age": ("old", "new", "modern", "ancient"),
    "size": ("small", "large", "tiny", "huge"),
    "colour": ("red", "blue", "green", "white", "yellow", "grey"),
}
_PARTS = {
    "hills": "in the hills",
    "harbour": "at the harbour",
    "old town": "in the old town",
    "north": "in the north of the town",
    "south": "in the south of the town",
    "valley": "down in the valley",
    "market": "on the market square",
}
_HOURS = ("7", "8", "9", "10", "11", "noon")


def record(rng: random.Random) -> str:
    """Return a record on one line, and on the next what it says in words."""
    kind, name = rng.choice(_KINDS), names.place(rng)
    values = {key: rng.choice(own) for key, own in _ADJECTIVES.items() if rng.random() < 0.4}
    values |= {key: value for key, value in _rest(rng).items() if rng.random() < 0.5}
    return f"{_written(name, kind, values, rng)}\n{_told(name, kind, values, rng)}"


def _rest(rng: random.Random) -> dict[str, str]:
    return {
        "part": rng.choice(list(_PARTS)),
        "beside": names.place(rng),
        "keeper": names.person(rng),
        "opens": rng.choice(_HOURS),
        "entry": rng.choice(("free", f"£{rng.randint(1, 40)}", f"{rng.randint(2, 30)} pounds")),
        "dogs": rng.choice(("yes", "no")),
        "stars": f"{rng.randint(1, 9)} of 10",
    }


def _written(name: str, kind: str, values: dict[str, str], rng: random.Random) -> str:
    fields = [("kind", kind), *values.items()]
    if rng.random() < 0.3:
        rng.shuffle(fields)
    fields.insert(0 if rng.random() < 0.7 else rng.randint(0, len(fields)), ("name", name))
    forms = (
        lambda: "; ".join(f"{key}: {value}" for key, value in fields),
        lambda: " | ".join(f"{key} = {value}" for key, value in fields),
        lambda: ", ".join(f"{key.upper()} {value}" for key, value in fields),
        lambda: " ".join(f"<{key}> {value}" for key, value in fields),
        lambda: " ".join(f"[{key}: {value}]" for key, value in fields),
    )
    return rng.choice(forms)()


def _told(name: str, kind: str, values: dict[str, str], rng: random.Random) -> str:
    described = ", ".join(values[key] for key in ("size", "age", "colour") if key in values)
    noun = f"{described} {kind}" if described else kind
    noun = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    spots = [_PARTS[values["part"]]] if "part" in values else []
    if "beside" in values:
        spots.append(f"{rng.choice(('next to', 'opposite', 'not far from'))} {values['beside']}")
    where, verbs = " ".join(spots), _verbs(values, rng)
    plans = (
        lambda: f"{name} is {_spaced(noun, where)}.{_then(kind, verbs, rng)}",
        lambda: f"{name} is the name of {_spaced(noun, where)}.{_then(kind, verbs, rng)}",
        lambda: f"{_spaced(f'You can see {noun}', where)}, {name}.{_then(kind, verbs, rng)}",
        lambda: f"This is {name}, {_spaced(noun, where)}.{_then(kind, verbs, rng)}",
    )
    return rng.choice(plans)()


def _verbs(values: dict[str, str], rng: random.Random) -> list[str]:
    found = []
    if "keeper" in values:
        found.append(f"{rng.choice(('belongs to', 'is kept by'))} {values['keeper']}")
    if "opens" in values:
        found.append(f"{rng.choice(('opens at', 'is open from'))} {values['opens']}")
    if values.get("entry") == "free":
        found.append("costs nothing")
    elif "entry" in values:
        found.append(f"{rng.choice(('costs', 'asks for'))} {values['entry']}")
    if "dogs" in values:
        found.append("lets dogs in" if values["dogs"] == "yes" else "does not let dogs in")
    if "stars" in values:
        found.append(f"{rng.choice(('was given', 'won'))} {values['stars']} stars")
    rng.shuffle(found)
    return found


def _then(kind: str, verbs: Sequence[str], rng: random.Random) -> str:
    if not verbs:
        return ""
    *firsts, last = verbs
    said = f"{', '.join(firsts)} and {last}" if firsts else last
    return f" {rng.choice(('It', f'The {kind}', f'This {kind}'))} {said}."


def _spaced(*parts: str) -> str:
    return " ".join(part for part in parts if part)
