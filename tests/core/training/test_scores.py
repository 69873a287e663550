"""Scores before and after training: told as they go, counted in the time left, kept if safe."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.tasks import Example
from lora_lab.training import kept, scores
from lora_lab.training.base_state import base_state
from lora_lab.training.data import RunData
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task

SETTINGS: dict[str, Any] = {"max_steps": 2, "max_length": 64, "eval_examples": 3, "save_steps": 0}


@pytest.fixture
def evaluated(monkeypatch):
    """Which evaluations were computed, by whether they were the adapter's."""
    seen: list[bool] = []
    whole = RunData.evaluate

    def kept(self: RunData, adapted: bool, *args: Any, **more: Any) -> Any:
        seen.append(adapted)
        return whole(self, adapted, *args, **more)

    monkeypatch.setattr(RunData, "evaluate", kept)
    return seen


def scored(folder, lm, task, config=CONFIG, **changes):
    """Train; return what the base model came to, with its answers, and take the adapter off."""
    run = ll.train(lm, task, config, output_dir=folder, **SETTINGS | changes)
    metrics = run.result(60).metrics
    ll.detach(lm.model, run.adapter.name)
    before = {name: value for name, value in metrics.items() if name.endswith("_before")}
    return before, [sample.base for sample in run.samples], run


def test_the_next_run_has_the_base_models_score_from_the_one_before(tmp_path, evaluated):
    lm, task = tiny_lm(), tiny_task(8, 4)
    first = scored(tmp_path, lm, task)
    again = scored(tmp_path, lm, task, learning_rate=1e-2, seed=3)
    other_ranks = scored(tmp_path, lm, task, CONFIG.replace(r=2))
    assert evaluated == [False, True, True, True]
    assert first[:2] == again[:2] == other_ranks[:2]
    assert None not in first[1]
    alone = scored(tmp_path, tiny_lm(), task)  # another model's object, computed anew
    assert evaluated[4:] == [False, True]
    assert alone[:2] == first[:2]
    summaries = [run.folder.joinpath("summary.json").read_text() for *_, run in (first, again)]
    assert all('"decoding": {' in text for text in summaries)


def one_weight(lm: Any) -> None:
    with torch.no_grad():
        lm.model.model.layers[1].mlp.up_proj.weight.data[3, 5] += 1e-3


def exchanged(lm: Any) -> None:
    rows = lm.model.model.embed_tokens.weight.data
    rows[[5, 9]] = rows[[9, 5]]


def a_hook(lm: Any) -> None:
    lm.model.model.layers[0].register_forward_hook(lambda _m, _a, output: output)


def a_setting(lm: Any) -> None:
    lm.model.config.rms_norm_eps = 1e-3


def a_forward(lm: Any) -> None:
    layer = lm.model.model.layers[0]
    layer.forward = layer.forward


def a_class(lm: Any) -> None:
    layer = lm.model.model.norm
    layer.__class__ = type("Other", (type(layer),), {})


@pytest.mark.parametrize("change", [one_weight, exchanged, a_hook, a_setting, a_forward, a_class])
def test_a_base_that_is_another_one_is_scored_anew(tmp_path, evaluated, change):
    lm, task = tiny_lm(), tiny_task(8, 4)
    scored(tmp_path, lm, task)
    before = base_state(lm.model)
    change(lm)
    assert base_state(lm.model) != before
    scored(tmp_path, lm, task)
    assert evaluated == [False, True, False, True]


def test_other_examples_or_metrics_are_scored_anew(tmp_path, evaluated):
    lm, task = tiny_lm(), tiny_task(8, 4)
    scored(tmp_path, lm, task)
    first = task.validation[0]
    more = Example(first.prompt, first.completion, (*first.references, "another right one"))
    for changed, settings in [
        (dataclasses.replace(task, validation=[more, *task.validation[1:]]), {}),
        (dataclasses.replace(task, metrics=task.metrics[:1]), {}),
        (task, {"eval_examples": 2}),
        (task, {"per_device_train_batch_size": 2}),
    ]:
        evaluated.clear()
        scored(tmp_path, lm, changed, **settings)
        assert evaluated == [False, True], (changed, settings)


def test_the_same_base_has_the_same_state_under_any_adapter():
    model = tiny("llama")
    before = base_state(model)
    assert base_state(model) == before
    ll.attach(model, ll.LoraConfig(r=2))
    adapted = base_state(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert base_state(model) == adapted, "what the adapter learns is not the base's"
    assert base_state(model.to("meta")) is None


def test_an_evaluation_says_how_far_it_is_and_counts_in_the_time_left(tmp_path, monkeypatch):
    lm, task, seen = tiny_lm(), tiny_task(8, 4), []
    run = ll.train(lm, task, CONFIG, output_dir=tmp_path, start=False, **SETTINGS)
    publish = run.publish

    def told_too(**changes: Any) -> None:
        seen.append(changes)
        publish(**changes)

    monkeypatch.setattr(run, "publish", told_too)
    own = types.SimpleNamespace(monotonic=iter(range(0, 900, 10)).__next__)
    monkeypatch.setattr(kept, "time", own)
    clock = types.SimpleNamespace(monotonic=iter(range(0, 900, 90)).__next__)
    monkeypatch.setattr(scores, "time", clock)
    run.start().result(60)
    phases = [changes["phase"] for changes in seen if changes.get("phase")]
    for name in ("evaluating the base model", "evaluating"):
        told = [p for p in phases if p == name or p.startswith(f"{name}, ")]
        assert told[0] == name
        shares = [int(p.removeprefix(f"{name}, ").removesuffix(" %")) for p in told[1:]]
        assert shares == sorted(set(shares))
        assert len(shares) > 5
        assert shares[-1] <= 100
    left = [changes["eta_seconds"] for changes in seen if "eta_seconds" in changes]
    assert 100 in left, "after the last step scoring is left: 90 s, and 10 s of what is kept"
    assert left[-1] == 0
    training = [c["eta_seconds"] for c in seen if c.get("step") and c.get("loss")]
    assert all(seconds is None or seconds >= 100 for seconds in training)


def test_passes_are_counted_at_most(tmp_path):
    lm, shares = tiny_lm(), []
    data = RunData(lm, tiny_task(8, 20), ll.TrainingConfig(**SETTINGS | {"eval_examples": 20}), [])
    assert data.evaluate(False, shares.append) is not None
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert 0.2 < shares[-1] <= 1
