"""Patterns match as PEFT's `re.match(rf"(.*\\.)?({key})$", name)` does, and none takes long."""

import random
import re

import pytest

from lora_lab.checkpoint.patterns import MOST_STEPS, Patterns
from lora_lab.errors import AdapterError

NAMES = [
    *(f"model.layers.{n}.{leaf}" for n in (0, 1, 11) for leaf in ("q_proj", "mlp.up_proj", "v")),
    *("lm_head", "q", "a+b.q", "x.a", "aaa.b", "model.q_proj.weight", "1.2.33", "é.ß"),
]
KEYS = [
    *("q_proj", r"layers\.1\..*", r"^model\.layers\.1\.v", "layers.1.q_proj", r"layers\.\d+\.v"),
    *(
        r"(q|v)(_proj)?",
        r".*\.(?:q_proj|up_proj)",
        r"model\..*[^q]_proj",
        r"a\+b\.q",
        "a+b",
        r"\w+",
    ),
    *(r"[a-c]{2,3}\.b", r"a*\.b", r"(a|aa)+\.b", r"\d+(\.\d+)*", r"[\d.]+", r"(ab?)*", "^q$", "é"),
    *(r"layers\.(0|1)\.(?P<leaf>q_proj|v)", r".*?up_proj", r"\Aq\Z", r"[^\W\d]+", r"\S+", "", "^"),
]


def theirs(key, name):
    return re.match(rf"(.*\.)?({key})$", name) is not None


@pytest.mark.parametrize("key", KEYS)
def test_a_pattern_matches_what_peft_matches(key):
    found = [Patterns("rank_pattern", {key: 2}).lookup(name, 1) == 2 for name in NAMES]
    assert found == [theirs(key, name) for name in NAMES]


def test_random_patterns_match_what_peft_matches():
    rng = random.Random(0)
    atoms = ["q", "a", r"\.", r"\d", ".", "[a-q]", "[^.]", r"\w", "_proj", "model", "1"]

    def some(depth=0):
        kind = rng.random()
        if depth > 1 or kind < 0.5:
            return rng.choice(atoms)
        if kind < 0.8:
            return some(depth + 1) + some(depth + 1)
        if kind < 0.9:
            return f"(?:{some(depth + 1)}|{some(depth + 1)})"
        return f"({some(depth + 1)}){rng.choice(['*', '+', '?', '{1,2}', '*?', '{2}'])}"

    matches = 0
    for _ in range(3_000):
        key, name = "".join(some() for _ in range(rng.randint(1, 5))), rng.choice(NAMES)
        matches += theirs(key, name)
        assert (Patterns("rank_pattern", {key: 2}).lookup(name, 1) == 2) == theirs(key, name), key
    assert matches > 100


def test_the_first_that_matches_wins_whatever_its_kind():
    keys = {"v": 1, r"layers\.1\..*": 2, "q_proj": 3, r"^model\.layers\.1\.v": 4, ".*": 5}
    patterns = Patterns("rank_pattern", keys)
    for name in NAMES:
        expected = next((r for key, r in keys.items() if theirs(key, name)), 9)
        assert patterns.lookup(name, 9) == expected


@pytest.mark.parametrize(
    "bomb",
    [
        *("(a+)+$", "((a*)*)*b", "(.*)+x", "(a|aa)+b", ".*" * 90 + "x", "a{999999999}b"),
        *("(((a+)+)+)+b", "(?:a?){400}a{400}b"),
    ],
)
def test_no_pattern_takes_long(bomb):
    patterns = Patterns("rank_pattern", {bomb: 2})
    assert patterns.lookup("a" * 500 + "!", 1) == 1
    assert 0 < patterns.steps < 2_000  # a backtracking matcher takes 2^500 for the first of them


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("(q", "is not a regular expression"),
        ("(?=q)q", "uses assert, which is not read"),
        (r"(q)\1", "uses groupref, which is not read"),
        ("(?i)q", "sets flags"),
        ("a(?i:q)", "is not a regular expression (flags within it)"),
        (r"\bq", "uses at_boundary, which is not read"),
        ("(q|" * 2_000, "makes the patterns too long"),
    ],
)
def test_what_is_not_read_is_said_in_one_line(key, message):
    with pytest.raises(AdapterError) as caught:
        Patterns("alpha_pattern", {key: 2.0})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_many_hard_patterns_together_are_refused_within_a_budget():
    patterns = Patterns("rank_pattern", {f"(.*[a-z]+)*{n}x": n for n in range(3_000)})
    with pytest.raises(AdapterError, match="takes too long to match"):
        [patterns.lookup(f"{name * 5}{n}", 1) for n in range(1_000) for name in NAMES]
    assert patterns.steps == MOST_STEPS + 1
