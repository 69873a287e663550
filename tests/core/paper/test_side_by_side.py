"""Runs, sweeps, comparisons and published tables in one table."""

from __future__ import annotations

from pathlib import Path

import pytest

import lora_lab as ll
from lora_lab.analysis import compare_methods
from lora_lab.errors import ConfigError
from lora_lab.paper import TABLES, list_table, side_by_side, table
from tests.core.analysis.test_choices import choices, row
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task

SHORT = {"max_steps": 2, "eval_examples": 2, "save_steps": 0}


def test_everything_that_came_to_a_score_stands_in_one_table(tmp_path: Path) -> None:
    run = ll.train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, **SHORT)
    loss = run.result(60).metrics["loss_after"]
    sweep = ll.sweep(tiny_lm(), tiny_task(), grid={"r": [1, 2]}, output_dir=tmp_path, **SHORT)
    sweep.results(120)
    found = side_by_side("Table 15", run, sweep, choices(row(), row("FT")))
    published = [own for own in TABLES if own.table == "Table 15"]
    assert len(found.rows) == len(published) + 1 + 2 + 2
    first, own = found.rows[0], found.rows[len(published)]
    assert first[:3] == ("Table 15 (published)", published[0].model, published[0].method)
    assert first[5:] == (
        f"{published[0].published:,}",
        ", ".join(f"{name} {score:g}" for name, score in published[0].scores.items()),
    )
    assert own[:5] == (
        f"run {run.id} on letters",
        "tiny-llama",
        "LoRA",
        "r = 4, all-linear",
        "0.002",
    )
    assert f"held-out loss {loss:.3g}"[:16] in own[6]
    # However a run or a sweep is named, it is the same.
    (record,) = [r for r in ll.runs(tmp_path) if not r.sweep]
    for name in (record, run.folder, str(run.folder), [run]):
        assert side_by_side(name).rows == (own,)
    assert side_by_side(sweep.folder).rows == side_by_side(sweep).rows
    compared = side_by_side(compare_methods([record])).rows[0]
    assert compared[0] == "1 run on letters"
    assert list_table("Table 15", compare=run).rows[-1][0] == own[0]


def test_what_is_none_of_these_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="a float is no run, and cannot be set beside others; give a run"
    ):
        side_by_side(1.5)
    with pytest.raises(ConfigError, match=r"there is no run in .*; published tables are Table 2"):
        side_by_side(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="nothing to set side by side"):
        side_by_side([])


def test_every_door_takes_the_same_things(tmp_path: Path) -> None:
    """`side_by_side`, `paper.table(compare=)` and `list_table(compare=)`."""
    run = ll.train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, name="one", **SHORT)
    run.result(60)
    sweep = ll.sweep(tiny_lm(), tiny_task(), grid={"r": [1, 2]}, output_dir=tmp_path, **SHORT)
    sweep.results(120)
    found = choices(row("LoRA", setting="r = 8", trainable=4_000), row("FT"))
    others = table(2, "AdaLoRA"), "AdaLoRA table 2", TABLES[0], [found, run]
    for thing in (run, run.folder, str(run.folder), sweep, sweep.folder, found, *others):
        beside = side_by_side(thing).rows
        assert list_table("Table 15", compare=thing).rows[-len(beside) :] == beside
        assert len(table(15, compare=thing).own) == len(beside)
    (lora, full) = (
        dict(zip(table(4, compare=found).header, own, strict=True))
        for own in table(4, compare=found).own
    )
    assert (lora["method"], lora["parameters"]) == ("LoRA, r = 8", "0.004M")
    assert lora["accuracy (%)"] == found.rows[0].score
    assert full["method"] == "FT"


def test_another_table_says_what_it_is(tmp_path: Path) -> None:
    found = table(3, compare=table(1, "PEFT"))
    assert len(found.own) == 63
    first = dict(zip(found.header, found.own[0], strict=True))
    assert first["model"] == "(PEFT's comparison of methods (2026), table 1)"
    assert first["method"] == "lily, llama-3.2-3B-rank140-mlp-a2-b2-s8.0"
    assert first["parameters"] == "9,485,280"
    beside = side_by_side("PEFT table 1").rows[0]
    assert beside[2:4] == ("lily", "llama-3.2-3B-rank140-mlp-a2-b2-s8.0")
    assert "accuracy 52.62" in beside[6]
    with pytest.raises(ConfigError, match="table '99' of LoRA is not here"):
        side_by_side("Table 99")
