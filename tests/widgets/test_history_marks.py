"""The runs' list: names, notes and stars; in what runs differ; whose score is whose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_lab.runs.marks import Marks, read_marks
from tests.widgets.test_history_panel import LORA, Desk, write_run


def rows(desk: Desk) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in desk.panel.form["rows"]}


def test_a_run_gets_a_star_a_name_and_a_note(tmp_path: Path) -> None:
    run = write_run(tmp_path, "20260101-000000-aaaa")
    desk = Desk(tmp_path).opened()
    desk.send(type="mark", id=run.name, value={"starred": True})
    desk.send(type="mark", id=run.name, value={"title": "the long one", "note": "a\nb"})
    desk.settle()
    assert read_marks(run) == Marks("the long one", "a\nb", True)
    shown = rows(desk)[run.name]
    assert (shown["title"], shown["starred"]) == ("the long one", True)
    assert shown["label"] == "r=4 · lr 0.001 · seed 0", "its settings stay on show"
    desk.send(type="show", id=run.name, value=True)
    desk.settle()
    assert (desk.panel.details["title"], desk.panel.details["note"]) == ("the long one", "a\nb")
    assert desk.panel.details["label"].startswith("the long one · r=4 · lr 0.001")
    desk.send(type="pick", id=run.name, value=True)
    desk.settle()
    (compared,) = desk.panel.compared["rows"]
    assert compared["label"] == desk.panel.details["label"], "it has its name there too"


@pytest.mark.parametrize(
    ("id_", "value", "words"),
    [
        ("nobody", {"starred": True}, "is not on the list"),
        ("20260101-000000-aaaa", {"title": "a" * 201}, "the title has 201 characters"),
    ],
)
def test_what_cannot_be_kept_is_said(tmp_path: Path, id_: str, value: Any, words: str) -> None:
    run = write_run(tmp_path, "20260101-000000-aaaa")
    desk = Desk(tmp_path).opened()
    desk.send(type="mark", id=id_, value=value)
    assert words in desk.panel.problem["message"]
    assert read_marks(run) == Marks()
    desk.send(type="mark", id=run.name, value="nonsense")
    assert desk.panel.problem is None


def test_a_score_of_the_base_is_called_the_bases(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", "stopped")
    summary = json.loads((run / "summary.json").read_text())
    summary["metrics"] = {"loss_before": 4.0, "bleu_before": 3.1, "bleu_after": 38.2}
    (run / "summary.json").write_text(json.dumps(summary))
    desk = Desk(tmp_path).opened()
    words = "BLEU (cased) 3.10 → 38.2 · base model: held-out loss 4.00"
    assert rows(desk)["a"]["metrics"] == words
    summary["metrics"] = {"loss_before": 4.0, "bleu_before": 3.1}
    (run / "summary.json").write_text(json.dumps(summary))
    desk.send(type="refresh")
    desk.settle()
    words = "base model: held-out loss 4.00 · BLEU (cased) 3.10"
    assert rows(desk)["a"]["metrics"] == words, "that it is the base's is said once"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training": {"max_steps": 6, "learning_rate": 1e-3, "seed": 0, "save_steps": 3}}, "save"),
        ({"model": {"name": "a-model", "dtype": "bfloat16"}}, "dtype = bfloat16"),
        ({"task": {"name": "a-task", "framing": "chat"}}, "framing of prompts = chat"),
        ({"start_from": {"run": "x", "step": 3}}, "from run x, step 3"),
        ({"fingerprints": {"base": "b" * 64}}, "base's weights = bbbbbb"),
    ],
)
def test_no_two_runs_that_differ_are_shown_with_the_same_words(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", **change)
    write_run(tmp_path, "c")
    shown = rows(Desk(tmp_path).opened())
    told = {id_: (row["label"], row["what"]) for id_, row in shown.items()}
    assert told["a"] != told["b"]
    assert words in " ".join(told["b"])
    assert told["a"] == told["c"], "they are the same"


def test_a_label_tells_a_run_from_those_of_its_own_model_and_task(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    more = {"start_from": {"run": "a", "step": 3}}
    write_run(tmp_path, "b", **more)
    head = {"configs": [{**LORA, "modules_to_save": ["score"]}]}
    write_run(tmp_path, "c", **head, task={"name": "reviews.csv"})
    shown = rows(Desk(tmp_path).opened())
    assert [" = " in shown[id_]["label"] for id_ in "abc"] == [False, False, False]
    assert len({(row["label"], row["what"]) for row in shown.values()}) == 3
    write_run(tmp_path, "d", **head)
    shown = rows(Desk(tmp_path).opened())
    assert "modules_to_save = score" in shown["d"]["label"]


def test_settings_of_the_picked_runs_are_set_against_each_other(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", training={"max_steps": 6, "learning_rate": 1e-2, "seed": 0})
    desk = Desk(tmp_path).opened()
    desk.send(type="pick", id="a", value=True)
    desk.settle()
    assert desk.panel.compared["differs"] == []
    desk.send(type="pick", id="b", value=True)
    desk.settle()
    assert desk.panel.compared["differs"] == [["learning_rate", ["0.001", "0.01"]]]


def test_only_a_run_that_left_an_adapter_can_be_kept(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    adapter = write_run(tmp_path, "b") / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    desk = Desk(tmp_path).opened()
    kept: list[Any] = []
    desk.keep = kept.append  # type: ignore[attr-defined]
    assert {id_: row["keepable"] for id_, row in rows(desk).items()} == {"a": False, "b": True}
    desk.send(type="keep", id="b")
    assert [record.id for record in kept] == ["b"]
