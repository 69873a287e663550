"""Whole runs of a tiny model on a thread: trained, paused, poked, stopped, failed."""

from __future__ import annotations

import errno
import gc
import json
import os
import time
import weakref

import numpy as np
import pytest
import torch

from lora_lab import methods
from lora_lab._util.files import disk_errors
from lora_lab.analysis import step_maps
from lora_lab.checkpoint import load_adapter
from lora_lab.configs import AdaLoraConfig, BitFitConfig, LoraConfig
from lora_lab.errors import ConfigError, RunError
from lora_lab.runs import read_history
from lora_lab.runs.records import list_runs
from lora_lab.runs.spectra_log import SpectraLog
from lora_lab.runs.store import RunStore
from lora_lab.training.api import train
from lora_lab.training.snapshot import RunState
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task, until


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def begin(tmp_path):
    """Start runs in a temporary folder, and end those that a failed test leaves."""
    runs = []

    def start(lm=None, config=CONFIG, task=None, **training):
        settings = {"max_steps": 12, "learning_rate": 1e-2, "eval_examples": 0, **training}
        run = train(lm or tiny_lm(), task or tiny_task(), config, output_dir=tmp_path, **settings)
        runs.append(run)
        return run

    yield start
    for run in runs:
        if run.state is not RunState.IDLE:
            run.stop()
            run.wait(60)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 25).unsqueeze(0)).logits


# The whole way -----------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_everything(begin, tmp_path, capfd):
    lm = tiny_lm()
    base = {name: p.clone() for name, p in lm.model.named_parameters()}
    start = time.perf_counter()
    run = begin(lm, max_steps=100, eval_examples=4, save_steps=40, name="learns")
    assert time.perf_counter() - start < 1.0, "train() returns at once"
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
    assert record.config["task"] == {"name": "letters", "synthetic": True, "examples": 64}
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


# Pausing and poking ------------------------------------------------------------------------------


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
    run = begin(eval_examples=4, max_steps=2)
    phases = set()
    while not run.state.final:
        with run.paused() as model:
            phases.add(run.snapshot.phase)
            model.train()
            if not run.state.final:
                methods.activate(model, "default")
    assert "evaluating the base model" in phases
    undisturbed = begin(eval_examples=4, max_steps=2).result(60)
    assert run.result(60).metrics == undisturbed.metrics


def test_a_pause_is_not_counted_as_training_time(begin):
    run = begin(max_steps=6)
    with run.paused():
        time.sleep(1.0)
    assert run.result(60).seconds < time.perf_counter()
    steps = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    gaps = np.diff([line["seconds"] for line in steps])
    assert gaps.max() < 0.9


@pytest.mark.parametrize("after_steps", [0, 3])
def test_replacing_the_adapter_while_paused_is_said(begin, after_steps):
    run = begin(max_steps=5000)
    until(lambda: run.snapshot.step >= after_steps)
    with run.paused() as model:
        methods.detach(model)
    with pytest.raises(RunError, match="'default' was detached or replaced while the run was pau"):
        run.result(60)


def test_pause_resume_and_stop_return_at_once_while_the_trainer_works(begin):
    run = begin(max_steps=2000)
    until(lambda: run.snapshot.step > 3)
    slowest = 0.0
    for verb in (run.pause, run.resume, run.pause, run.resume, run.stop, run.stop):
        start = time.perf_counter()
        verb()
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 0.25
    run.wait(60)


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
    assert (result.adapter_folder / "adapter_model.safetensors").exists()
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


# Failing -----------------------------------------------------------------------------------------


def failing_layer(monkeypatch, lm, error, at_call):
    """Make the first layer's MLP raise in its n-th training pass; return what it held then."""
    mlp = lm.model.model.layers[0].mlp
    forward = type(mlp).forward
    calls, held = [], []

    def broken(self, x):
        out = forward(self, x)
        if self.training:
            calls.append(1)
            if len(calls) == at_call:
                big = torch.zeros(1000)
                held.append(weakref.ref(big))
                raise error
        return out

    monkeypatch.setattr(type(mlp), "forward", broken)
    return held


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_frees_and_proposes_half_the_batch(begin, monkeypatch, error):
    lm = tiny_lm()
    held = failing_layer(monkeypatch, lm, error, at_call=4)
    run = begin(lm, gradient_accumulation_steps=1)
    with pytest.raises(RunError, match=r"out of memory: .*per_device_train_batch_size=4 "):
        run.result(60)
    problem = run.snapshot.failure
    assert run.state is RunState.FAILED
    assert "gradient_accumulation_steps=2" in problem.remedy
    assert "nothing was measured" in problem.remedy
    assert "in broken" in problem.details, "the traceback as text"
    assert all(p.grad is None for p in lm.model.parameters())
    gc.collect()
    assert [reference() for reference in held] == [None], "no frame holds on to a tensor"
    assert json.loads((run.folder / "summary.json").read_text())["state"] == "failed"
    # The same model trains again, with what was proposed.
    monkeypatch.undo()
    again = begin(lm, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert len(again.result(60).losses) == 12


def test_an_adapter_without_gradient_fails_and_names_the_sites(begin, monkeypatch):
    lm = tiny_lm()
    mlp = type(lm.model.model.layers[0].mlp)
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: forward(self, x).detach())
    run = begin(lm)
    with pytest.raises(RunError) as caught:
        run.result(60)
    text = str(caught.value)
    assert "no gradient reached 6 of 14 sites (model.layers.0.mlp.gate_proj, " in text
    assert "model.layers.0.mlp.up_proj, model.layers.0.mlp.down_proj, …) in step 1" in text
    assert "leave them out of target_modules" in text


def test_nan_gradients_stop_the_run_before_the_adapter_takes_them(begin, monkeypatch):
    lm = tiny_lm()
    calls = []

    def poison(gradient):
        calls.append(1)
        return gradient * float("nan") if len(calls) == 6 else gradient

    def hook(module, inputs, output):
        if output.requires_grad:
            output.register_hook(poison)

    lm.model.lm_head.register_forward_hook(hook)
    run = begin(lm)
    with pytest.raises(RunError, match="a gradient is nan at step 6") as caught:
        run.result(60)
    assert "the adapter is as it was after step 5" in str(caught.value)
    assert "lower learning_rate than 0.01" in str(caught.value)
    assert len(run.losses) == 5
    reference = begin(max_steps=12)  # the same five steps, then stopped short of the sixth
    until(lambda: reference.state.final)
    checkpoint = tiny_lm().model
    load_adapter(checkpoint, run.folder / "adapter")
    assert torch.equal(logits(checkpoint), logits(lm.model))
    assert run.losses == reference.losses[:5]


def test_nan_loss_gives_back_the_last_good_adapter(begin):
    lm = tiny_lm()
    run = begin(lm, learning_rate=1e30, warmup_steps=0, max_steps=30)
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step \d+"):
        run.result(60)
    assert run.state is RunState.FAILED
    assert all(p.isfinite().all() for p in run.adapter.parameters())
    assert "the adapter is as it was after step 0" in run.snapshot.failure.remedy
    methods.activate(lm.model, None)
    bare = logits(lm.model)
    methods.activate(lm.model, "default")
    assert torch.equal(logits(lm.model), bare), "B is zero again"


def test_a_full_disk_fails_in_one_line(begin, monkeypatch):
    def full(self, row):
        raise RunError("cannot write metrics.jsonl: No space left on device; free some space")

    monkeypatch.setattr(RunStore, "log", full)
    with pytest.raises(RunError, match=r"No space left on device; free some space$"):
        begin().result(60)


def test_a_disk_that_takes_no_spectra_fails_in_one_line(begin, monkeypatch):
    monkeypatch.setattr(SpectraLog, "append", lambda log, *_: _write_to_full_disk(log))
    run = begin()
    with pytest.raises(RunError, match=r"cannot write .*spectra\.npy: No space left on device; fr"):
        run.result(60)
    assert run.snapshot.failure.details
    assert json.loads((run.folder / "summary.json").read_text())["state"] == "failed"


def _write_to_full_disk(log: SpectraLog) -> None:
    with disk_errors(log.path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failure_before_the_first_step_is_kept_too(begin, monkeypatch):
    from lora_lab.tasks.families import causal

    def broken(*_, **__):
        raise ValueError("tokenizer fell over")

    monkeypatch.setattr(causal, "encode_all", broken)
    run = begin()
    with pytest.raises(RunError, match="ValueError: tokenizer fell over") as caught:
        run.result(60)
    assert isinstance(caught.value.__cause__, ValueError)


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
    assert run.notes == ["6 of 6 training prompts were cut at their start to fit max_length=12"]
