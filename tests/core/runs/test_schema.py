"""A run's files with values of other types, or that are no files: they cost that run one line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from lora_lab.analysis.methods import compare_methods
from lora_lab.analysis.sweep import comparable_runs, sweep_map
from lora_lab.errors import RunError
from lora_lab.runs.history import read_history
from lora_lab.runs.records import RecordState, RunRecord, list_runs
from lora_lab.runs.run_file import read_configs

GOOD: dict[str, Any] = {
    "model": {"name": "tiny", "hub_id": None, "dtype": "float32", "parameters": 100},
    "task": {"name": "letters", "examples": 10},
    "method": "LoRA",
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q", "v"]},
    "configs": [{"class": "LoraConfig", "r": 4, "lora_alpha": 8, "target_modules": ["q", "v"]}],
    "training": {"max_steps": 10, "learning_rate": 1e-3, "warmup_steps": 0.05},
}
SUMMARY = {
    "state": "done", "steps": 10, "seconds": 1.0, "trainable": 10, "peak_memory": 10,
    "checkpoint_bytes": 10, "metrics": {"loss_before": 3.0, "loss_after": 2.0},
}  # fmt: skip


def write_run(folder: Path, config: Any = GOOD, summary: Any = SUMMARY) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    return folder


def with_value(value: Any, *place: str) -> dict[str, Any]:
    changed = json.loads(json.dumps(GOOD))
    into = changed
    for key in place[:-1]:
        into = into[key]
    into[place[-1]] = value
    return changed


def both(top: Path) -> tuple[RunRecord, RunRecord]:
    """The good run and the other one."""
    write_run(top / "good")
    other, good = list_runs(top)
    assert (good.id, other.id) == ("good", "other")
    compare_methods([good])
    return good, other


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("training",), [], "training: Expected `object`, got `array`"),
        (("training", "max_steps"), "ten", "training.max_steps: Expected `int`, got `str`"),
        (("training", "max_steps"), 10.5, "training.max_steps: Expected `int`, got `float`"),
        (("training", "max_steps"), True, "training.max_steps: Expected `int`, got `bool`"),
        (("training", "max_steps"), None, "training.max_steps: Expected `int`, got `null`"),
        (("training", "learning_rate"), float("nan"), "training.learning_rate: Expected `float`"),
        (("training", "learning_rate"), float("inf"), "training.learning_rate: Expected `float`"),
        (("training", "seed"), 2**53 + 1, "training.seed: Expected `int` <= 9007199254740992"),
        (("model",), "tiny", "model: Expected `object`, got `str`"),
        (("model", "parameters"), 10**17, "model.parameters: Expected `int` <= 9007199254740992"),
        (("task", "name"), {"a": 1}, "task.name: Expected `str`, got `object`"),
        (("task", "examples"), [1], "task.examples: Expected `int`, got `array`"),
        (("lora", "r"), 0, "lora.r: Expected `int` >= 1"),
        (("lora", "target_modules"), [1], r"lora.target_modules\[0\]: Expected `str`, got `int`"),
        (("configs",), {"class": "LoraConfig"}, "configs: Expected `array`, got `object`"),
        (("configs",), ["LoraConfig"], r"configs\[0\]: Expected `object`, got `str`"),
        (("method",), ["LoRA"], "method: Expected `str`, got `array`"),
        (("start_from",), "old", "start_from: Expected `object`, got `str`"),
        (("processes",), 2**40, "processes: Expected `int` <= 1048576"),
        (("sources",), None, "sources: Expected `object`, got `null`"),
        (("fingerprints",), {"data": 1}, "fingerprints.data: Expected `str`, got `int`"),
    ],
)
def test_a_config_with_a_value_of_another_type_is_listed_as_damaged(tmp_path, place, value, said):
    write_run(tmp_path / "other", with_value(value, *place), summary=[])
    _, other = both(tmp_path)
    assert other.state is RecordState.DAMAGED
    assert re.match(said, other.problem), other.problem
    assert other.config == {}
    assert other.open().losses == ((1, 2.5),), "what is whole is read"


def test_no_checkpoints_copy_takes_the_place_of_what_somebody_wrote(tmp_path):
    folder = write_run(tmp_path / "other", with_value("ten", "training", "max_steps"))
    (folder / "checkpoints" / "step-5").mkdir(parents=True)
    (folder / "checkpoints" / "step-5" / "run_config.json").write_text(json.dumps(GOOD))
    _, other = both(tmp_path)
    assert (str(other.state), other.config) == ("done", {})
    said = r"config\.json cannot be gone on from: training\.max_steps: Expected `int`, got `str`"
    with pytest.raises(RunError, match=said):
        read_configs(other)
    (folder / "config.json").write_bytes(b"\0" * 100)
    assert list_runs(tmp_path)[0].config == GOOD, "damaged by the disk it is another thing"


def test_what_another_version_wrote_beside_is_left_as_it_is(tmp_path):
    config = {**GOOD, "new": [1], "training": {**GOOD["training"], "new": {"a": None}}}
    write_run(tmp_path / "other", config, {**SUMMARY, "new": "x"})
    _, other = both(tmp_path)
    assert (other.state, other.config) == (RecordState.DONE, config)
    assert other.summary == {**SUMMARY, "new": "x"}


def test_a_field_that_a_run_is_older_than_has_its_default(tmp_path):
    older = json.loads(json.dumps(GOOD))
    del older["training"]["learning_rate"], older["lora"]["lora_alpha"]
    write_run(tmp_path / "other", older)
    _, other = both(tmp_path)
    assert compare_methods([other]).rows[0].learning_rate == 2e-3  # TrainingConfig's
    assert sweep_map([other]).best == (4, 2e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("state", 1), ("steps", "x"), ("steps", -1), ("seconds", float("nan"))),
        *(("trainable", 1.5), ("peak_memory", None), ("checkpoint_bytes", [])),
        *(("metrics", [1]), ("metrics", {"loss_after": "low"}), ("problem", {}), ("repeats", 1)),
    ],
)
def test_a_value_of_another_type_in_a_summary_costs_itself_alone(tmp_path, key, value):
    write_run(tmp_path / "other", summary={**SUMMARY, key: value})
    good, other = both(tmp_path)
    assert other.summary == {k: v for k, v in SUMMARY.items() if k != key}
    records = [good, other]
    for group in comparable_runs(records):
        sweep_map(group)
    try:
        compare_methods(records)
    except RunError as error:
        assert f"{key!r}" in str(error)  # noqa: PT017 the line names what is missing


def test_rows_of_samples_lose_what_is_no_text(tmp_path):
    rows = [{"prompt": "a", "base": 3, "adapted": None}, 7, {"references": "abc", "prompt": "b"}]
    folder = write_run(tmp_path / "other")
    (folder / "samples.json").write_text(json.dumps(rows[::2]))
    _, other = both(tmp_path)
    assert other.open().samples == ({"prompt": "a", "adapted": None}, {"prompt": "b"})
    (folder / "samples.json").write_text(json.dumps(rows))
    assert other.open().samples == ()


SITE = {
    "name": "a.q", "stack": "", "layer": 0, "role": "q", "out_features": 8, "in_features": 8,
    "r": 2, "singular_values": 2, "weight_norm": 1.0, "trainable": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ([], r"cannot read .*sites.json: Expected `object`, got `array`"),
        ({}, "missing required field `sites`"),
        ({"sites": None}, "sites: Expected `array`, got `null`"),
        ({"sites": [SITE | {"layer": "0"}]}, r"sites\[0\].layer: Expected `int \| null`"),
        ({"sites": [SITE | {"layer": 10**9}]}, r"sites\[0\].layer: Expected `int` <= 1048576"),
        ({"sites": [SITE | {"name": ["a"]}]}, r"sites\[0\].name: Expected `str`, got `array`"),
        ({"sites": [SITE | {"singular_values": -1}]}, "singular_values: Expected `int` >= 0"),
        ({"sites": [SITE | {"singular_values": 10**15}]}, "Expected `int` <= 1048576"),
        ({"sites": [SITE | {"weight_norm": float("inf")}]}, "weight_norm: Expected `float` <="),
        ({"sites": [SITE, SITE | {"role": "v"}]}, "a matrix stands twice"),
        ({"sites": [SITE, SITE | {"name": "b.q"}]}, "a cell of the grid holds one matrix"),
    ],
)
def test_sites_of_another_type_are_refused_in_one_line(tmp_path, sites, said):
    folder = write_run(tmp_path / "other")
    (folder / "sites.json").write_text(json.dumps(sites))
    (folder / "spectra.npy").write_bytes(b"")
    with pytest.raises(RunError, match=said) as caught:
        read_history(folder)
    assert "\n" not in str(caught.value)
    assert both(tmp_path)[1].open().history is None


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


KINDS = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a ring": lambda path: path.symlink_to(path.name),
    "a terabyte": _sparse,
    "a deep list": lambda path: path.write_text("[" * 100_000),
    "a list that is deep enough": lambda path: path.write_text(f"{'[' * 40}{']' * 40}"),
    "400 digits": lambda path: path.write_text(f'{{"steps": 1{"0" * 400}}}'),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "summary.json", "samples.json", "sites.json", "spectra.npy", "lock.json"),
        *("metrics.jsonl", "checkpoints", "adapter"),
    ],
)
def test_a_file_that_is_no_file_costs_its_run_alone(tmp_path, name, kind):
    path = write_run(tmp_path / "other") / name
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    _, other = both(tmp_path)
    assert str(other.state) == ("done" if name != "summary.json" else "cut off")
    opened = other.open()
    assert (opened.history, opened.samples, opened.checkpoints) == (None, (), {})
    assert opened.losses == (((1, 2.5),) if name != "metrics.jsonl" else ())
