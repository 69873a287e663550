"""Commands and public names of the version before: all there, with the same numbers."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lora_lab as ll
from lora_lab.cli import main
from tests.helpers.recorded_before import (
    RECORDED,
    assert_same,
    one_thread,  # noqa: F401 (a fixture)
    read,
    tensors_in,
    told,
)

BUDGETS, INSPECTED, HELP = (read(f"cli/{name}.json") for name in ("budget", "inspect", "help"))
FORMS = read("cli/export.json")


@pytest.fixture(autouse=True)
def recorded_folder(monkeypatch):
    """Recorded words name folders below the recordings'."""
    monkeypatch.chdir(RECORDED)


@pytest.mark.parametrize("words", BUDGETS)
def test_a_plan_costs_what_it_did(words, capsys):
    now = words
    if words.startswith("roberta-large"):  # "all-linear" is PEFT's now: lm_head.dense as well
        now = words.replace("all-linear", "q,k,v,o,up,down")
    found, recorded = told(capsys, "budget", *now.split()), copy.deepcopy(BUDGETS[words])
    if words.startswith("gpt3") or "bfloat16" in words:
        sides = ["full", *["adapted"] * ("bitfit" in words)]
        for side in sides:
            recorded["memory"][side] = with_masters(recorded["memory"][side])
    for side, before in recorded["memory"].items():
        *parts, total = found["memory"][side].values()
        assert total == sum(parts)
        if "total" in before:  # logits are made a chunk at a time since; of few words that is more
            assert found["memory"][side]["activations"] < 1.1 * before.pop("activations")
            del before["total"]
    assert_same(found, recorded)


def with_masters(recorded):
    """What learns in a half type has float32 masters since then, gradients and moments as well."""
    return {
        "weights": recorded["weights"],
        "gradients": 2 * recorded["gradients"],
        "optimizer": 2 * recorded["optimizer"] + 2 * recorded["gradients"],
    }


@pytest.mark.parametrize("words", INSPECTED)
def test_an_adapter_looked_into_shows_what_it_did(words, capsys):
    assert_same(told(capsys, "inspect", *words.split()), INSPECTED[words], rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_an_export_tells_what_it_did(form, capsys, tmp_path):
    out = tmp_path / Path(FORMS[form]["out"]).name
    words = ["adapters/lora", out, "--format", form, "--base", "models/llama"]
    found, recorded = told(capsys, "export", *words), FORMS[form]
    assert found.pop("out") == str(out)
    assert found["files"].keys() == recorded["files"].keys()
    assert sum(found.pop("files").values()) == found.pop("bytes")  # a card may be worded better
    assert_same(found, {k: v for k, v in recorded.items() if k not in ("out", "files", "bytes")})
    if form in ("peft", "uniform"):
        of = {"peft": "lora", "uniform": "uniform"}[form]
        own, others = tensors_in(out), tensors_in(RECORDED / "adapters" / of)
        assert own.keys() == others.keys()
        assert all(torch.equal(own[key], others[key]) for key in own)
    if form == "merged":
        base = load_file(RECORDED / "models" / "llama" / "model.safetensors")
        own = load_file(out / "model.safetensors")
        assert {k: (t.shape, t.dtype) for k, t in own.items()} == {
            k: (t.shape, t.dtype) for k, t in base.items()
        }


@pytest.mark.parametrize("command", HELP)
def test_a_command_has_its_options_still(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    options = set(re.findall(r"--[a-z][a-z-]*", text))
    assert options >= set(HELP[command]["options"])
    choices = {choice for found in re.findall(r"\{(.*?)\}", text) for choice in found.split(",")}
    assert choices >= set(HELP[command]["choices"])


def test_the_doctor_tells_of_all_that_it_did(capsys):
    assert told(capsys, "doctor").keys() >= set(read("cli/doctor.json"))


@pytest.mark.parametrize("package", ["lora_lab", "lora_lab_widgets"])
def test_every_public_name_is_there(package):
    module, names = importlib.import_module(package), read("cli/names.json")[package]
    assert set(names) <= set(module.__all__)
    for name in names:
        assert getattr(module, name) is not None


def test_ll_runs_lists_runs_whatever_was_imported():
    importlib.import_module("lora_lab.runs.records")
    assert [run.id for run in ll.runs("finished")] == sorted(read("finished/opened.json"))[::-1]


# Five steps of warm-up were all of a short run: a share of the run's steps since. And gated MLPs
# keep less by themselves, to the same bits. -1 steps are 100, or what `num_train_epochs` take.
NEW_DEFAULTS = {
    ("TrainingConfig", "max_steps"): "-1",
    ("TrainingConfig", "warmup_steps"): "0.05",
    ("TrainingConfig", "recompute_mlp"): "None",
}


@pytest.mark.parametrize("name", read("cli/parameters.json"))
def test_a_public_function_takes_what_it_took(name):
    """In the same places, with the same defaults; there may be more that have a default.

    A default that was changed on purpose stands in `NEW_DEFAULTS`, with its reason.
    """
    value = getattr(ll, name)
    found = {p.name: p for p in inspect.signature(value).parameters.values()}
    recorded = read("cli/parameters.json")[name]
    for parameter, kind, default in recorded:
        own = found.pop(parameter)
        expected = NEW_DEFAULTS.get((name, parameter), default)
        assert (str(own.kind), repr(own.default)) == (kind, expected), parameter
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    assert all(own.default is not own.empty or own.kind in kinds for own in found.values())
    by_place = [p for p, kind, _ in recorded if "POSITIONAL" in kind]
    assert list(inspect.signature(value).parameters)[: len(by_place)] == by_place
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        assert [p for p, *_ in recorded] == fields[: len(recorded)]
