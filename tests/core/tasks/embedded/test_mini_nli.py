"""mini-nli: its sizes, its logic, and that neither sentence alone gives the class away."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import load_task
from lora_lab.tasks.embedded.world import ATTRIBUTES, World
from lora_lab.training.fingerprints import data_fingerprint

# attribute → value → what a sentence says of it, and of no other value
_SAID = {
    "priceRange": {
        "cheap": r"cheap|low-priced|low prices",
        "moderate": r"moderately priced|mid-priced|moderate prices",
        "high": r"expensive|high-priced|high prices",
    },
    "customer rating": {
        "low": r"low (customer )?rating",
        "average": r"average (customer )?rating",
        "high": r"high (customer )?rating",
    },
    "familyFriendly": {
        "yes": r"(?<!not )(?:family|child)-friendly|welcomes families",
        "no": r"not family-friendly|not welcome families",
    },
    "area": {"riverside": "riverside", "city centre": "city centre|centre of the city"},
    "food": {"Fast food": "fast food"},
}


@pytest.fixture(scope="module")
def task():
    return load_task("mini-nli")


@pytest.fixture(scope="module")
def names(task):
    count = len(task.train + task.validation + task.test) // 3
    return [place.name for place in World(0, count).restaurants]


def _name(text: str, names: list[str]) -> str:
    return max((name for name in names if name in text), key=len)


def _told(text: str, name: str) -> dict[str, str]:
    """Read the attributes out of a sentence, by other patterns than those it was written with."""
    text = re.sub(r"(near|close to) [A-Z]\w*(\W+[A-Z]\w*)*", "", text.replace(name, "It"))
    found = {}
    for key in ("food", "priceRange", "customer rating", "area", "familyFriendly"):
        for value in ATTRIBUTES[key]:
            if re.search(_SAID.get(key, {}).get(value, re.escape(value)), text):
                assert key not in found, text
                found[key] = value
    return found


def test_it_has_its_sizes_and_says_that_it_is_synthetic(task):
    assert (len(task.train), len(task.validation), len(task.test)) == (2100, 150, 150)
    assert task.labels == ("contradiction", "entailment", "neutral")
    assert task.synthetic
    assert task.describe().startswith("mini-nli (synthetic): 2,100 training examples, 150 valid")
    assert "\n" not in task.describe()


def test_it_hangs_on_the_seed_only(task):
    assert load_task("mini-nli") == task
    other = load_task("mini-nli", seed=1)
    assert len({e.text for e in other.train} & {e.text for e in task.train}) < 20


def test_every_class_is_as_often_as_the_others_and_for_every_restaurant(task, names):
    for part in (task.train, task.validation, task.test):
        assert set(Counter(e.label for e in part).values()) == {len(part) // 3}
        places = defaultdict(set)
        for example in part:
            places[_name(example.text, names)].add(example.label)
        assert all(labels == set(task.labels) for labels in places.values())


def test_no_restaurant_is_in_two_parts(task, names):
    parts = [{_name(e.text, names) for e in p} for p in (task.train, task.validation, task.test)]
    assert [len(part) for part in parts] == [700, 50, 50]
    for one, other in itertools.combinations(parts, 2):
        assert one.isdisjoint(other)


def test_the_class_follows_from_what_the_sentences_say(task, names):
    for example in (*task.train, *task.validation, *task.test):
        name = _name(example.text, names)
        assert name in example.pair
        premise, hypothesis = _told(example.text, name), _told(example.pair, name)
        assert 2 <= len(premise) <= 4
        assert 1 <= len(hypothesis) <= 2
        wrong = [key for key in hypothesis if premise.get(key, hypothesis[key]) != hypothesis[key]]
        unsaid = [key for key in hypothesis if key not in premise]
        expected = "contradiction" if wrong else "neutral" if unsaid else "entailment"
        assert example.label == expected, (example.text, example.pair)
        assert len(wrong) + len(unsaid) <= 1
        for key in wrong:
            # "cheap" may be "less than £20": a word never contradicts a number.
            numbers = [bool(re.search(r"\d", told[key])) for told in (premise, hypothesis)]
            assert numbers[0] == numbers[1]


@pytest.mark.parametrize("side", ["text", "pair"])
def test_neither_sentence_alone_gives_the_class_away(task, names, side):
    """Naive Bayes over words and pairs of words, trained on all of the training pairs."""

    def words(example) -> set[str]:
        text = getattr(example, side).replace(_name(example.text, names), "NAME")
        found = re.findall(r"[\w£.-]+", text.lower())
        return {*found, *map(" ".join, itertools.pairwise(found)), f"length {len(found)}"}

    seen = {label: Counter() for label in task.labels}
    for example in task.train:
        seen[example.label].update(words(example))
    held_out = (*task.validation, *task.test)
    right = 0
    for example in held_out:
        score = {
            label: sum(math.log((counts[word] + 1) / 702) for word in words(example))
            for label, counts in seen.items()
        }
        right += max(score, key=score.__getitem__) == example.label
    # Chance is 100 of 300, with a standard deviation of √(300 · 1/3 · 2/3) = 8.2.
    assert right <= 100 + 3 * 8.2


def test_it_takes_no_columns():
    with pytest.raises(TaskError, match="mini-nli brings its own parts; leave out text and label"):
        load_task("mini-nli", text="a", label="b")


def test_its_data_are_those_that_runs_on_disk_were_made_of():
    # Written down before LabeledText had its American name: older runs resume by it.
    recorded = "b571f4961edbe8ee833a477dd0c3f74ec61785a2ede55d904c93dc3b1da069dd"
    assert data_fingerprint(load_task("mini-nli")) == recorded
