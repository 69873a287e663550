"""A run that is paused, evaluated, looked at and changed between its steps."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch

from lora_lab import methods
from lora_lab.checkpoint import load_adapter
from lora_lab.configs import LoraConfig
from lora_lab.errors import RunError
from tests.helpers.tiny_run import logits, tiny_lm, until

pytestmark = pytest.mark.usefixtures("one_thread")


def poke(model: torch.nn.Module) -> None:
    """Do with the model whatever people do between two steps."""
    torch.manual_seed(123)
    model.eval()
    methods.activate(model, None)
    logits(model)
    methods.merge(model, "default")
    logits(model)
    methods.unmerge(model)
    methods.attach(model, LoraConfig(r=2, target_modules=["q"]), "other")
    model(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long))[
        0
    ].backward()
    methods.merge(model, "default")


def test_a_pause_that_is_asked_for_after_the_look_shows_the_step_that_it_rests_at(begin):
    """Spectrum and map were one step apart, with 5.7 and 5.8: neither was of the step shown."""
    run = begin(config=LoraConfig(r=4, target_modules=["q"]), max_steps=100_000, eval_examples=0)
    until(lambda: run.adapter is not None and run.snapshot.step >= 1)
    run.watch = next(iter(run.adapter.sites))
    for _ in range(3):
        log, asked = run.store.log, []

        def pauses(row, log=log, asked=asked):  # a step's row comes when it has been looked at
            log(row)
            if not asked:
                asked.append(row)
                run.pause()

        run.store.log = pauses
        until(lambda: run.state == "paused")
        run.store.log = log
        seen = run.snapshot
        assert seen.spectra.step == seen.step
        assert seen.factors.step == seen.step
        assert seen.factors.site.name == run.watch
        run.resume()
        until(lambda before=seen.step: run.snapshot.step > before)
    run.stop()
    run.result(60)


def test_a_paused_and_poked_run_takes_bit_identical_steps(begin):
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3, target_modules=["q", "v", "down"])
    settings = {"max_steps": 30, "eval_examples": 2, "gradient_accumulation_steps": 2}
    calm = begin(config=config, **settings).result(120)
    lm = tiny_lm()
    run = begin(lm, config, **settings)
    paused_at = []
    for _ in range(4):
        until(
            lambda: run.snapshot.step > (paused_at[-1] + 2 if paused_at else 0) or run.state.final
        )
        with run.paused() as model:
            assert model is lm.model
            step = run.snapshot.step
            paused_at.append(step)
            poke(model)
            time.sleep(0.02)
            assert run.snapshot.step == step
            if not run.state.final:
                assert run.snapshot.spectra.step == step, "what is shown is what can be poked"
    poked = run.result(120)
    assert paused_at[0] < 30
    assert poked.losses == calm.losses
    assert poked.metrics == calm.metrics
    mine, other = run.adapter.parameters(), calm_parameters(calm)
    assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def calm_parameters(result):
    model = tiny_lm().model
    return load_adapter(model, result.adapter_folder).parameters()


def test_an_evaluation_can_be_paused_too(begin):
    settings = {"eval_examples": 2, "kept_texts": 1, "max_steps": 2}
    run = begin(**settings)
    phases = Counter()
    while not run.state.final:
        if phases[run.snapshot.phase] >= 10:  # of some hundred boundaries, one for each token
            time.sleep(0.001)
            continue
        with run.paused() as model:
            phases[run.snapshot.phase] += 1
            model.train()
            if not run.state.final:
                methods.activate(model, "default")
    assert "evaluating the base model" in phases
    undisturbed = begin(**settings).result(60)
    assert run.result(60).metrics == undisturbed.metrics


def test_a_pause_is_not_counted_as_training_time(begin, monkeypatch):
    paused, clock = [0.0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + paused[0])
    run = begin(max_steps=6)
    with run.paused():
        paused[0] = 1000.0
    assert run.result(60).seconds < 900
    steps = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    gaps = np.diff([line["seconds"] for line in steps])
    assert gaps.max() < 900


@pytest.mark.parametrize("after_steps", [0, 3])
def test_replacing_the_adapter_while_paused_is_said(begin, after_steps):
    run = begin(max_steps=5000)
    until(lambda: run.snapshot.step >= after_steps)
    with run.paused() as model:
        methods.detach(model)
    with pytest.raises(RunError, match="'default' was detached or replaced while the run was pau"):
        run.result(60)


def test_pause_resume_and_stop_return_at_once_while_the_trainer_works(begin):
    returned, at_work, waited = threading.Event(), threading.Event(), []
    run = begin(max_steps=2000, start=False)
    publish = run.publish

    def held(**changes):
        publish(**changes)
        if changes.get("step") == 4:
            at_work.set()
            waited.append(returned.wait(60))

    run.publish = held
    run.start()
    assert at_work.wait(60)
    for verb in (run.pause, run.resume, run.pause, run.resume, run.stop, run.stop):
        verb()
    returned.set()
    run.wait(60)
    assert waited == [True], "a verb waited for the trainer's step"


def test_the_main_thread_stays_responsive(begin):
    run = begin(max_steps=2000)
    until(lambda: run.snapshot.step > 3)
    beats = []
    for _ in range(100):
        start = time.perf_counter()
        sum(range(2000))
        time.sleep(0.001)
        beats.append(time.perf_counter() - start)
    run.stop()
    run.wait(60)
    assert np.quantile(beats, 0.95) < 0.2
