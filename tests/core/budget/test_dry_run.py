"""The dry run: nothing real is touched, what CUDA needs on top, refusals, the command line."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import torch
from torch import nn

from lora_lab.budget.dry_run import dry_run
from lora_lab.cli import main
from lora_lab.configs import (
    BitFitConfig,
    FullConfig,
    LoraConfig,
    PrefixEmbedConfig,
    TrainingConfig,
)
from lora_lab.errors import ConfigError, LoraLabError, ModelError
from lora_lab.methods.api import attach
from lora_lab.methods.attached import attached
from tests.helpers.measured_step import label_loss
from tests.helpers.small_steps import adapted, batch_of, small_dry_run
from tests.helpers.tiny_models import tiny, tiny_config

ALL = LoraConfig(r=4, target_modules="all-linear")
Q_V = LoraConfig(r=4, target_modules=["q", "v"])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# --- nothing real is touched ---------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_model_its_adapters_and_the_random_state_stay(checkpointing: bool) -> None:
    torch.manual_seed(3)
    model = tiny("gpt2", resid_pdrop=0.1)
    adapter = attach(model, LoraConfig(r=2, target_modules=["q"], lora_dropout=0.1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [(p.requires_grad, p.grad is None, p.device) for p in model.parameters()]
    modes, settings = [m.training for m in model.modules()], model.config.to_dict()
    state = torch.get_rng_state()
    without = small_dry_run(tiny_config("gpt2", resid_pdrop=0.1), ALL).peak
    assert small_dry_run(model, ALL).peak == without  # its own adapter is not in the way
    small_dry_run(model, ALL, gradient_checkpointing=checkpointing)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert flags == [(p.requires_grad, p.grad is None, p.device) for p in model.parameters()]
    assert modes == [m.training for m in model.modules()]
    assert settings == model.config.to_dict()
    assert attached(model) == {"default": adapter}


def test_a_training_beside_it_takes_bit_identical_steps() -> None:
    def losses() -> list[float]:
        model = tiny("gpt2", resid_pdrop=0.2)
        adapted(model, ALL, checkpointing=False)
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-2)
        torch.manual_seed(5)
        batch, seen = batch_of(model), []
        for _ in range(25):
            loss = label_loss(model, **batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(loss.item())
        return seen

    torch.manual_seed(1)
    alone = losses()
    stop, peaks = threading.Event(), []

    def repeat() -> None:
        while not stop.is_set():
            peaks.append(
                small_dry_run(
                    tiny_config("gpt2", resid_pdrop=0.2),
                    ALL,
                    dtype="float16",
                    gradient_checkpointing=True,
                ).peak
            )

    thread = threading.Thread(target=repeat)
    torch.manual_seed(1)
    thread.start()
    try:
        together = losses()
    finally:
        stop.set()
        thread.join()
    assert together == alone
    assert len(peaks) > 0
    assert len(set(peaks)) == 1


def test_it_works_where_gradients_are_off() -> None:
    expected = small_dry_run(tiny_config("llama"), Q_V).peak
    with torch.inference_mode():
        assert small_dry_run(tiny_config("llama"), Q_V).peak == expected


# --- CUDA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuda", [False, True])
def test_no_device_is_set_up_for_fake_tensors(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch built for CUDA, without a GPU: it is freed with its thread, and the next crashes."""
    calls: list[str] = []
    monkeypatch.setattr(
        torch._C, "_ensureCUDADeviceGuardSet", lambda: calls.append("set up"), raising=False
    )
    before = torch._C._only_lift_cpu_tensors()
    small_dry_run(tiny_config("llama"), ALL, cuda=cuda)
    assert not calls
    assert torch._C._only_lift_cpu_tensors() == before


def test_what_cuda_needs_on_top_is_named() -> None:
    # In 16 bits a fused kernel computes attention, which keeps what the CPU's does.
    found = small_dry_run(tiny_config("llama"), ALL, dtype="bfloat16", cuda=True)
    plain = small_dry_run(tiny_config("llama"), ALL, dtype="bfloat16")
    assert plain.extras == {}
    assert plain.device_peak == plain.peak
    # A fused AdamW has no temporaries; the peak may lie elsewhere.
    assert found.peak == pytest.approx(plain.peak, rel=0.01)
    assert list(found.extras) == [
        "allocator rounding",
        "cuBLAS workspaces",
        "attention kernel",
        "cached blocks",
    ]
    assert all(size >= 0 for size in found.extras.values())
    assert found.device_peak == found.peak + sum(found.extras.values())
    assert found.device_peak % 2**21 == 0  # whole segments


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (Q_V, {"batch_size": 0}, "batch_size is 0; it must be a whole number of at least 1"),
        (Q_V, {"sequence_length": 1.5}, "sequence_length is 1.5; it must be a whole number"),
        (Q_V, {"optimizer": "lion"}, "optimizer 'lion' is not modeled; use one of adamw"),
        (Q_V, {"dtype": "int8"}, "dtype 'int8' is not modeled; use one of bfloat16"),
        (LoraConfig(target_modules=["zz"]), {}, "'zz' matches nothing"),
        (TrainingConfig(), {}, "TrainingConfig is no method's config"),
        (FullConfig(top_layers=9), {}, "top_layers is 9 and the model has 2; use at most 2"),
        (BitFitConfig(), {}, r"this model has none; BitFitConfig\(new_biases=True\)"),
        ([FullConfig(), Q_V], {}, "FT and LoRA both claim"),
        (PrefixEmbedConfig(9, 8), {}, "do not fit the model's 64 positions"),
    ],
)
def test_settings_that_cannot_be(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dry_run(tiny_config("llama"), config, **options)


@pytest.mark.parametrize(("name", "most"), [("gpt2", 64), ("bert", 64), ("roberta", 63)])
def test_a_sequence_beyond_the_models_positions_is_one_line(name: str, most: int) -> None:
    assert dry_run(tiny_config(name), Q_V, batch_size=1, sequence_length=most).peak
    for config in (Q_V, None):
        with pytest.raises(ConfigError, match=f"longer than the {most} positions of .*at most"):
            dry_run(tiny_config(name), config, sequence_length=most + 1)


def test_models_that_cannot_be() -> None:
    with pytest.raises(ModelError, match="needs a transformers model, config or name, not Linear"):
        dry_run(nn.Linear(3, 3))
    with pytest.raises(ModelError, match="needs a transformers model, config or name, not int"):
        dry_run(3)
    with pytest.raises(ConfigError, match="has no gradient checkpointing"):
        dry_run(tiny_config("openai-gpt"), sequence_length=8, gradient_checkpointing=True)
    with pytest.raises(LoraLabError, match=r"DebertaV2.* cannot be run on fake tensors") as caught:
        dry_run(tiny_config("deberta-v2"), sequence_length=8)
    assert "\n" not in str(caught.value)


# --- the command line ----------------------------------------------------------------------------


def test_the_command_line_adds_both_peaks(
    capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    options = ["--r", "4", "--batch-size", "4", "--sequence-length", "48", "--dry-run"]
    assert main(["budget", str(tmp_path), *options, "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["full"]["dry_run_peak"] == small_dry_run(tiny_config("llama")).peak
    assert memory["adapted"]["dry_run_peak"] == small_dry_run(tiny_config("llama"), Q_V).peak
    assert main(["budget", str(tmp_path), *options]) == 0
    assert "dry run: full fine-tuning " in capsys.readouterr().out
    both = ["--method", "lora", "--method", "bitfit", "--new-biases", *options]
    assert main(["budget", str(tmp_path), *both, "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    together = small_dry_run(tiny_config("llama"), [Q_V, BitFitConfig(new_biases=True)])
    assert memory["adapted"]["dry_run_peak"] == together.peak
