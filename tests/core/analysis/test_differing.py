"""In what runs differ: all of it, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lora_lab as ll
from lora_lab.analysis.differing import differing_settings
from lora_lab.runs.records import RunRecord

LORA = ll.LoraConfig(r=4, lora_alpha=8, target_modules=["q"])


def record(id_: str, config: Any = LORA, training: Any = None, **more: Any) -> RunRecord:
    facts: dict[str, Any] = {
        "model": {"name": "m", "dtype": "float32"},
        "task": {"name": "t", "examples": 10},
        "fingerprints": {"data": "a" * 64},
        **more,
    }
    own = ll.TrainingConfig.from_dict({"max_steps": 6, **(training or {})})
    configs = [{"class": type(part).__name__, **part.to_dict()} for part in config.parts]
    told = {"id": id_, "configs": configs, "training": own.to_dict(), **facts}
    return RunRecord(id_, Path(id_), told, None)


def test_runs_of_one_setting_differ_in_nothing() -> None:
    assert differing_settings([record("a"), record("b")]) == {}


def test_only_what_differs_is_told_with_each_runs_value() -> None:
    found = differing_settings(
        [
            record("a"),
            record("b", LORA.replace(r=8), {"weight_decay": 0.1}),
            record("c", training={"seed": 3}, model={"name": "m", "dtype": "bfloat16"}),
        ]
    )
    assert found == {
        "dtype": ["float32", "float32", "bfloat16"],
        "weight_decay": ["0", "0.1", "0"],
        "seed": ["0", "0", "3"],
        "r": ["4", "8", "4"],
    }


def test_other_data_of_the_same_name_and_another_start_are_told() -> None:
    found = differing_settings(
        [
            record("a"),
            record("b", fingerprints={"data": "aaaaaab" + "c" * 57}),
            record("c", start_from={"run": "a", "step": 6}),
        ]
    )
    assert found["rows"] == ["aaaaaaa", "aaaaaab", "aaaaaaa"], "as long as it takes"
    assert found["start_from"] == ["–", "–", "run a, step 6"]


def test_another_method_has_its_own_settings() -> None:
    found = differing_settings([record("a"), record("b", ll.BitFitConfig())])
    assert found["class"] == ["LoraConfig", "BitFitConfig"]
    assert [texts for texts in found.values() if texts == ["8", "–"]]


@pytest.mark.parametrize("config", [{}, {"configs": 7}, {"training": [1], "model": "x"}])
def test_a_damaged_config_is_told_as_far_as_it_goes(config: dict[str, Any]) -> None:
    damaged = RunRecord("b", Path("b"), config, None)
    found = differing_settings([record("a"), damaged])
    assert all(len(texts) == 2 for texts in found.values())
    assert found["base model"] == ["m", "–"]
