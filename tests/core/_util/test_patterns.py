"""Patterns match as PEFT's `re.match(rf"(.*\\.)?({key})$", name)` does, and none takes long."""

import random
import re

import pytest

from lora_lab._util.patterns import Expression, Patterns
from lora_lab.errors import AdapterError, ConfigError

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
    *(r"^(?!.*mlp).*(?:q_proj|up_proj)$", r"(?=.*layers)(?!.*\.0\.).*_proj", r".*(?<!q)_proj"),
    *(
        r".*(?<=\.mlp)\.up.*",
        r"\bq\b",
        r"\w+\Bq.*",
        "(?i:Q)_proj",
        "(?i:É).*",
    ),
    *(
        "(?!)",
        "q(?!_proj)",
        "(?-i:Q)_proj|(?i:LM_)head",
    ),
    *(r"layers\.(0|1)\.(?P<leaf>q_proj|v)", r".*?up_proj", r"\Aq\Z", r"[^\W\d]+", r"\S+", "", "^"),
]


def theirs(key, name):
    return re.match(rf"(.*\.)?({key})$", name) is not None


@pytest.mark.parametrize("key", KEYS)
def test_a_pattern_matches_what_peft_matches(key):
    found = [
        Patterns("rank_pattern", {key: 2}, AdapterError).lookup(name, 1) == 2 for name in NAMES
    ]
    assert found == [theirs(key, name) for name in NAMES]


@pytest.mark.parametrize(
    "text",
    [*KEYS, "(?i).*Q_PROJ", "(?i)É.*", "(?s).*q", r"(?a)[\w.]+", "(?x) .*  q # any", "a\nb$"],
)
def test_an_expression_matches_all_of_what_re_matches(text):
    expression = Expression("target_modules", text, ConfigError)
    names = [*NAMES, "a\nb", "a\nb\n", "q\n", ""]
    assert [expression.fullmatch(name) for name in names] == [
        re.fullmatch(text, name) is not None for name in names
    ]


def test_random_patterns_match_what_peft_matches():
    rng = random.Random(0)
    atoms = ["q", "a", r"\.", r"\d", ".", "[a-q]", "[^.]", r"\w", "_proj", "model", "1", r"\b"]

    def some(depth=0):
        kind = rng.random()
        if depth > 1 or kind < 0.5:
            return rng.choice(atoms)
        if kind < 0.8:
            return some(depth + 1) + some(depth + 1)
        if kind < 0.9:
            return f"(?:{some(depth + 1)}|{some(depth + 1)})"
        if kind < 0.93:
            return f"({rng.choice(['?=', '?!', '?i:', '?<!q)(', '?<=[a-z.])('])}{some(depth + 1)})"
        return f"({some(depth + 1)}){rng.choice(['*', '+', '?', '{1,2}', '*?', '{2}'])}"

    matches = 0
    for _ in range(1_500):
        key, name = "".join(some() for _ in range(rng.randint(1, 5))), rng.choice(NAMES)
        matches += theirs(key, name)
        found = Patterns("rank_pattern", {key: 2}, AdapterError).lookup(name, 1) == 2
        assert found == theirs(key, name), key
        whole = re.fullmatch(key, name) is not None
        assert Expression("target_modules", key, ConfigError).fullmatch(name) == whole, key
    assert matches > 50


def test_the_first_that_matches_wins_whatever_its_kind():
    keys = {"v": 1, r"layers\.1\..*": 2, "q_proj": 3, r"^model\.layers\.1\.v": 4, ".*": 5}
    patterns = Patterns("rank_pattern", keys, AdapterError)
    for name in NAMES:
        expected = next((r for key, r in keys.items() if theirs(key, name)), 9)
        assert patterns.lookup(name, 9) == expected


@pytest.mark.parametrize(
    "bomb",
    [
        *("(a+)+$", "((a*)*)*b", "(.*)+x", "(a|aa)+b", ".*" * 90 + "x", "a{999999999}b"),
        *("(((a+)+)+)+b", "(?:a?){400}a{400}b", "((?!b)a*)*b", "(?=(a+)+b)a", r"(\ba*)*b"),
        *("((?i:A)+)+b", "(?:(?:a{0,50}){0,50}){0,50}b"),
    ],
)
def test_no_pattern_takes_long(bomb):
    patterns = Patterns("rank_pattern", {bomb: 2}, AdapterError)
    assert patterns.lookup("a" * 500 + "!", 1) == 1
    assert (
        0 < patterns.budget.steps < 2_000
    )  # a backtracking matcher takes 2^500 for the first of them


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("(q", "is not a regular expression"),
        ("(?>q)", "uses atomic_group, which is not read"),
        ("(q)?(?(1)a|b)", "uses groupref_exists, which is not read"),
        ("(?<=q*)a", "is not a regular expression (look-behind of no fixed width)"),
        (r"(q)\1", "uses groupref, which is not read"),
        ("(?m)^q", "sets flags"),
        ("a(?i)q", "is not a regular expression (global flags"),
        ("(q|" * 2_000, "is not a regular expression (maximum recursion depth"),
        ("q?" * 60_000, "makes the patterns too long"),
    ],
)
def test_what_is_not_read_is_said_in_one_line(key, message):
    with pytest.raises(AdapterError) as caught:
        Patterns("alpha_pattern", {key: 2.0}, AdapterError)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_expression_has_its_callers_error_and_field():
    with pytest.raises(ConfigError, match=r"^exclude_modules: '\*' is not a regular expression"):
        Expression("exclude_modules", "*", ConfigError)


def test_all_patterns_that_match_are_told_apart_from_the_first():
    patterns = Patterns("rank_pattern", {".*": 1, "q": 2, "^q": 3, "x.*": 4, "b": 5}, AdapterError)
    assert patterns.lookup_any(["a.q", "q"], 9) == 1
    assert patterns.matching(["a.q", "q"]) == {0, 1, 2}


def test_many_hard_patterns_together_are_refused_within_a_budget(monkeypatch):
    monkeypatch.setattr("lora_lab._util.patterns.MOST_STEPS", 50_000)
    patterns = Patterns("rank_pattern", {f"(.*[a-z]+)*{n}x": n for n in range(3_000)}, AdapterError)
    with pytest.raises(AdapterError, match="takes too long to match"):
        [patterns.lookup(f"{name * 5}{n}", 1) for n in range(1_000) for name in NAMES]
    assert 50_000 < patterns.budget.steps < 50_100


def test_paths_with_bare_dots_match_what_peft_matches():
    rng = random.Random(1)
    pieces = ["q", "a", "b", ".", r"\.", r"\\", r"\-", "-", "1", "é"]
    names = ["".join(rng.choices("qab.-1é\\", k=rng.randint(1, 5))) for _ in range(60)]
    for _ in range(400):
        key = rng.choice(["", "^"]) + "".join(rng.choices(pieces, k=rng.randint(1, 4)))
        patterns = Patterns("rank_pattern", {key: 2}, AdapterError)
        for name in names:
            assert (patterns.lookup(name, 1) == 2) == theirs(key, name), (key, name)
        assert patterns.matching(names) == ({0} if any(theirs(key, n) for n in names) else set())


def test_of_many_paths_the_first_that_matches_wins():
    names = [f"model.layers.{n}.self_attn.{leaf}" for n in range(300) for leaf in ("q", "v_proj")]
    keys = {name: number for number, name in enumerate(names)}
    patterns = Patterns("rank_pattern", {"model.layers.7.self.attn.q": -1, **keys}, AdapterError)
    found = [patterns.lookup(name, -2) for name in names]
    assert found == [-1 if name == "model.layers.7.self_attn.q" else keys[name] for name in names]
    assert patterns.matching(names) == {*range(len(names) + 1)}


def test_paths_with_dots_in_ever_other_places_are_bounded():
    rng = random.Random(0)
    keys = {"".join(rng.choices("a.", k=40)): 1 for _ in range(3000)}
    patterns = Patterns("rank_pattern", keys, AdapterError)
    with pytest.raises(AdapterError, match="rank_pattern takes too long to match; escape the dots"):
        patterns.matching([f"{n:03}" + "b" * 37 for n in range(1000)])
