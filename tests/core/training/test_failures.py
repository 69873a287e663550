"""Runs that fail: what is said, what is freed, and which adapter is left."""

from __future__ import annotations

import errno
import gc
import json
import os
import weakref

import pytest
import torch

from lora_lab import methods
from lora_lab._util.files import disk_errors
from lora_lab.checkpoint import load_adapter
from lora_lab.configs import LoraConfig
from lora_lab.errors import RunError
from lora_lab.runs.spectra_log import SpectraLog
from lora_lab.runs.store import RunStore
from lora_lab.training.snapshot import RunState
from tests.helpers.tiny_run import logits, tiny_lm, until
from tests.helpers.whole_logits import whole_logits  # noqa: F401 (a fixture)

pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert "no gradient reached 6 of 14 matrices (model.layers.0.mlp.gate_proj, " in text
    assert "model.layers.0.mlp.up_proj, model.layers.0.mlp.down_proj, …) in step 1" in text
    assert "leave them out of target_modules" in text


def test_a_layer_that_the_model_goes_past_is_named_with_who_does_so(begin, monkeypatch):
    lm = tiny_lm()

    def past(self, x):
        up = getattr(self, "up_proj")  # noqa: B009 (no look at the code tells)
        return self.down_proj(
            self.act_fn(self.gate_proj(x)) * torch.nn.functional.linear(x, up.weight)
        )

    monkeypatch.setattr(type(lm.model.model.layers[0].mlp), "forward", past)
    run = begin(lm, config=LoraConfig(r=2, target_modules=["gate", "up", "down"]))
    with pytest.raises(RunError) as caught:
        run.result(60)
    text = str(caught.value)
    assert "no gradient reached 2 of 6 matrices (model.layers.0.mlp.up_proj, " in text
    assert "model.layers.0.mlp reads its weight and does not call it, so that" in text
    assert "target_modules" not in text
    (note,) = (note for note in run.notes if "an adapter does nothing" in note)
    assert "at model.layers.0.mlp.up_proj, nor at its like in other blocks" in note


@pytest.mark.usefixtures("whole_logits")  # as a model has whose output layer has a hook
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


@pytest.mark.parametrize("save_steps", [3, 0])
def test_a_step_that_leaves_no_numbers_is_neither_checkpoint_nor_end(
    begin, monkeypatch, save_steps
):
    # The step's own loss was finite; what it made of the adapter is not.
    last = save_steps or 12
    step = torch.optim.AdamW.step
    taken = []

    def poisoned(self, closure=None):
        step(self, closure)
        taken.append(1)
        if len(taken) == last:
            self.param_groups[0]["params"][0].data.view(-1)[0] = torch.inf

    monkeypatch.setattr(torch.optim.AdamW, "step", poisoned)
    run = begin(save_steps=save_steps)
    with pytest.raises(RunError, match=r"adapter 'default' holds 1 NaN or infinite values at"):
        run.result(60)
    assert "the adapter is as it was after step" in run.snapshot.failure.remedy
    assert all(p.isfinite().all() for p in run.adapter.parameters())
    assert not list(run.folder.glob("checkpoint*/*"))
    load_adapter(tiny_lm().model, run.folder / "adapter")
    assert json.loads((run.folder / "summary.json").read_text())["state"] == "failed"


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

    run = begin(start=False)  # which looks at the rows already
    monkeypatch.setattr(causal, "encode_all", broken)
    run.start()
    with pytest.raises(RunError, match="ValueError: tokenizer fell over") as caught:
        run.result(60)
    assert isinstance(caught.value.__cause__, ValueError)
