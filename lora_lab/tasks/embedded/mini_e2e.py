"""mini-e2e: meaning → sentence, a small synthetic mirror of the E2E NLG challenge."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from lora_lab.tasks.cards import DataCard
from lora_lab.tasks.embedded import grammar
from lora_lab.tasks.embedded.registry import register_task
from lora_lab.tasks.embedded.world import Restaurant, World
from lora_lab.tasks.prompts import Example, GenerationTask

TRAIN, VALIDATION, TEST = 2000, 100, 100
_MEANINGS_A_RESTAURANT = 4
_FEWEST, _MOST = 2, 6  # attributes in a meaning, beside the name
_REFERENCES = (3, 4, 5)  # of a held-out meaning; E2E has 8 on average


CARD = DataCard(
    about="the facts on a restaurant → one or two sentences that say all of them",
    made="written by a program from a seed: an invented world of restaurants",
    easy="the forms of the sentences, which are few, and the names, which stand in the prompt",
    hard="to say every fact, and none that is not there, of up to six",
    floor={"BLEU (cased)": 18.1, "chrF": 33.0, "exact match": 0.0},
    floor_is="the sentence of other facts",
    ceiling={"BLEU (cased)": 64.7, "chrF": 73.2},
    ceiling_is="one right sentence against the others",
    mirrors="the E2E NLG challenge",
)


@register_task("mini-e2e", GenerationTask, CARD)
def mini_e2e(seed: int = 0) -> GenerationTask:
    """Make the task.

    A meaning is a restaurant's name with some of its attributes, written as E2E writes it:
    `name[The Brass Heron], eatType[pub], area[riverside]`. No restaurant is in two of the three
    parts, so a held-out answer cannot be remembered.

    Args:
        seed: of the world, the meanings and the sentences.

    Returns:
        2,000 training, 100 validation and 100 test meanings; each of the held-out ones has 3 to
        5 references.
    """
    rng = random.Random(f"mini-e2e {seed}")
    needed = (TRAIN + VALIDATION + TEST) // _MEANINGS_A_RESTAURANT
    meanings = [
        (place, chosen)
        for place in World(seed, needed).restaurants
        for chosen in _meanings(place, rng)
    ]
    examples = [
        _example(place, chosen, 1 if index < TRAIN else rng.choice(_REFERENCES), rng)
        for index, (place, chosen) in enumerate(meanings)
    ]
    parts = (
        examples[:TRAIN],
        examples[TRAIN : TRAIN + VALIDATION],
        examples[TRAIN + VALIDATION :],
    )
    for part in parts:
        rng.shuffle(part)  # neighbors are about one restaurant: the first 16 shall be a sample
    train, validation, test = map(tuple, parts)
    return GenerationTask("mini-e2e", synthetic=True, train=train, validation=validation, test=test)


def meaning_text(name: str, values: Mapping[str, str]) -> str:
    """Write a meaning as E2E does: `name[…], eatType[…], …`."""
    return ", ".join(f"{key}[{value}]" for key, value in {"name": name, **values}.items())


def _meanings(place: Restaurant, rng: random.Random) -> Sequence[dict[str, str]]:
    """Choose different subsets of one place's attributes, in E2E's order."""
    chosen: dict[tuple[str, ...], dict[str, str]] = {}
    while len(chosen) < _MEANINGS_A_RESTAURANT:
        picked = set(rng.sample(list(place.values), rng.randint(_FEWEST, _MOST)))
        kept = {key: value for key, value in place.values.items() if key in picked}
        chosen[tuple(kept)] = kept
    return list(chosen.values())


def _example(
    place: Restaurant, values: Mapping[str, str], references: int, rng: random.Random
) -> Example:
    sentences: dict[str, None] = {}  # a set that keeps its order: the same seed, the same data
    while len(sentences) < references:
        sentences[grammar.sentence(place.name, values, rng)] = None
    texts = tuple(sentences)
    return Example(meaning_text(place.name, values), texts[0], texts)
