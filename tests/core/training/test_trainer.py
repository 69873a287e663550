"""One training on the test's own thread: the loss it reports, what it trains, what it refuses."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
import torch

from lora_lab.configs import TrainingConfig
from lora_lab.errors import RunError
from lora_lab.training import failures
from lora_lab.training.progress import MAX_POINTS, LossHistory, Pace
from lora_lab.training.step import DeadAdapterError
from tests.helpers.checkpointing import checkpoint
from tests.helpers.recorded_fit import Recorded, mean_loss
from tests.helpers.tiny_run import tiny_lm


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_loss_of_a_step_is_the_mean_over_its_completion_tokens(tmp_path, accumulation):
    run = Recorded(
        tmp_path, gradient_accumulation_steps=accumulation, per_device_train_batch_size=5
    )
    run.run()
    # The first step's learning rate is 0 (warm-up), so the first two steps see the base model.
    bare = tiny_lm().model
    for i in range(2):
        batches = run.batches[i * accumulation : (i + 1) * accumulation]
        assert run.losses[i] == pytest.approx(mean_loss(bare, batches), rel=1e-5)
        assert run.steps[i].tokens == sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)


def test_the_learning_rate_warms_up_from_zero_and_falls_to_zero(tmp_path):
    run = Recorded(tmp_path, max_steps=6, warmup_steps=2).run()
    expected = [0, 0.5, 1, 0.75, 0.5, 0.25]  # of 1e-2: linear up in 2 steps, linear down in 4
    assert [s.learning_rate for s in run.steps] == pytest.approx([1e-2 * x for x in expected])


def test_only_the_adapter_is_trained(tmp_path):
    lm = tiny_lm()
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    run = Recorded(tmp_path, lm).run()
    for name, parameter in lm.model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name])
    assert all(site.B.any() for site in run.adapter.sites.values())
    assert run.fit.optimizer is None, "its state is given back"


def test_gradient_checkpointing_gives_the_same_losses_and_less_memory(tmp_path):
    plain, thrifty = Recorded(tmp_path), Recorded(tmp_path, gradient_checkpointing=True)
    for run in (plain, thrifty):
        run.run()
    assert thrifty.losses == pytest.approx(plain.losses, rel=1e-6)
    assert thrifty.fit.meter.reading().peak < plain.fit.meter.reading().peak
    assert not any(getattr(m, "gradient_checkpointing", False) for m in thrifty.lm.model.modules())


def test_checkpointing_that_the_user_switched_on_stays_on(tmp_path):
    lm = tiny_lm()
    checkpoint(lm.model)
    Recorded(tmp_path, lm, gradient_checkpointing=True).run()
    assert any(getattr(m, "gradient_checkpointing", False) for m in lm.model.modules())
    assert len(lm.model.model.embed_tokens._forward_hooks) == 1


def test_input_gradients_that_the_user_switched_on_stay_on_once(tmp_path):
    lm = tiny_lm()
    lm.model.enable_input_require_grads()
    Recorded(tmp_path, lm, gradient_checkpointing=True).run()
    assert len(lm.model.model.embed_tokens._forward_hooks) == 1


def test_reentrant_checkpointing_without_input_gradients_is_found_and_named(tmp_path):
    lm = tiny_lm()
    checkpoint(lm.model, use_reentrant=True)
    lm.model.disable_input_require_grads()
    run = Recorded(tmp_path, lm)
    with (
        pytest.warns(UserWarning, match="None of the inputs have requires_grad"),
        pytest.raises(DeadAdapterError) as caught,
    ):
        run.run()
    assert str(caught.value) == (
        "the loss does not depend on the adapter at all: most likely gradient checkpointing, whose "
        "blocks see no input that needs a gradient; set gradient_checkpointing=False, or call "
        "model.enable_input_require_grads()"
    )


def test_an_optimizer_that_does_not_move_b_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    run = Recorded(tmp_path)
    with pytest.raises(DeadAdapterError, match="BA is still zero after optimizer step 2 at 14"):
        run.run()
    assert len(run.steps) == 1, "step 1 has learning rate 0 and proves nothing"


def test_on_step_ends_the_training(tmp_path):
    assert len(Recorded(tmp_path, stop_after=3).run().steps) == 3


def test_the_order_of_the_data_hangs_on_the_seed_alone(tmp_path):
    def order(seed, noise):
        torch.manual_seed(noise)
        return [b["input_ids"].tolist() for b in Recorded(tmp_path, seed=seed).run().batches]

    assert order(1, 10) == order(1, 20)
    assert order(1, 10) != order(2, 10)


def test_more_steps_than_data_goes_round_again_in_another_order(tmp_path):
    run = Recorded(tmp_path, max_steps=16).run()  # 64 examples, 8 a step: two rounds
    rounds = [
        sorted(row for batch in half for row in batch["input_ids"].tolist())
        for half in (run.batches[:8], run.batches[8:16])
    ]
    assert rounds[0] == rounds[1]
    assert run.batches[0]["input_ids"].tolist() != run.batches[8]["input_ids"].tolist()


# Progress ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 499, 500, 501, 1000, 12_345])
def test_at_most_500_points_and_always_the_first_and_the_latest(steps):
    history = LossHistory()
    for step in range(1, steps + 1):
        history.add(step, 1 / step)
    points = history.points()
    assert len(points) <= MAX_POINTS
    assert points[0] == (1, 1.0)
    assert points[-1] == (steps, 1 / steps)
    assert len(points) >= min(steps, MAX_POINTS // 2)
    curve = history.curve()
    assert curve.pairs() == tuple((step, 1 / step) for step in range(1, steps + 1))
    assert LossHistory(curve).points() == points
    gaps = {b[0] - a[0] for a, b in itertools.pairwise(points[:-1])}
    assert len(gaps) <= 1, "evenly spaced"


def test_the_losses_of_a_long_run_are_numbers_and_not_objects():
    history, steps = LossHistory(), 20_000
    tracemalloc.start()
    try:
        for step in range(1001, 1001 + steps):
            history.add(step, 1 / step)
        assert tracemalloc.get_traced_memory()[0] < 40 * steps, "pairs of objects take 120 each"
    finally:
        tracemalloc.stop()


def test_the_clock_stands_while_told_to(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    pace = Pace()
    assert pace.seconds == 0
    assert pace.steps_per_second is None
    pace.start()
    for _ in range(4):
        now[0] += 0.5
        pace.step()
    pace.stop()
    now[0] += 60
    assert pace.seconds == 2.0
    pace.start()
    now[0] += 0.5
    pace.step()
    assert pace.seconds == 2.5
    assert pace.steps_per_second == pytest.approx(2.0)


# Problems ----------------------------------------------------------------------------------------


def remedy(**training) -> str:
    error = torch.OutOfMemoryError("CUDA out of memory.")
    return failures.explain(error, TrainingConfig(**training)).remedy


def test_out_of_memory_keeps_the_examples_a_step():
    assert "per_device_train_batch_size=4 with gradient_accumulation_steps=2" in remedy()
    odd = remedy(per_device_train_batch_size=3, gradient_accumulation_steps=2)
    assert "per_device_train_batch_size=1 with gradient_accumulation_steps=6" in odd
    one = remedy(per_device_train_batch_size=1, max_length=64)
    assert one == (
        "the batch is one example already: try a max_length below 64 or gradient_checkpointing=True"
    )
    assert "gradient_checkpointing" not in remedy(gradient_checkpointing=True)


def test_an_error_without_words_is_called_by_its_type():
    problem = failures.explain(KeyError(), TrainingConfig())
    assert problem.message == "KeyError: KeyError"


def test_forgetting_frames_reaches_causes_and_contexts():
    import weakref

    held = []

    def inner():
        big = torch.zeros(10)
        held.append(weakref.ref(big))
        raise ValueError("inner")

    def outer():
        big = torch.zeros(10)
        held.append(weakref.ref(big))
        try:
            inner()
        except ValueError as error:
            raise RuntimeError("outer") from error

    try:
        outer()
    except RuntimeError as error:
        kept = error
    assert all(reference() is not None for reference in held)
    failures.forget_frames(kept)
    assert [reference() for reference in held] == [None, None]


def test_a_step_without_a_learned_token_is_named(tmp_path):
    run = Recorded(tmp_path)
    for row in run.fit.examples:
        row["labels"] = [-100] * len(row["labels"])
    with pytest.raises(RunError, match=r"nothing is learned in step 1: all labels .* are -100"):
        run.run()
