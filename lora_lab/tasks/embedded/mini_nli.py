"""mini-nli: does the first description of a restaurant say what the second one says?

A small synthetic mirror of natural language inference (MNLI, RTE), over the world of mini-e2e.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from lora_lab.tasks.cards import DataCard
from lora_lab.tasks.classification import ClassificationTask, LabeledText
from lora_lab.tasks.embedded import grammar
from lora_lab.tasks.embedded.registry import register_task
from lora_lab.tasks.embedded.world import ATTRIBUTES, Restaurant, World

TRAIN, VALIDATION, TEST = 2100, 150, 150
LABELS = ("contradiction", "entailment", "neutral")

# What is said twice. A name comes with its kind in every sentence, so that "a French restaurant"
# never says by the way what a pub is not. No hypothesis says what a place is near to: a place can
# be near to two things.
_TOLD = ("food", "priceRange", "customer rating", "area", "familyFriendly")
_IN_A_PREMISE, _IN_A_HYPOTHESIS = (2, 4), (1, 2)
# Values that exclude each other: "cheap" may well be "less than £20".
_SCALES = {key: (values,) for key, values in ATTRIBUTES.items()} | {
    key: (ATTRIBUTES[key][:3], ATTRIBUTES[key][3:]) for key in ("priceRange", "customer rating")
}


CARD = DataCard(
    about="two descriptions of a restaurant → does the first entail, contradict or leave open",
    made="written by a program from a seed: an invented world of restaurants",
    easy="nothing by a single sentence: each alone tells nothing of the class",
    hard="to compare the two, fact by fact, in other words",
    floor={"accuracy": 33.3},
    floor_is="always one class",
    mirrors="MNLI and RTE",
)


@register_task("mini-nli", ClassificationTask, CARD)
def mini_nli(seed: int = 0) -> ClassificationTask:
    """Make the task.

    The premise tells two to four attributes of a restaurant, the hypothesis one or two. It is
    entailed where the premise says all of that, contradicted where the premise has another value
    for one of them, neutral where the premise does not mention one of them.

    Neither sentence alone tells the class: for each of the three, hypotheses and premises are
    drawn from one distribution. Every restaurant has one pair of each class, and no restaurant is
    in two parts.

    Args:
        seed: of the world, the pairs and the sentences.

    Returns:
        2,100 training, 150 validation and 150 test pairs, each class as often as the others.
    """
    rng = random.Random(f"mini-nli {seed}")
    world = World(seed, (TRAIN + VALIDATION + TEST) // len(LABELS))
    pairs = [_pair(place, label, rng) for place in world.restaurants for label in LABELS]
    parts = (
        pairs[:TRAIN],
        pairs[TRAIN : TRAIN + VALIDATION],
        pairs[TRAIN + VALIDATION :],
    )
    for part in parts:
        rng.shuffle(part)  # neighbors are about one restaurant
    train, validation, test = map(tuple, parts)
    return ClassificationTask("mini-nli", True, LABELS, train, validation, test)


def _pair(place: Restaurant, label: str, rng: random.Random) -> LabeledText:
    hypothesis = rng.sample(_TOLD, rng.randint(*_IN_A_HYPOTHESIS))
    # One of them makes the pair neutral or a contradiction, each as often as the other.
    changed = rng.choice(hypothesis)
    said = [key for key in hypothesis if key != changed or label != "neutral"]
    others = [key for key in _TOLD if key not in hypothesis]
    premise = said + rng.sample(others, rng.randint(*_IN_A_PREMISE) - len(said))
    near = ["near"] if rng.random() < 0.5 else []
    values = dict(place.values)
    first = _sentence(place.name, values, [*premise, *near], rng)
    if label == "contradiction":
        scale = next(scale for scale in _SCALES[changed] if values[changed] in scale)
        values[changed] = rng.choice([value for value in scale if value != values[changed]])
    return LabeledText(first, label, _sentence(place.name, values, hypothesis, rng))


def _sentence(name: str, values: Mapping[str, str], keys: list[str], rng: random.Random) -> str:
    told = {key: value for key, value in values.items() if key in ("eatType", *keys)}
    return grammar.sentence(name, told, rng)
