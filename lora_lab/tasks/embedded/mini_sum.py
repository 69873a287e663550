"""mini-sum: a chat about where to eat → its summary, a small synthetic mirror of SAMSum.

Over the world of mini-e2e: one place is turned down and another taken, and often the hour moves.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from lora_lab.tasks.cards import DataCard
from lora_lab.tasks.embedded.registry import register_task
from lora_lab.tasks.embedded.world import Restaurant, World
from lora_lab.tasks.metrics import OF_SUMMARIES
from lora_lab.tasks.prompts import Example, GenerationTask

TRAIN, VALIDATION, TEST = 1600, 100, 100
_PLACES = 600, 80, 80  # of each part
_REFERENCES = 3  # of a held-out chat
_PEOPLE = [
    *("Ada", "Ben", "Cleo", "Dev", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas"),
    *("Kira", "Liam", "Mona", "Nils", "Olga", "Pavel", "Rosa", "Sami", "Tess"),
    *("Yusuf",),
]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_HOURS = "five", "six", "seven", "eight", "nine"
_ASKS = ("Dinner on {day}?", "Are you free on {day}?", "Shall we eat out on {day}?")
_AGREES = ("Sure, where?", "Yes! Any idea where?", "Gladly. Where to?")
_FIRST = ("How about {first}?", "I thought of {first}.", "What about {first}?")
_SECOND = ("Let's take {second}.", "Rather {second}?", "I would like {second} more.")
_HOUR = ("Fine. At {hour}?", "Good. Is {hour} o'clock all right?", "OK, at {hour}?")
_YES = ("See you then.", "Perfect.", "I will be there.")
_LATER = ("Better at {hour}.", "I can only make it at {hour}.", "Make it {hour}, please.")
_SUMMARIES = (
    "{a} and {b} will have dinner at {second} rather than at {first} on {day} at {hour}, as {why}.",
    "On {day} at {hour} {a} and {b} will eat at {second} and not at {first}, because {why}.",
    "{a} will meet {b} at {second} instead of {first} on {day} at {hour}, since {why}.",
)
_REASONS = {  # what is said, and what a summary makes of it
    "food": ("I do not like {food}.", "{b} does not like {food}"),
    "area": ("The {area} is too far for me.", "the {area} is too far for {b}"),
    "priceRange": ("That is too expensive for me.", "that is too expensive for {b}"),
    "customer rating": ("People rate it badly.", "people rate that badly"),
    "familyFriendly": ("Children are not welcome there.", "children are not welcome there"),
}
_HOLDS = {  # where a reason is true of a place
    "priceRange": ("high", "more than £30"),
    "customer rating": ("low", "1 out of 5"),
    "familyFriendly": ("no",),
}
CARD = DataCard(
    about="a chat of two people about where to eat → one sentence on what they agreed",
    made="written by a program from a seed: invented people and restaurants",
    easy="the form of the sentence, and who speaks",
    hard="which place and which hour were agreed in the end, and why the other place was not",
    floor={"ROUGE-1": 54.0, "ROUGE-2": 28.1, "ROUGE-L": 51.8},
    floor_is="the summary of another chat",
    ceiling={"ROUGE-1": 81.6, "ROUGE-2": 62.7, "ROUGE-L": 71.3},
    ceiling_is="one right summary against the others",
    mirrors="SAMSum",
)


@register_task("mini-sum", GenerationTask, CARD)
def mini_sum(seed: int = 0) -> GenerationTask:
    """Make the task.

    Somebody proposes a place, the other turns it down with a reason that is true of it and names
    another place; of three chats in five the hour is moved too. No restaurant is in two of the
    three parts.

    Args:
        seed: of the world, the chats and the wording.

    Returns:
        1,600 training, 100 validation and 100 test chats; each of the held-out ones has 3
        references. Scored by ROUGE-1, -2 and -L.
    """
    rng = random.Random(f"mini-sum {seed}")
    places = iter(World(seed, sum(_PLACES)).restaurants)
    parts = []
    for size, known in zip((TRAIN, VALIDATION, TEST), _PLACES, strict=True):
        own = [next(places) for _ in range(known)]
        count = 1 if size == TRAIN else _REFERENCES
        parts.append(tuple(_example(own, count, rng) for _ in range(size)))
    train, validation, test = parts
    template = "{prompt}\nSummary:\n"
    return GenerationTask("mini-sum", True, train, validation, test, OF_SUMMARIES, template)


def _example(places: Sequence[Restaurant], references: int, rng: random.Random) -> Example:
    first, second = rng.sample(places, 2)
    a, b = rng.sample(_PEOPLE, 2)
    proposed, agreed = rng.sample(_HOURS, 2)
    moved = rng.random() < 0.6
    reason = rng.choice([k for k in _REASONS if k not in _HOLDS or first.values[k] in _HOLDS[k]])
    said, why = _REASONS[reason]
    food = first.values["food"]
    own = {
        "a": a,
        "b": b,
        "day": rng.choice(_DAYS),
        "first": first.name,
        "second": second.name,
        "food": "fast food" if food == "Fast food" else f"{food} food",
        "area": first.values["area"],
    }
    turns = [
        (a, rng.choice(_ASKS)),
        (b, rng.choice(_AGREES)),
        (a, rng.choice(_FIRST)),
        (b, f"{said} {rng.choice(_SECOND)}"),
        (a, rng.choice(_HOUR).format(hour=proposed)),
        (b, rng.choice(_LATER).format(hour=agreed) if moved else rng.choice(_YES)),
    ]
    chat = "\n".join(f"{who}: {text.format(**own)}" for who, text in turns)
    told = own | {"hour": agreed if moved else proposed, "why": why.format(**own)}
    texts = tuple(text.format(**told) for text in rng.sample(_SUMMARIES, references))
    return Example(chat, texts[0], texts)
