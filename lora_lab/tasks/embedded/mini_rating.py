"""mini-rating: what do customers think of this restaurant?

A small synthetic mirror of sentiment classification (SST-2), over the world of mini-e2e.
"""

from __future__ import annotations

import random

from lora_lab.tasks.cards import DataCard
from lora_lab.tasks.classification import ClassificationTask, LabeledText
from lora_lab.tasks.embedded import grammar
from lora_lab.tasks.embedded.registry import register_task
from lora_lab.tasks.embedded.world import Restaurant, World

TRAIN, VALIDATION, TEST = 1500, 150, 150
LABELS = ("high", "low")
_RATINGS = {
    "low": ("low", "1 out of 5"),
    "high": ("high", "5 out of 5"),
}
_OTHERS = ("food", "priceRange", "area", "familyFriendly", "near")


CARD = DataCard(
    about="a description of a restaurant → do its customers rate it high or low",
    made="written by a program from a seed: an invented world of restaurants",
    easy="four phrases, each of which tells its class; no single word does",
    hard="ratings told apart from prices, which are low and high as well",
    floor={"accuracy": 50.0},
    floor_is="always one class",
    mirrors="SST-2",
)


@register_task("mini-rating", ClassificationTask, CARD)
def mini_rating(seed: int = 0) -> ClassificationTask:
    """Make the task.

    A description tells the customers' rating, in words or as a number, and two to four other
    attributes. Prices are low and high as well, so a single word is not enough. No restaurant is in
    two parts.

    Args:
        seed: of the world, the choices and the sentences.

    Returns:
        1,500 training, 150 validation and 150 test texts, each class as often as the others.
    """
    rng = random.Random(f"mini-rating {seed}")
    places = World(seed, (TRAIN + VALIDATION + TEST) // len(LABELS)).restaurants
    texts = [_text(place, label, rng) for place in places for label in LABELS]
    parts = texts[:TRAIN], texts[TRAIN : TRAIN + VALIDATION], texts[TRAIN + VALIDATION :]
    for part in parts:
        rng.shuffle(part)  # neighbors are about one restaurant
    train, validation, test = map(tuple, parts)
    return ClassificationTask("mini-rating", True, LABELS, train, validation, test)


def _text(place: Restaurant, label: str, rng: random.Random) -> LabeledText:
    told = {"eatType", "customer rating", *rng.sample(_OTHERS, rng.randint(2, 4))}
    values = {**place.values, "customer rating": rng.choice(_RATINGS[label])}
    chosen = {key: value for key, value in values.items() if key in told}
    return LabeledText(grammar.sentence(place.name, chosen, rng), label)
