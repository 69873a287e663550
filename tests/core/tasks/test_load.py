"""Tasks from files and hub data sets, and what bad data gets."""

from __future__ import annotations

import copy
import gzip
import json
import pickle
import time
from pathlib import Path

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import Example, load_task, tables
from tests.helpers.meanings import values_of

E2E = Path(__file__).parents[3].parent / "shared" / "data" / "e2e"

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


def test_training_examples_are_as_a_tuple_of_them():
    rows = [(f"q{i}", f"a{i}") for i in range(9)]
    found = load_task(rows, validation=[("q", "a")]).train
    same = tuple(Example(p, c, (c,)) for p, c in rows)
    assert found == same
    assert same == found
    assert found != same[1:]
    assert found == load_task(rows, validation=[("p", "a")]).train != list(same)
    assert (len(found), found[2], found[-1], found[1:4]) == (9, same[2], same[-1], same[1:4])
    assert (hash(found), repr(found), list(found)) == (hash(same), repr(same), list(same))
    assert (found + same, same + found) == (same + same, same + same)
    assert pickle.loads(pickle.dumps(found)) == copy.deepcopy(found) == same
    with pytest.raises(IndexError):
        found[9]


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
        ("d.csv", b'mr,ref\na,"b\nc,d,e', r"row 1 \(line 2\) has a quote that is not closed"),
        (
            "d.csv",
            "mr,ref\nCafé,x\n".encode("latin-1"),
            "d.csv is not utf-8: line 2.*encoding='cp1252'",
        ),
        ("d.csv", b"mr,ref\na,\n,b\n", "no row has both 'mr' and 'ref'"),
        ("d.csv", b"mr,ref\na,b\na,c\n", "one prompt only.*give validation="),
        ("d.jsonl", b'{"mr": "a", "ref": "b"}\n{"mr":', "cannot be read as jsonl"),
        ("d.jsonl", b'{"mr": ["a"], "ref": "b"}\n', "'mr' holds lists, not text"),
        ("d.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        ("d.csv", b"meaning,text\na,b\n", "no column 'mr'; its columns are meaning, text"),
        ("d.docx", b"PK", "not of a known format; use .csv, .tsv"),
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


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("prompt", ["mr"], r"prompt is \['mr'\]; it is the name of one column, or its number"),
        ("template", 3, "template is 3; use 'chat'"),
        ("encoding", 3, "encoding is 3; it must be a text"),
        ("sep", 3, "sep is 3; it must be a text"),
    ],
)
def test_options_of_a_type_that_cannot_be(tmp_path, option, value, message):
    path = _write(tmp_path / "rows.csv", ROWS)
    with pytest.raises(TaskError, match=message):
        load_task(path, **{"prompt": "mr", "completion": "ref", option: value})


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
    monkeypatch.setattr(tables, "load_hub", lambda *_: datasets.DatasetDict(splits))
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
    assert len({values_of(e.prompt)["name"] for e in task.validation[:16]}) > 4
