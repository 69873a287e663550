"""mini-e2e: its sizes, its seed, its sentences and their references."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import Counter

import pytest

from lora_lab.tasks import Example, load_task
from lora_lab.tasks.embedded.grammar import sentence
from lora_lab.tasks.embedded.world import ATTRIBUTES, World
from tests.helpers.meanings import values_of


@pytest.fixture(scope="module")
def mini():
    return load_task("mini-e2e")


def test_mini_e2e_has_its_sizes_and_says_that_it_is_synthetic(mini):
    assert (len(mini.train), len(mini.validation), len(mini.test)) == (2000, 100, 100)
    assert mini.synthetic
    assert mini.describe().startswith("mini-e2e (synthetic): 2,000 training examples")
    assert "\n" not in mini.describe()


def test_mini_e2e_hangs_on_the_seed_only(mini):
    assert load_task("mini-e2e") == mini
    other = load_task("mini-e2e", seed=1)
    shared = {e.prompt for e in other.train} & {e.prompt for e in mini.train}
    assert len(shared) < 40  # another world: the same name may meet the same few values


def test_mini_e2e_is_quick():
    start = time.thread_time()  # the machine may be busy
    load_task("mini-e2e", seed=2)
    assert time.thread_time() - start < 2


def test_no_meaning_and_no_restaurant_is_in_two_parts(mini):
    parts = (mini.train, mini.validation, mini.test)
    for one, other in itertools.combinations(parts, 2):
        assert {values_of(e.prompt)["name"] for e in one}.isdisjoint(
            values_of(e.prompt)["name"] for e in other
        )
    prompts = [e.prompt for part in parts for e in part]
    assert len(set(prompts)) == len(prompts)


def test_meanings_are_in_the_format_of_e2e(mini):
    order = ["name", *ATTRIBUTES, "near"]
    for example in mini.train:
        values = values_of(example.prompt)
        assert ", ".join(f"{k}[{v}]" for k, v in values.items()) == example.prompt
        assert list(values) == [key for key in order if key in values]
        assert 3 <= len(values) <= 7
        for key, allowed in ATTRIBUTES.items():
            assert values.get(key, allowed[0]) in allowed


def test_held_out_meanings_have_several_different_references(mini):
    for example in (*mini.validation, *mini.test):
        assert 3 <= len(example.references) <= 5
        assert len(set(example.references)) == len(example.references)
        assert example.completion in example.references
    assert len({len(e.references) for e in mini.validation}) > 1
    assert all(e.references == (e.completion,) for e in mini.train)


_SAID = {  # attribute, value → what a sentence about it must contain
    ("priceRange", "cheap"): r"cheap|low-priced|low prices",
    ("priceRange", "moderate"): r"moderately priced|mid-priced|moderate prices",
    ("priceRange", "high"): r"expensive|high-priced|high prices",
    ("familyFriendly", "yes"): r"(?<!not )(family|child)-friendly|welcomes families",
    ("familyFriendly", "no"): r"is not family-friendly|does not welcome families",
    ("food", "Fast food"): r"fast food",
    ("area", "riverside"): r"riverside",
    ("area", "city centre"): r"city centre|centre of the city",
}


def test_every_sentence_says_its_meaning_once_and_nothing_else(mini):
    for example in (*mini.train, *mini.validation, *mini.test):
        values = values_of(example.prompt)
        for text in example.references:
            rest = text.replace(values["name"], "").replace(values.get("near", "\0"), "")
            for key, allowed in ATTRIBUTES.items():
                if key == "eatType":
                    if key in values:
                        assert values[key] in rest, text
                    continue
                for value in allowed:
                    pattern = _SAID.get((key, value))
                    if key == "customer rating":
                        pattern = (
                            rf"(rated|rating of) {value}"
                            if "of" in value
                            else rf"{value} (cust|rat)"
                        )
                    found = re.findall(pattern or re.escape(value), rest)
                    assert len(found) == (values.get(key) == value), (text, key, value)
            assert text.count(values["name"]) == 1
            assert text.count(values.get("near", values["name"])) == 1


def test_every_sentence_is_well_formed():
    rng = random.Random(5)
    for place in World(7, 300).restaurants:
        keys = rng.sample(list(place.values), rng.randint(1, 7))
        text = sentence(place.name, {k: v for k, v in place.values.items() if k in keys}, rng)
        plain = text.replace(place.name, "Name").replace(place.values["near"], "Near")
        assert not re.search(r"\ba [aeiouAEIOU]|\ban [^aeiouAEIOU]", plain), text
        assert not re.search(r"  | ,| \.|\.\.|,,|\0|[\[\]{}]", plain), text
        assert re.fullmatch(r"[A-ZÀ-Þ].*\.", plain), text
        for part in plain.rstrip(".").split(". "):
            assert part[0].isupper(), text
            # One finite verb with its subject at least.
            assert re.search(r"\b(is|has|serves|offers|charges|welcomes|does)\b", part), text
            # Adjectives are parted by commas, never the kitchen from its noun.
            assert not re.search(r", (French|Italian|Chinese|Indian|fast food) rest", part), text


def test_sentences_vary(mini):
    shapes = Counter(
        re.sub(r"\W+", " ", e.completion.replace(values_of(e.prompt)["name"], "NAME"))
        .strip()
        .split(" ", 3)[0]
        for e in mini.train
    )
    assert len(shapes) >= 4
    assert max(shapes.values()) < 0.8 * len(mini.train)


def test_references_agree_with_each_other_and_not_with_another_meaning(mini):
    held_out = mini.validation
    assert len({values_of(e.prompt)["name"] for e in held_out[:16]}) > 8  # a fair sample
    own = [e.references[0] for e in held_out]
    others = [Example(e.prompt, e.references[1], e.references[1:]) for e in held_out]
    assert mini.score(own, others)["bleu"] > 30
    assert mini.score(own[8:] + own[:8], others)["bleu"] < 25
