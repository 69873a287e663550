"""How a run trains: what its settings may be, and what they come to."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from lora_lab.analysis.records import refuse_differences, shared_settings
from lora_lab.configs import LoraConfig, TrainingConfig
from lora_lab.errors import ConfigError
from lora_lab.runs.records import RunRecord
from lora_lab.sweeps.cells import cell_of


@pytest.mark.parametrize("steps", [2, 3, 19, 20, 21, 100, 137, 1000])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.05, 0.1, 1 / 3])
def test_a_share_is_as_many_steps_as_transformers_takes(tmp_path, steps, share):
    peer = TrainingArguments(str(tmp_path), warmup_steps=share, use_cpu=True)
    assert TrainingConfig(max_steps=steps, warmup_steps=share).warmup == peer.get_warmup_steps(
        steps
    )


def test_the_default_is_what_it_was_in_100_steps_and_lets_one_step_learn():
    assert TrainingConfig().warmup == 5
    assert TrainingConfig(max_steps=1).warmup == 0
    assert TrainingConfig(max_steps=2, warmup_steps=0.9).warmup == 1


@pytest.mark.parametrize("number", [0, 1, 5, 500])
def test_whole_numbers_are_steps(number):
    assert TrainingConfig(max_steps=3, warmup_steps=number).warmup == number
    assert TrainingConfig.from_dict({"warmup_steps": number}).warmup_steps == number


@pytest.mark.parametrize("wrong", [-1, -0.1, 1.0, 2.5, float("nan"), True, "5", None])
def test_what_is_no_warmup_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"warmup_steps .* in \[0, 1\)"):
        TrainingConfig(warmup_steps=wrong)


def test_a_cell_of_a_sweep_that_began_with_five_steps_keeps_its_id():
    before, now = TrainingConfig(warmup_steps=5), TrainingConfig()
    assert cell_of([LoraConfig()], before, {}).id == cell_of([LoraConfig()], now, {}).id
    other = TrainingConfig(max_steps=200)  # trains otherwise than with 5
    assert cell_of([LoraConfig()], other, {}).id != (
        cell_of([LoraConfig()], other.replace(warmup_steps=5), {}).id
    )


def test_runs_with_five_steps_and_with_a_twentieth_of_100_are_compared(tmp_path):
    def record(**training):
        told = {"model": {}, "task": {"name": "t"}, "training": training}
        return RunRecord("r", tmp_path, told, None)

    older, newer = record(max_steps=100, warmup_steps=5), record(max_steps=100, warmup_steps=0.05)
    refuse_differences([shared_settings(each, ()) for each in (older, newer)], "")
    freely = [shared_settings(each, ["max_steps"]) for each in (newer, record(warmup_steps=0.05))]
    refuse_differences(freely, "")


def test_a_warmup_ratio_is_a_share_of_the_steps():
    given = TrainingConfig.from_dict({"warmup_ratio": 0.1, "max_steps": 37})
    assert given == TrainingConfig(max_steps=37, warmup_steps=0.1)
    assert given.warmup == 4
    assert given.to_dict() == TrainingConfig(max_steps=37, warmup_steps=0.1).to_dict()
    assert TrainingConfig(warmup_ratio=0).warmup == 0
    with pytest.raises(ConfigError, match=r"warmup_ratio is 0.1 and warmup_steps 5; give one"):
        TrainingConfig(warmup_ratio=0.1, warmup_steps=5)
    with pytest.raises(ConfigError, match=r"warmup_ratio is 1.5; it must lie in \[0, 1\)"):
        TrainingConfig(warmup_ratio=1.5)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("adam_beta1", 1.0), ("adam_beta2", -0.1), ("adam_epsilon", 0.0), ("adam_epsilon", "x"),
        ("label_smoothing_factor", 1.0), ("label_smoothing_factor", -0.1),
        ("label_smoothing_factor", float("nan")), ("adam_beta1", True),
    ],
)  # fmt: skip
def test_what_is_no_beta_epsilon_or_smoothing_is_refused(field, wrong):
    with pytest.raises(ConfigError, match=field):
        TrainingConfig(**{field: wrong})


def test_new_fields_at_their_defaults_are_in_no_dict():
    """Hashes of sweeps' cells stay, and an older version reads the file."""
    assert {*TrainingConfig().to_dict()} == {
        "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
        "loraplus_lr_ratio", "warmup_steps", "lr_scheduler_type", "weight_decay", "max_grad_norm",
        "max_length", "eval_examples", "save_steps", "gradient_checkpointing", "recompute_mlp",
        "seed", "report_to", "train_sampling_strategy",
        "init_draws",  # what is recorded without it began otherwise
    }  # fmt: skip
    assert TrainingConfig(adam_beta2=0.95).to_dict()["adam_beta2"] == 0.95
    assert TrainingConfig().to_dict()["max_steps"] == 100
    assert TrainingConfig().to_python() == "ll.TrainingConfig()"
