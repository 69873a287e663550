"""DART's and WebNLG's triples, as the LoRA paper's own converters write them; summaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import load_task

# examples/NLG/data of https://github.com/microsoft/LoRA: the first rows of DART's dev file, and the
# first of WebNLG's.
DART = [
    {
        "tripleset": [
            ["Mars Hill College", "JOINED", "1973"],
            ["Mars Hill College", "LOCATION", "Mars Hill, North Carolina"],
        ],
        "subtree_was_extended": True,
        "annotations": [
            {
                "source": "WikiSQL_decl_sents",
                "text": "A school from Mars Hill, North Carolina, joined in 1973.",
            }
        ],
    },
    {
        "tripleset": [["Newberry College", "NICKNAME", "Wolves"]],
        "subtree_was_extended": False,
        "annotations": [
            {"source": "WikiSQL_decl_sents", "text": "Newberry College's nickname is the wolves."},
            {"source": "x", "text": "They are called the Wolves."},
        ],
    },
]


def entry(number: int, category: str = "Airport", comment: str = "good") -> dict[str, Any]:
    triple = {"object": f"Jacob_{number}", "property": "leaderName", "subject": "Aarhus"}
    return {
        str(number): {
            "category": category,
            "dbpedialinks": [],
            "lexicalisations": [
                {"comment": comment, "lang": "", "lex": f"Aarhus has Jacob {number}."},
                {"comment": "toFix", "lang": "", "lex": "wrong"},
            ],
            "links": [],
            "modifiedtripleset": [triple],
            "originaltriplesets": {"originaltripleset": [[triple]]},
            "shape": "NA",
            "shape_type": "NA",
            "size": "1",
            "xml_id": f"Id{number}",
        }
    }


def dart_context(example: dict[str, Any]) -> str:
    """format_converting_dart.py of microsoft/LoRA (MIT)."""
    temp_triples = ""
    for i, tripleset in enumerate(example["tripleset"]):
        subj, rela, obj = tripleset
        rela = rela.lower()
        if i > 0:
            temp_triples += " | "
        temp_triples += f"{subj} : {rela} : {obj}"
    return temp_triples


@pytest.mark.parametrize("hub", [False, True])
def test_dart_is_written_as_the_papers_code_writes_it(tmp_path: Path, hub: bool) -> None:
    rows = json.loads(json.dumps(DART))
    if hub:  # its annotations are a dict of lists
        for row in rows:
            each = row["annotations"]
            row["annotations"] = {key: [a[key] for a in each] for key in ("source", "text")}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows))
    task = load_task(path, validation=path)
    expected = [(dart_context(r), a["text"]) for r in DART for a in r["annotations"]]
    assert [(e.prompt, e.completion) for e in task.train] == expected
    assert sorted(len(e.references) for e in task.validation) == [1, 2]
    assert [metric.name for metric in task.metrics][:2] == ["bleu_lowercase", "ter"]
    assert "read as DART" in task.describe()


def webnlg(folder: Path) -> Path:
    seen = [entry(i) for i in range(1, 7)]
    test = [entry(1), entry(2, "Athlete"), entry(3, "Food"), entry(4, "Politician")]
    for name, rows in (("train", seen), ("dev", [entry(1, "Monument")]), ("test", test)):
        (folder / f"{name}.json").write_text(json.dumps({"entries": rows}))
    return folder


def test_webnlg_has_seen_and_unseen_domains(tmp_path: Path) -> None:
    folder = webnlg(tmp_path)
    with pytest.warns(UserWarning, match="are in the training rows too"):
        task = load_task(folder)
    first = task.train[0]
    assert (first.prompt, first.completion) == (
        "Aarhus : leaderName : Jacob_1",
        "Aarhus has Jacob 1.",
    )
    assert first.references == ("Aarhus has Jacob 1.",), "what its editors found wrong is none"
    assert len(task.test) == 4
    with pytest.warns(UserWarning, match="are in the training rows too"):
        seen = load_task(folder, test="test_seen")
    with pytest.warns(UserWarning, match="are in the training rows too"):
        unseen = load_task(folder, test="test_unseen")
    assert [len(task.test) for task in (seen, unseen)] == [2, 2]
    assert not set(seen.test) & set(unseen.test)
    assert set(seen.test) | set(unseen.test) == set(task.test)
    with pytest.raises(TaskError, match="no row of WebNLG's unseen categories"):
        load_task(folder, validation="dev_unseen")
    with pytest.raises(TaskError, match="has no split 'test_old'"):
        load_task(folder, test="test_old")


def test_a_row_without_a_good_text_is_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"entries": [entry(1), entry(2, comment="toFix"), entry(3)]}))
    with pytest.warns(UserWarning, match="1 of 3 rows without .*'lexicalisations' are left out"):
        task = load_task(path)
    assert len(task.train) + len(task.validation) == 2


@pytest.mark.parametrize("wrong", [[["a", "b"]], "a : b : c", [1]])
def test_triples_that_are_none_are_refused_by_their_row(tmp_path: Path, wrong: Any) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([*DART, {**DART[0], "tripleset": wrong}]))
    with pytest.raises(TaskError, match=r"row 3 has in column 'tripleset' .*no list of \[subject"):
        load_task(path)


HUB = {"modified_triple_sets": {"mtriple_set": [["a | p | o"]]}, "lex": {"text": ["a is o."]}}


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        ("lexicalisations", ["a text"]),
        ("lexicalisations", "a text"),
        ("lex", ["a text"]),
        ("modified_triple_sets", {"mtriple_set": 5}),
        ("modified_triple_sets", {"mtriple_set": ["a | p | o"]}),
    ],
)
def test_what_is_not_webnlgs_is_refused_by_its_row(tmp_path: Path, column: str, wrong: Any) -> None:
    good = HUB if column in HUB else entry(1)["1"]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (good, {**good, column: wrong})))
    with pytest.raises(TaskError, match=rf"row 2 has in column '{column}' .*, which"):
        load_task(path)


def test_texts_on_which_nobody_commented_are_good(tmp_path: Path) -> None:
    rows = [
        {
            "modified_triple_sets": {"mtriple_set": [[f"a | is | {said}"]]},
            "lex": {"comment": comments, "text": [said]},
        }
        for said, comments in (("none", []), ("empty", [""]), ("good", ["good"]), ("bad", ["bad"]))
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="1 of 4 rows"):
        task = load_task(path)
    kept = {row.completion for row in (*task.train, *task.validation)}
    assert kept == {"none", "empty", "good"}


@pytest.mark.parametrize(
    ("prompt", "completion", "name"),
    [
        ("dialogue", "summary", "SAMSum"),
        ("article", "highlights", "CNN/DailyMail"),
        ("document", "summary", "XSum"),
    ],
)
def test_summaries_are_scored_by_rouge(
    tmp_path: Path, prompt: str, completion: str, name: str
) -> None:
    said = [(f"A: {i}\r\nB: ok", f"A said {i}.") for i in range(9)]
    rows = [{"id": str(i), prompt: p, completion: c} for i, (p, c) in enumerate(said)]
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    with pytest.warns(UserWarning, match="are in the training rows too"):
        task = load_task(tmp_path)
    assert [metric.name for metric in task.metrics] == ["rouge_1", "rouge_2", "rouge_l"]
    assert f"read as {name}" in task.describe()
    assert task.train[3].completion == "A said 3."
