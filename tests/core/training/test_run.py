"""Whole runs of a tiny model on a thread: what they leave, how they stop, what they refuse."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch

from lora_lab import methods
from lora_lab.analysis import step_maps
from lora_lab.checkpoint import load_adapter
from lora_lab.configs import AdaLoraConfig, BitFitConfig, LoraConfig
from lora_lab.errors import ConfigError, RunError
from lora_lab.runs import read_history
from lora_lab.runs.records import list_runs
from lora_lab.training.api import train
from lora_lab.training.snapshot import RunState
from lora_lab.training.worker import Worker
from tests.helpers.tiny_run import CONFIG, logits, tiny_lm, tiny_task, until

pytestmark = pytest.mark.usefixtures("one_thread")


# The whole way -----------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_everything(begin, tmp_path, capfd, monkeypatch):
    returned, work = threading.Event(), Worker.work
    monkeypatch.setattr(Worker, "work", lambda worker: returned.wait(60) and work(worker))
    lm = tiny_lm()
    base = {name: p.clone() for name, p in lm.model.named_parameters()}
    run = begin(lm, max_steps=100, eval_examples=4, save_steps=40, name="learns")
    assert not run.state.final, "train() returns before any of the work"
    returned.set()
    result = run.result(120)
    assert capfd.readouterr() == ("", ""), "the trainer's thread prints nothing"

    losses = [loss for _, loss in result.losses]
    assert [step for step, _ in result.losses] == list(range(1, 101))
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:3])
    assert result.metrics["loss_after"] < 0.5 * result.metrics["loss_before"]
    assert result.metrics["bleu_after"] > result.metrics["bleu_before"] == 0.0
    assert len(result.samples) == 4
    for sample in result.samples:
        assert sample.base is not None
        assert sample.adapted != sample.base
        assert sample.references == (sample.prompt.removesuffix(" >\n") + " .",)

    # The base is untouched, bit for bit, and the saved adapter is the one in the model.
    for name, parameter in lm.model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name])
    fresh = tiny_lm().model
    load_adapter(fresh, result.adapter_folder)
    assert torch.equal(logits(fresh), logits(lm.model))

    snapshot = run.snapshot
    assert snapshot.state is RunState.DONE
    assert snapshot.failure is None
    assert snapshot.step == snapshot.total_steps == 100
    assert snapshot.losses == result.losses
    assert snapshot.eta_seconds == 0
    assert snapshot.steps_per_second > 0
    assert 0 < snapshot.elapsed_seconds == result.seconds
    assert snapshot.memory.peak > snapshot.memory.current > 0

    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == list(result.losses)
    assert sorted(p.name for p in (run.folder / "checkpoints").iterdir()) == ["step-40", "step-80"]
    (record,) = list_runs(tmp_path)
    assert record.id == run.id
    assert record.config["lora"]["target_modules"] == "all-linear"
    assert record.config["training"]["max_steps"] == 100
    assert record.config["task"] == {
        "name": "letters",
        "synthetic": True,
        "examples": 64,
        "loss_unit": "nats per token",
        "framing": "the prompt on a line of its own",
    }
    assert record.config["model"]["name"] == "tiny-llama"
    assert record.summary["state"] == "done"
    assert record.summary["metrics"] == result.metrics
    assert json.loads((run.folder / "samples.json").read_text())[0]["adapted"] is not None


def test_spectra_and_factors_are_those_of_the_adapter(begin):
    lm = tiny_lm()
    run = begin(lm)
    name = next(iter(run.adapter.sites))
    run.watch = name
    run.result(60)
    spectra, factors = run.snapshot.spectra, run.snapshot.factors
    assert spectra.step == factors.step == 12
    assert set(spectra.singular_values) == set(run.adapter.sites)
    for site_name, site in run.adapter.sites.items():
        delta = site.scale * site.B.detach().double().numpy() @ site.A.detach().double().numpy()
        expected = np.linalg.svd(delta, compute_uv=False)[:4]
        assert expected[0] > 0
        np.testing.assert_allclose(spectra.singular_values[site_name], expected, rtol=1e-4)
    assert factors.site.name == name
    A, B, *_ = factors.update
    np.testing.assert_array_equal(A, run.adapter.sites[name].A.detach().numpy())
    np.testing.assert_array_equal(B, run.adapter.sites[name].B.detach().numpy())
    # A copy: what happens to the model later does not reach it.
    with torch.no_grad():
        run.adapter.sites[name].A.zero_()
    assert A.any()
    # When nothing trains any more, another site is there as soon as it is asked for.
    run.watch = other = list(run.adapter.sites)[-1]
    assert run.snapshot.factors.site.name == other
    with pytest.raises(RunError, match=r"does not adapt 'nonsense'; it adapts model\.layers\.0"):
        run.watch = "nonsense"


def test_the_spectra_of_a_run_can_be_read_from_its_folder(begin):
    run = begin(eval_examples=2)
    run.result(60)
    history = read_history(run.folder)
    assert history.steps[0] == 0
    assert history.steps[-1] == 12, "the last step, whatever a look costs"
    assert (history.values[0] == 0).all(), "B is zero before the first step"
    last = history.singular_values(-1)
    assert list(last) == list(run.adapter.sites)
    for name, site in run.adapter.sites.items():
        delta = site.scale * site.B.detach().double().numpy() @ site.A.detach().double().numpy()
        expected = np.linalg.svd(delta, compute_uv=False)[:4]
        np.testing.assert_allclose(last[name], expected, rtol=1e-4)
    maps = step_maps(history)
    assert maps.effective_ranks.shape == (len(history.steps), 7, 2)
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    # Eight examples a step: four letters, three spaces, " .", the end; one token a byte.
    assert [line["tokens"] for line in lines] == [8 * 10] * 12


def test_a_stopped_run_keeps_the_spectra_of_its_last_step(begin):
    run = begin(max_steps=10_000)
    until(lambda: run.snapshot.step >= 3)
    run.stop()
    run.result(60)
    assert read_history(run.folder).steps[-1] == run.snapshot.step


def test_a_seed_gives_the_same_run_whatever_the_notebook_draws(begin):
    first = begin(seed=3).result(60).losses
    torch.manual_seed(999)
    torch.rand(17)
    assert begin(seed=3).result(60).losses == first
    assert begin(seed=4).result(60).losses != first


def test_attaching_leaves_the_notebooks_random_numbers_alone(tmp_path):
    run = train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, start=False, max_steps=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run._prepare()
    try:
        assert torch.equal(torch.rand(3), expected)
    finally:
        run.start()
        run.wait(60)


def test_a_checkpoint_holds_what_going_on_needs(begin):
    run = begin(max_steps=12, save_steps=5)
    run.result(60)
    folder = run.folder / "checkpoints" / "step-10"
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["step"] == 10
    model = tiny_lm().model
    adapter = load_adapter(model, folder)
    optimizer = torch.optim.AdamW(adapter.parameters())
    optimizer.load_state_dict(state["optimizer"])
    moments = [optimizer.state[p]["exp_avg"] for p in adapter.parameters()]
    assert all(m.shape == p.shape for m, p in zip(moments, adapter.parameters(), strict=True))
    assert state["scheduler"]["last_epoch"] == 10
    assert state["random"]["cpu"].dtype == torch.uint8
    torch.set_rng_state(state["random"]["cpu"])
    assert not list(run.folder.rglob("*.tmp")) + list(run.folder.rglob(".*"))


# Stopping ----------------------------------------------------------------------------------------


def test_stop_midway_is_done_with_the_adapter_saved(begin):
    lm = tiny_lm()
    run = begin(lm, max_steps=5000, eval_examples=2)
    until(lambda: run.snapshot.step > 5)
    run.stop()
    result = run.result(60)
    assert run.state is RunState.DONE
    assert 5 < len(result.losses) < 5000
    assert "loss_before" in result.metrics
    assert "loss_after" not in result.metrics
    fresh = tiny_lm().model
    load_adapter(fresh, result.adapter_folder)
    assert torch.equal(logits(fresh), logits(lm.model))
    assert json.loads((run.folder / "summary.json").read_text())["state"] == "stopped"


def test_stop_while_the_base_is_evaluated(begin):
    run = begin(eval_examples=4)
    run.stop()
    result = run.result(60)
    assert result.losses == ()
    assert not result.adapter_folder.exists(), "what has learned nothing is no result"
    assert "stopped before its first step" in run.notes[-1]
    assert methods.active(run.model) == "default"


def test_the_model_is_left_as_it_was(begin):
    lm = tiny_lm()
    model = lm.model
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    cache = model.config.use_cache
    begin(lm, gradient_checkpointing=True, eval_examples=2).result(60)
    methods.detach(model)
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache == cache
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert not model.model.embed_tokens._forward_hooks
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


# Refusals ----------------------------------------------------------------------------------------


def test_unknown_settings_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no field 'learning_rat'; did you mean 'learning_rate'"):
        train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, learning_rat=1)
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_does_not_fit_is_raised_by_start(tmp_path):
    config = LoraConfig(target_modules=["nonsense"])
    run = train(tiny_lm(), tiny_task(), config, output_dir=tmp_path, start=False)
    with pytest.raises(ConfigError, match="nonsense"):
        run.start()
    assert run.state is RunState.IDLE
    assert run.adapter is None


def test_runs_started_together_stand_in_line_and_start_by_themselves(begin, tmp_path, recwarn):
    lm = tiny_lm()
    alone = begin().result(60)
    run = begin(lm, max_steps=5000)
    second, third, fourth = (begin(lm) for _ in range(3))
    assert [r.state for r in (second, third, fourth)] == [RunState.QUEUED] * 3
    assert second.snapshot.phase == f"queued behind run {run.id}"
    assert third.snapshot.phase == f"queued behind run {second.id}"
    assert methods.attached(lm.model)["default"] is run.adapter, "nothing was touched"
    third.stop()
    assert third.state is RunState.DONE
    assert third.result(1).losses == ()
    assert not third.folder.exists()
    assert fourth.snapshot.phase == f"queued behind run {second.id}"
    run.pause()
    assert second.state is RunState.QUEUED
    run.stop()
    run.wait(60)
    assert second.result(60).losses == fourth.result(60).losses == alone.losses
    assert second.snapshot.phase == ""
    assert methods.attached(lm.model)["default"] is fourth.adapter
    assert not [w for w in recwarn if "is replaced" in str(w.message)], "printed into some cell"


def test_a_queued_run_that_does_not_fit_fails_and_the_next_one_starts(begin):
    run = begin(max_steps=5000)
    broken = begin(config=LoraConfig(target_modules=["nonsense"]))
    third = begin()
    run.stop()
    with pytest.raises(RunError, match="nonsense"):
        broken.result(60)
    assert broken.state is RunState.FAILED
    assert len(third.result(60).losses) == 12


def test_lora_plus_needs_a_method_with_b(tmp_path):
    with pytest.raises(ConfigError, match=r"loraplus_lr_ratio is LoRA\+'s rate of B, and BitFit"):
        train(
            tiny_lm(),
            tiny_task(),
            BitFitConfig(new_biases=True),
            output_dir=tmp_path,
            loraplus_lr_ratio=16,
        )
    with pytest.raises(ConfigError, match="steps"):
        train(
            tiny_lm(),
            tiny_task(),
            AdaLoraConfig(tinit=8, tfinal=8),
            output_dir=tmp_path,
            max_steps=10,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_writes_no_text_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    from lora_lab.models import LoadedModel

    bert = BertModel(
        BertConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            vocab_size=300,
        )
    )
    lm = LoadedModel.given(bert, tiny_lm().tokenizer, "tiny-bert")
    with pytest.raises(ConfigError, match=r"tiny-bert \(BertModel\) generates no text"):
        train(lm, tiny_task(), CONFIG, output_dir=tmp_path)


def test_result_with_a_timeout_says_that_it_is_not_over(begin):
    run = begin(max_steps=5000)
    with pytest.raises(RunError, match=r"is still running after 0.1 s"):
        run.result(0.1)


def test_prompts_that_are_cut_are_counted(begin):
    run = begin(max_length=12, max_steps=2, per_device_train_batch_size=3)
    run.result(60)
    # 11 letters of the prompt with its line's end, 9 of the answer, and the end, a token each.
    assert run.notes[0] == (
        "64 of 64 training prompts were cut at their start to fit max_length=12; max_length=20 "
        "would do"
    )
    assert len(run.notes) == 2, "that two steps of a random model end at chance is the other"
