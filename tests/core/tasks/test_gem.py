"""GEM's rows: E2E, WebNLG and DART with a target to learn and references to be scored by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import load_task

MR = "name[Alimentum], area[city centre], familyFriendly[no]"
GEM: dict[str, tuple[dict[str, Any], str, str]] = {
    "E2E": ({"meaning_representation": MR}, MR, "nist"),
    "WebNLG": (
        {
            "input": ["Aarhus | leaderName | Jacob_Bundsgaard", "Aarhus | country | Denmark"],
            "category": "City",
            "webnlg_id": "train/City/2/Id1",
        },
        "Aarhus : leaderName : Jacob_Bundsgaard | Aarhus : country : Denmark",
        "ter",
    ),
    "DART": (
        {
            "dart_id": 0,
            "tripleset": [["Mars Hill College", "JOINED", "1973"]],
            "subtree_was_extended": False,
            "target_sources": ["WikiSQL_decl_sents"],
        },
        "Mars Hill College : joined : 1973",
        "ter",
    ),
}


def written(path: Path, rows: list[dict[str, Any]]) -> None:
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", GEM)
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_gems_rows_learn_the_target_and_are_scored_by_all_references(
    tmp_path: Path, name: str, form: str
) -> None:
    own, prompt, metric = GEM[name]

    def rows(part: str, *texts: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "gem_id": f"{name}-{part}-{number}",
                "gem_parent_id": f"{name}-{part}-{number}",
                **own,
                "target": right[0],
                "references": right if part != "train" else [],
            }
            for number, right in enumerate(texts)
        ]

    parts = {
        "train": rows("train", ["It is one."], ["It is two."], ["It is two."]),
        "validation": rows("validation", ["First of it.", "Second of it.", "First of it."]),
        "test": rows("test", ["Only one."]),
    }
    for part, found in parts.items():
        written(tmp_path / f"{part}.{form}", found)
    with pytest.warns(UserWarning, match="are in the training rows too"):
        task = load_task(tmp_path)
    assert f"read as GEM's {name}" in task.describe()
    assert [(row.prompt, row.completion) for row in task.train] == [
        (prompt, "It is one."),
        (prompt, "It is two."),
    ]
    (held_out,) = task.validation
    assert held_out.references == ("First of it.", "Second of it.")
    (test,) = task.test
    assert (test.prompt, test.references) == (prompt, ("Only one.",))
    assert metric in [each.name for each in task.metrics]


def test_gems_webnlg_has_seen_and_unseen_categories(tmp_path: Path) -> None:
    own = GEM["WebNLG"][0] | {"target": "A text.", "references": ["A text."]}
    for part, categories in (("train", ["City", "Film"]), ("test", ["City", "Film", "Athlete"])):
        rows = [{**own, "category": each, "target": each} for each in categories]
        written(tmp_path / f"{part}.json", [{**row, "input": ["a | b | c"]} for row in rows])
    with pytest.warns(UserWarning, match="are in the training rows too"):
        task = load_task(tmp_path, validation="test_unseen")
    assert len(task.validation) == 1
    wrong = {**own, "input": ["no triple"]}
    written(tmp_path / "train.json", [own, wrong])
    with pytest.raises(TaskError, match=r"row 2 has in column 'input' .*no list of \[subject"):
        load_task(tmp_path / "train.json")
