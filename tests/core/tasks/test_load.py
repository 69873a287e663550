"""Tasks: the embedded one, files and hub data sets, scoring, and what bad data gets."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import Example, GenerationTask, load_task, tables
from lora_lab.tasks.embedded.grammar import sentence
from lora_lab.tasks.embedded.world import ATTRIBUTES, World

E2E = Path(__file__).parents[3].parent / "shared" / "data" / "e2e"


# ---------------------------------------------------------------- mini-e2e


@pytest.fixture(scope="module")
def mini():
    return load_task("mini-e2e")


def _values(prompt: str) -> dict[str, str]:
    return dict(re.findall(r"([a-zA-Z ]+?)\[([^\]]*)\](?:, |$)", prompt))


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
    start = time.perf_counter()
    load_task("mini-e2e", seed=2)
    assert time.perf_counter() - start < 2


def test_no_meaning_and_no_restaurant_is_in_two_parts(mini):
    parts = (mini.train, mini.validation, mini.test)
    for one, other in itertools.combinations(parts, 2):
        assert {_values(e.prompt)["name"] for e in one}.isdisjoint(
            _values(e.prompt)["name"] for e in other
        )
    prompts = [e.prompt for part in parts for e in part]
    assert len(set(prompts)) == len(prompts)


def test_meanings_are_in_the_format_of_e2e(mini):
    order = ["name", *ATTRIBUTES, "near"]
    for example in mini.train:
        values = _values(example.prompt)
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
        values = _values(example.prompt)
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
        re.sub(r"\W+", " ", e.completion.replace(_values(e.prompt)["name"], "NAME"))
        .strip()
        .split(" ", 3)[0]
        for e in mini.train
    )
    assert len(shapes) >= 4
    assert max(shapes.values()) < 0.8 * len(mini.train)


def test_references_agree_with_each_other_and_not_with_another_meaning(mini):
    held_out = mini.validation
    assert len({_values(e.prompt)["name"] for e in held_out[:16]}) > 8  # a fair sample
    own = [e.references[0] for e in held_out]
    others = [Example(e.prompt, e.references[1], e.references[1:]) for e in held_out]
    assert mini.score(own, others)["bleu"] > 30
    assert mini.score(own[8:] + own[:8], others)["bleu"] < 25


# ---------------------------------------------------------------- scoring


def _bleu(predictions: list[str], references: list[list[str]]) -> float:
    """Corpus BLEU-4 by Papineni et al. (2002) on whitespace tokens; closest reference length."""
    matched, total = [0] * 4, [0] * 4
    length = closest = 0
    for text, refs in zip(predictions, references, strict=True):
        tokens, ref_tokens = text.split(), [r.split() for r in refs]
        length += len(tokens)
        closest += min((abs(len(r) - len(tokens)), len(r)) for r in ref_tokens)[1]
        for n in range(1, 5):
            grams = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
            allowed: Counter = Counter()
            for r in ref_tokens:
                allowed |= Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1))
            matched[n - 1] += sum((grams & allowed).values())
            total[n - 1] += sum(grams.values())
    precision = sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / 4
    return 100 * min(1.0, math.exp(1 - closest / length)) * math.exp(precision)


def test_bleu_with_ragged_references_by_the_formula():
    references = [
        ["the cat sat on the mat", "a cat was sitting on the mat today", "there is a cat there"],
        ["it rains in the city centre"],
        ["the pub by the river is cheap and friendly", "a cheap and friendly pub by the river"],
    ]
    predictions = [
        "a cat sat on the mat today",
        "it rains in the city",
        "the cheap pub by the river is friendly",
    ]
    examples = [Example("p", r[0], tuple(r)) for r in references]
    task = GenerationTask("t", False, (), ())
    score = task.score(predictions, examples)
    assert score == {"bleu": pytest.approx(_bleu(predictions, references), rel=1e-9)}
    assert 0 < score["bleu"] < 100


@pytest.mark.parametrize(("predictions", "count"), [([], 0), (["a"], 2)])
def test_score_needs_one_prediction_an_example(predictions, count):
    with pytest.raises(TaskError, match=f"{len(predictions)} predictions for {count} examples"):
        GenerationTask("t", False, (), ()).score(predictions, [Example("p", "c", ("c",))] * count)


# ---------------------------------------------------------------- files

ROWS = [
    {"mr": "name[A], area[x]", "ref": 'He said "hi", then left.', "n": 1},
    {"mr": "name[B]", "ref": "Café B — 007.", "n": 2},
    {"mr": "name[A], area[x]", "ref": "NA", "n": 3},
    {"mr": "name[C]", "ref": "<b>C</b> {x} %s", "n": 4},
]


def _write(path: Path, rows: list[dict]) -> Path:
    import pandas

    frame = pandas.DataFrame(rows)
    if path.name.endswith(".csv"):
        frame.to_csv(path, index=False)
    elif path.name.endswith(".tsv"):
        lines = ["\t".join(frame.columns), *("\t".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.name.endswith(".parquet"):
        frame.to_parquet(path)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if path.name.endswith(".gz"):
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.json", "d.jsonl.gz", "d.parquet"])
def test_every_format_gives_the_same_text(tmp_path, name):
    path = _write(tmp_path / name, ROWS)
    held_out = _write(tmp_path / f"v{name}", [{"mr": "name[V]", "ref": "V."}])
    task = load_task(path, prompt="mr", completion="ref", validation=held_out)
    assert [(e.prompt, e.completion) for e in task.train] == [(r["mr"], r["ref"]) for r in ROWS]
    assert task.name == name
    assert not task.synthetic
    assert "synthetic" not in task.describe()


def test_rows_of_one_prompt_become_references(tmp_path):
    path = _write(tmp_path / "train.csv", [{"mr": "name[T]", "ref": "T."}])
    held_out = _write(tmp_path / "held.csv", [*ROWS, ROWS[1]])
    task = load_task(path, prompt="mr", completion="ref", validation=held_out, test=held_out)
    expected = (
        Example("name[A], area[x]", ROWS[0]["ref"], (ROWS[0]["ref"], "NA")),
        Example("name[B]", ROWS[1]["ref"], (ROWS[1]["ref"],)),
        Example("name[C]", ROWS[3]["ref"], (ROWS[3]["ref"],)),
    )
    assert sorted(task.validation, key=lambda e: e.prompt) == list(expected)
    assert task.test == expected


def test_held_out_by_whole_prompts_and_seed(tmp_path):
    rows = [{"mr": f"name[{i // 3}]", "ref": f"text {i}."} for i in range(90)]
    path = _write(tmp_path / "train.csv", rows)
    task = load_task(path, prompt="mr", completion="ref")
    assert len(task.validation) == 3  # one in ten of 30 prompts
    assert all(len(e.references) == 3 for e in task.validation)
    assert len(task.train) == 90 - 9
    assert {e.prompt for e in task.train}.isdisjoint(e.prompt for e in task.validation)
    assert load_task(path, prompt="mr", completion="ref") == task
    other = load_task(path, prompt="mr", completion="ref", seed=1)
    assert {e.prompt for e in other.validation} != {e.prompt for e in task.validation}


def test_numbers_are_text(tmp_path):
    path = _write(tmp_path / "d.jsonl", ROWS)
    task = load_task(path, prompt="n", completion="ref")
    assert {e.prompt for e in (*task.train, *task.validation)} == {"1", "2", "3", "4"}


def test_known_prompts_in_the_held_out_part_are_told(tmp_path):
    path = _write(tmp_path / "d.csv", ROWS)
    other = _write(tmp_path / "v.csv", [ROWS[1], {"mr": "name[new]", "ref": "New."}])
    with pytest.warns(UserWarning, match="1 validation prompts are in the training rows too"):
        load_task(path, prompt="mr", completion="ref", validation=other)


def test_rows_without_text_are_left_out_and_counted(tmp_path):
    rows = [*ROWS, {"mr": "name[D]", "ref": ""}, {"mr": "  ", "ref": "x"}]
    path = _write(tmp_path / "d.csv", rows)
    with pytest.warns(UserWarning, match="2 of 6 rows without 'mr' or 'ref' are left out"):
        task = load_task(path, prompt="mr", completion="ref")
    assert len(task.train) + sum(len(e.references) for e in task.validation) == 4


def test_reading_leaves_no_cache_and_prints_nothing(tmp_path, monkeypatch, capfd):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = _write(tmp_path / "d.csv", ROWS)
    load_task(path, prompt="mr", completion="ref")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not (tmp_path / "cache").exists()


# ---------------------------------------------------------------- bad data


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"", "is empty"),
        ("d.csv", b"mr,ref\n", "has no rows"),
        ("d.csv", b'mr,ref\na,"b\nc,d,e', "cannot be read as csv: .*EOF inside string"),
        ("d.csv", "mr,ref\nCafé,x\n".encode("latin-1"), "cannot be read as csv: 'utf-8'"),
        ("d.csv", b"mr,ref\na,\n,b\n", "no row has both 'mr' and 'ref'"),
        ("d.csv", b"mr,ref\na,b\na,c\n", "one prompt only.*give validation="),
        ("d.jsonl", b'{"mr": "a", "ref": "b"}\n{"mr":', "cannot be read as jsonl"),
        ("d.jsonl", b'{"mr": ["a"], "ref": "b"}\n', "'mr' holds lists, not text"),
        ("d.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        ("d.csv", b"meaning,text\na,b\n", "no column 'mr'; its columns are meaning, text"),
        ("d.xlsx", b"PK", "not of a known format; use .csv, .tsv"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_files_get_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message) as error:
        load_task(tmp_path / name, prompt="mr", completion="ref")
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value) or name in str(error.value)


def test_a_file_that_is_not_there():
    with pytest.raises(TaskError, match=r"there is no file nowhere\.csv"):
        load_task("nowhere.csv", prompt="mr", completion="ref")


def test_columns_must_be_named_and_are_listed(tmp_path):
    path = _write(tmp_path / "d.csv", ROWS)
    with pytest.raises(TaskError, match=r"name the columns.*its columns are mr, ref, n"):
        load_task(path)


def test_an_unknown_task_proposes_the_near_one():
    with pytest.raises(TaskError, match="no task is called 'mini-e2'; did you mean 'mini-e2e'"):
        load_task("mini-e2")


def test_mini_e2e_takes_no_columns():
    with pytest.raises(TaskError, match="mini-e2e brings its own parts; leave out prompt"):
        load_task("mini-e2e", prompt="mr")


# ---------------------------------------------------------------- the hub


def test_a_hub_data_set_by_its_splits(monkeypatch):
    import datasets

    splits = {
        "train": datasets.Dataset.from_list([{"mr": "a", "ref": "A."}, {"mr": "b", "ref": "B."}]),
        "validation": datasets.Dataset.from_list(
            [{"mr": "c", "ref": "C."}, {"mr": "c", "ref": "See."}]
        ),
    }
    monkeypatch.setattr(tables, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda hub_id: datasets.DatasetDict(splits))
    task = load_task("owner/name", prompt="mr", completion="ref")
    assert (task.name, task.synthetic, task.test) == ("owner/name", False, ())
    assert [e.completion for e in task.train] == ["A.", "B."]
    assert task.validation == (Example("c", "C.", ("C.", "See.")),)
    with pytest.raises(TaskError, match=r"owner/name \(train\) has no column 'x'; its .* mr, ref"):
        load_task("owner/name", prompt="x", completion="ref")
    del splits["train"]
    with pytest.raises(TaskError, match="has no train split; it has validation"):
        load_task("owner/name", prompt="mr", completion="ref")


def test_a_hub_that_cannot_be_reached_is_said_at_once(monkeypatch):
    monkeypatch.setattr(tables, "hub_reachable", lambda: False)
    start = time.perf_counter()
    with pytest.raises(TaskError, match=r"cannot be reached; set HF_HUB_OFFLINE=1.*local file"):
        load_task("owner/name", prompt="mr", completion="ref")
    assert time.perf_counter() - start < 5


# ---------------------------------------------------------------- real data

_FIRST_OF_THE_FILE = "name[Alimentum], area[city centre], familyFriendly[no]"


@pytest.mark.skipif(not E2E.is_dir(), reason="the real E2E files are not beside the repository")
def test_the_real_e2e_goes_the_same_way():
    """Sizes from Novikova et al. (2017) and Dušek et al. (2018, table 1)."""
    task = load_task(
        E2E / "trainset.csv",
        prompt="mr",
        completion="ref",
        validation=E2E / "devset.csv",
        test=E2E / "testset_w_refs.csv",
    )
    assert len(task.train) == 42_061
    assert (len(task.validation), len(task.test)) == (547, 630)
    assert len({e.prompt for e in task.train}) == 4_862
    assert sum(len(e.references) for e in task.test) <= 4_693
    first = next(e for e in task.validation if e.prompt == _FIRST_OF_THE_FILE)
    assert len(first.references) == 6
    # The file is sorted by restaurant; the part that a run scores is a sample.
    assert len({_values(e.prompt)["name"] for e in task.validation[:16]}) > 4
