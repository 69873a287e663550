"""mini-rating: its sizes, that its texts say what their labels say, and that prices mislead."""

from __future__ import annotations

import re
from collections import Counter

from lora_lab.tasks import load_task

# What a sentence says of each rating, by other patterns than those it was written with.
SAID = {
    "low": r"low (customer )?rating|(rating of |rated )1 out of 5",
    "high": r"high (customer )?rating|(rating of |rated )5 out of 5",
}


def test_each_text_says_its_label_and_no_other():
    task = load_task("mini-rating")
    for example in (*task.train, *task.validation, *task.test):
        found = [label for label, said in SAID.items() if re.search(said, example.text)]
        assert found == [example.label], example.text


def test_parts_are_balanced_apart_and_the_same_on_every_call():
    task = load_task("mini-rating")
    assert [len(part) for part in (task.train, task.validation, task.test)] == [1500, 150, 150]
    for part in (task.train, task.validation, task.test):
        assert len(set(Counter(e.label for e in part).values())) == 1
    texts = [{e.text for e in part} for part in (task.train, task.validation, task.test)]
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]
    assert task.train == load_task("mini-rating").train
    assert task.train != load_task("mini-rating", seed=1).train
    assert task.synthetic


def test_a_single_word_does_not_tell():
    # The best of all rules "this word is there": it must leave many texts wrong.
    task = load_task("mini-rating")
    words = Counter(
        (word, e.label) for e in task.train for word in set(re.findall(r"\w+", e.text.lower()))
    )
    counts = Counter({w: sum(words[w, label] for label in SAID) for w, _ in words})
    right = (
        max(words[word, label] for label in SAID) + (len(task.train) - there) / 2
        for word, there in counts.items()
    )
    assert max(right) / len(task.train) < 0.7
