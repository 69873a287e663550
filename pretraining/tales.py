"""Little tales, and questions about who has what."""

from __future__ import annotations

import random

from pretraining import names

_ANIMALS = "bear cat crow dog duck fox frog goat goose hare horse mouse owl pig sheep wolf".split()
_SORTS = "brave clever hungry kind lazy little old proud quiet shy tired young".split()
_THINGS = (
    "apple ball basket bell boat book bottle box cake candle coat cup drum egg flute hat key kite "
    "knife lamp letter map pear ring rope shoe spoon stone"
).split()
_COLOURS = "black blue brown green grey red white yellow".split()
_HOMES = (
    "by the sea|in the forest|under a bridge|on a hill|near the mill|in an old barn|by the lake|"
    "behind the church|in a small house|at the end of the road"
).split("|")
_MOODS = "happy sad glad afraid angry sleepy surprised".split()
_WEATHER = "it rained|it snowed|the sun was shining|the wind was cold|there was a storm".split("|")
_ENDS = (
    "They became friends.|They never met again.|Then they went home.|And that was that.|"
    "From that day on they lived together.|In the evening they sang a song."
).split("|")


def tale(rng: random.Random) -> str:
    """Return a tale of five to eight sentences."""
    who, other = rng.sample(_ANIMALS, 2)
    called, friend = names.word(rng), names.word(rng)
    thing = rng.choice(_THINGS)
    lines = [
        f"Once there was a {rng.choice(_SORTS)} {who} called {called}.",
        f"{called} lived {rng.choice(_HOMES)}.",
        f"One day {rng.choice(_WEATHER)}, and {called} went out to look for {_a(thing)}.",
        f"On the way the {who} met a {other}. Its name was {friend}.",
        f'"{rng.choice(_ASKED).format(thing=_a(thing))}" said {called}.',
        f'"{rng.choice(_ANSWERED).format(thing=thing)}" said {friend}.',
        f"So {called} was {rng.choice(_MOODS)}, and {friend} was {rng.choice(_MOODS)} too.",
        rng.choice(_ENDS),
    ]
    left_out = rng.sample(range(1, 8), rng.randint(0, 3))
    return " ".join(line for number, line in enumerate(lines) if number not in left_out)


_ASKED = (
    "Have you seen {thing}?",
    "I am looking for {thing}.",
    "Can you give me {thing}?",
    "Who are you?",
)
_ANSWERED = (
    "No, I have no {thing}.",
    "Yes, take this one.",
    "There is one at home.",
    "I had a {thing}, but it is lost.",
)


def question(rng: random.Random) -> str:
    """Return who has what, a question about it, and the answer."""
    people = rng.sample(names.FIRST, rng.randint(2, 4))
    things = rng.sample(_THINGS, len(people))
    colours = [rng.choice(_COLOURS) for _ in people]
    owned = list(zip(people, things, colours, strict=True))
    told = [f"{who} has a {colour} {thing}." for who, thing, colour in owned]
    who, thing, colour = rng.choice(owned)
    if rng.random() < 0.3:
        taker = rng.choice([person for person in people if person != who])
        told.append(f"{who} gives the {thing} to {taker}.")
        who = taker
    asked, answer = rng.choice(
        [
            (f"Who has the {thing}?", f"{who}."),
            (f"What colour is the {thing}?", f"It is {colour}."),
            (f"Where is the {thing}?", f"{who} has it."),
        ]
    )
    return f"{' '.join(told)} {asked}\n{answer}"


def _a(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
