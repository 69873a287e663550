"""Out of memory at any allocation of any part of a run: one line, and everything else is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import RunError
from lora_lab.training.last_good import LastGood
from tests.helpers.made_up_hardware import cpu_can
from tests.helpers.spent_at import LINE, PLACES, spent_at
from tests.helpers.tiny_run import logits, tiny_lm, tiny_task

TASK = tiny_task(16, 1)
LORA = ll.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])
CONFIGS: dict[str, Any] = {
    "LoRA": LORA,
    "FT": ll.FullConfig(),
    "combination": [LORA, ll.BottleneckConfig("P", r=3)],
}
SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "save_steps": 2,
    "eval_examples": 1,
    "warmup_steps": 0,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
}
CASES = [
    *(("LoRA", place, 7) for place in PLACES),
    *(("LoRA", place, 1) for place in ("forward", "step")),
    *(("FT", place, 5) for place in ("the base's evaluation", "step", "snapshot", "evaluation")),
    *(("combination", place, 3) for place in ("backward", "evaluation")),
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Losses of runs that nothing breaks off."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        cpu_can(patched, fused_optimizer=False)
        return {
            name: ll.train(tiny_lm(), TASK, config, output_dir=folder, **SETTINGS).result(60).losses
            for name, config in CONFIGS.items()
        }


@pytest.mark.parametrize(("method", "place", "nth"), CASES)
def test_run_adapter_model_and_last_checkpoint_are_whole(
    method: str,
    place: str,
    nth: int,
    expected: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu_can(monkeypatch, fused_optimizer=False)  # whose every step makes tensors
    lm = tiny_lm()
    base, weights = logits(lm.model), {n: p.clone() for n, p in lm.model.named_parameters()}
    modes = [part.training for part in lm.model.modules()]
    with monkeypatch.context() as patched:
        spent_at(patched, place, nth)
        run = ll.train(lm, TASK, CONFIGS[method], output_dir=tmp_path, **SETTINGS)
        with pytest.raises(RunError, match="out of memory: CUDA out of memory"):
            run.result(60)
    failure = run.snapshot.failure
    assert failure is not None
    assert failure.message == f"out of memory: {LINE}"
    assert "try per_device_train_batch_size=2 with" in failure.remedy

    # The adapter is on the model, finite, without gradients, and can be written.
    assert run.adapter is ll.attached(lm.model)["default"]
    assert all(value.isfinite().all() for value in run.adapter.state().values())
    assert not any(p.grad is not None for p in lm.model.parameters())
    ll.save_adapter(lm.model, tmp_path / "adapter")

    # The last checkpoint is gone on with as if nothing had been, on another copy of the base.
    if place in ("snapshot", "checkpoint", "evaluation"):
        again = ll.resume(run.folder, tiny_lm(), TASK)
        assert again.result(60).losses == expected[method]

    # The model is the base's, bit for bit, and another run trains on it.
    ll.detach(lm.model)
    assert torch.equal(logits(lm.model), base)
    assert all(torch.equal(p, weights[name]) for name, p in lm.model.named_parameters())
    assert [part.training for part in lm.model.modules()] == modes
    other = ll.train(lm, TASK, CONFIGS[method], output_dir=tmp_path, **SETTINGS)
    assert other.result(60).losses == expected[method]


@pytest.mark.parametrize("nth", [4, 15])
@pytest.mark.parametrize("method", CONFIGS)
def test_a_step_that_moved_some_parameters_is_taken_back(
    method: str, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the one kernel AdamW moves them in turn; the copy of step 2 is what is whole."""
    cpu_can(monkeypatch, fused_optimizer=False)
    lm, whole = tiny_lm(), {}
    keep = LastGood.keep

    def kept(self: LastGood, step: int) -> None:
        keep(self, step)
        whole[step] = {name: v.clone() for name, v in self._adapter.state().items()}

    with monkeypatch.context() as patched:
        patched.setattr(LastGood, "keep", kept)
        spent_at(patched, "step", nth)
        run = ll.train(lm, TASK, CONFIGS[method], output_dir=tmp_path, **SETTINGS)
        with pytest.raises(RunError, match="out of memory"):
            run.result(60)
    assert list(whole) == [0, 2]
    state = run.adapter.state()
    assert state.keys() == whole[2].keys()
    assert all(torch.equal(value, whole[2][name]) for name, value in state.items())
    failure = run.snapshot.failure
    assert failure is not None
    assert failure.remedy.startswith("the adapter is as it was after step 2; try per_device_train")


@pytest.mark.parametrize("nth", [1, 4, 9])
def test_a_fused_step_moves_all_or_nothing(
    nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch makes all moments before the one kernel (`Adam._init_group`, torch/optim/adam.py)."""
    lm = tiny_lm()
    base = logits(lm.model)
    with monkeypatch.context() as patched:
        spent_at(patched, "the first step", nth)
        run = ll.train(lm, TASK, LORA, output_dir=tmp_path, **SETTINGS)
        with pytest.raises(RunError, match="out of memory"):
            run.result(60)
    assert torch.equal(logits(lm.model), base)  # B is zero still
