"""The dry run against real steps, counted naively and by the meter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.opt.modeling_opt import OPTDecoder
from transformers.optimization import Adafactor

from lora_lab.budget import budget
from lora_lab.budget.dry_run import dry_run
from lora_lab.budget.meter import Meter
from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    FullConfig,
    LoraConfig,
    PrefixEmbedConfig,
    PrefixLayerConfig,
)
from lora_lab.methods.api import attach
from lora_lab.tasks.families.language_modeling import LanguageModelingTask
from lora_lab.training.api import train
from tests.helpers.half_precision import CopiedUp
from tests.helpers.measured_step import LiveBytes, label_loss
from tests.helpers.recorded_fit import Recorded
from tests.helpers.small_steps import BATCH, LENGTH, adapted, batch_of, small_dry_run
from tests.helpers.tiny_models import tiny, tiny_config
from tests.helpers.tiny_run import tiny_lm

ALL = LoraConfig(r=4, target_modules="all-linear")
Q_V = LoraConfig(r=4, target_modules=["q", "v"])
# transformers 5.15 draws a number at each layer, drop or no drop, which a fake tensor cannot give:
# there the dry run says so in a line, and the closed form remains.
opt = pytest.param(
    "opt",
    marks=pytest.mark.skipif(
        "self.layerdrop > 0" not in inspect.getsource(OPTDecoder.forward),
        reason="this OPT reads a number that it draws",
    ),
)
PARTS = ("weights", "gradients", "optimizer", "activations")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def naive_peak(
    model: Any,
    padded: bool = False,
    make_optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
) -> int:
    """Return the live bytes at the dearest moment of two real steps, one after the other."""
    model.config.use_cache = False
    copied = CopiedUp([p for p in model.parameters() if p.requires_grad])
    optimizer = make_optimizer(copied.masters)
    batch = batch_of(model, padded)
    peaks = []
    for _ in range(2):
        optimizer.zero_grad()
        counter = LiveBytes()
        with counter:
            state = [list(values.values()) for values in optimizer.state.values()]
            counter.add([list(model.parameters()), list(model.buffers()), copied.masters, state])
            label_loss(model, **batch).backward()
            copied.gather()
            nn.utils.clip_grad_norm_(copied.masters, 1.0)
            optimizer.step()
            copied.write()
        peaks.append(counter.peak)
    return max(peaks)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize(
    ("checkpointing", "padded"), [(False, False), (False, True), (True, False)]
)
@pytest.mark.parametrize("config", [None, ALL], ids=["full", "all-linear"])
@pytest.mark.parametrize("name", ["llama", "smollm", "gpt2", "qwen3", "gemma3", opt, "bert", "t5"])
def test_fake_is_real(name: str, config: Any, checkpointing: bool, padded: bool) -> None:
    expected = naive_peak(adapted(tiny(name), config, checkpointing=checkpointing), padded)
    options = {"gradient_checkpointing": checkpointing, "padding_mask": padded}
    found = small_dry_run(tiny_config(name), config, **options)
    assert found.peak == pytest.approx(expected, rel=0.001)
    assert sum(getattr(found, part) for part in PARTS) == found.peak


@pytest.mark.parametrize("name", ["falcon-grouped", "falcon-interleaved", "bloom", "modernbert"])
def test_models_that_look_at_their_attentions_name_or_mask(name: str) -> None:
    found = small_dry_run(tiny_config(name), Q_V)
    assert found.peak == pytest.approx(naive_peak(adapted(tiny(name), Q_V)), rel=0.001)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [None, ALL], ids=["full", "all-linear"])
def test_16_bits(config: Any, dtype: torch.dtype) -> None:
    # Rotary frequencies stay float32, as from_pretrained leaves them.
    model = tiny("llama", dtype=dtype)
    expected = naive_peak(adapted(model, config))
    assert small_dry_run(tiny_config("llama"), config, dtype=dtype).peak == pytest.approx(
        expected, rel=0.001
    )
    assert small_dry_run(tiny("llama").to(dtype), config).weights == pytest.approx(
        small_dry_run(tiny_config("llama"), config, dtype=str(dtype)).weights
    )


@pytest.mark.parametrize("config", [None, ALL], ids=["full", "all-linear"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", torch.optim.SGD),
        (
            "adafactor",
            partial(Adafactor, lr=1e-3, scale_parameter=False, relative_step=False),
        ),
    ],
)
def test_optimizers(name: str, make: Any, config: Any) -> None:
    expected = naive_peak(adapted(tiny("llama"), config), make_optimizer=make)
    assert small_dry_run(tiny_config("llama"), config, optimizer=name).peak == pytest.approx(
        expected, rel=0.001
    )


def test_8_bit_adamw_keeps_bytes_and_block_scales() -> None:
    """bitsandbytes: two bytes a number, two float32 a block of 256; float32 below 4096 numbers."""
    sizes = [p.numel() for p in tiny("llama", hidden_size=64).parameters()]
    assert max(sizes) >= 4096 > min(sizes)
    expected = sum(8 * n if n < 4096 else 2 * n + 8 * -(-n // 256) for n in sizes)
    assert (
        dry_run(tiny_config("llama", hidden_size=64), optimizer="adamw_8bit").optimizer == expected
    )


def _top_of(model: nn.Module, layer: int) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".h.{layer}." in name)
    return model.train()


def _biases_of(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return model.train()


def test_methods_that_train_the_models_own_weights() -> None:
    config = tiny_config("gpt2")
    top = small_dry_run(config, FullConfig(top_layers=1))
    assert top.peak == pytest.approx(naive_peak(_top_of(tiny("gpt2"), 1)), rel=0.001)
    biases = small_dry_run(config, BitFitConfig())
    assert biases.peak == pytest.approx(naive_peak(_biases_of(tiny("gpt2"))), rel=0.001)
    # No copy of W₀ is counted: it is on the host.
    everything = small_dry_run(config, FullConfig())
    assert everything.memory == small_dry_run(config).memory
    # Llama has none: q 32, k and v 16 (two heads of four), o 32, gate and up 48, down 32, twice.
    new = small_dry_run(tiny_config("llama"), BitFitConfig(new_biases=True))
    assert new.gradients == 4 * 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32)


def method_peak(model: Any, config: Any, padded: bool, checkpointing: bool) -> int:
    """Return the live bytes at the dearest moment of two real steps with a method's adapter."""
    adapter = adapted(model, None, checkpointing=checkpointing) and attach(model, config)
    model.config.use_cache = False
    copied = CopiedUp(list(adapter.parameters()))
    optimizer = torch.optim.AdamW(copied.masters)
    adapter.begin_training(optimizer, 1000)
    batch = batch_of(model, padded)
    counter = LiveBytes()
    with counter:
        counter.add([list(model.parameters()), list(model.buffers()), copied.masters])
        for _ in range(2):
            optimizer.zero_grad()
            loss, penalty = label_loss(model, **batch), adapter.penalty()
            (loss if penalty is None else loss + penalty).backward()
            del loss, penalty
            copied.gather()
            nn.utils.clip_grad_norm_(copied.masters, 1.0)
            optimizer.step()
            copied.write()
    return counter.peak


TARGETS = ("q", "v", "down")
METHODS = {
    "FT-Top1": FullConfig(top_layers=1),
    "BitFit": BitFitConfig(new_biases=True),
    "PiSSA": LoraConfig(r=3, init_lora_weights="pissa", target_modules=TARGETS),
    "AdaLoRA": AdaLoraConfig(target_r=2, init_r=3, tinit=500, target_modules=TARGETS),
    "PreEmbed": PrefixEmbedConfig(3, 2),
    "PreLayer": PrefixLayerConfig(3, 2),
    "AdapterH": BottleneckConfig("H", 4),
    "AdapterL": BottleneckConfig("L", 4),
    "AdapterP": BottleneckConfig("P", 4),
    "LoRA+BitFit": [Q_V, BitFitConfig(new_biases=True)],
    "LoRA+PE": [Q_V, PrefixEmbedConfig(3, 2)],
    "LoRA+PL": [Q_V, PrefixLayerConfig(3, 2)],
}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize(
    ("name", "checkpointing", "padded"),
    [
        *((name, False, False) for name in ["llama", "gpt2", "bert", "t5"]),
        *(("llama", *setting) for setting in [(False, True), (True, False)]),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_every_methods_step(method: str, name: str, checkpointing: bool, padded: bool) -> None:
    config = METHODS[method]
    expected = method_peak(tiny(name), config, padded, checkpointing)
    options = {"gradient_checkpointing": checkpointing, "padding_mask": padded}
    found = small_dry_run(tiny_config(name), config, **options)
    assert found.peak == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["FT-Top1", "BitFit", "LoRA+BitFit", "AdaLoRA"])
def test_every_methods_step_in_16_bits(method: str, dtype: torch.dtype) -> None:
    expected = method_peak(tiny("gpt2", dtype=dtype), METHODS[method], False, False)
    found = small_dry_run(tiny_config("gpt2"), METHODS[method], dtype=dtype)
    assert found.peak == pytest.approx(expected, rel=0.001)


def test_the_dry_run_of_full_fine_tuning_is_the_loops_own(tmp_path: Path) -> None:
    """Of the real loop in bfloat16, by its meter: two moments and a master for every number."""
    lm = tiny_lm()
    lm.model.to(torch.bfloat16)
    fit = Recorded(tmp_path, lm, FullConfig(), max_steps=3)
    fit.fit.examples = [{**row, "labels": row["input_ids"]} for row in fit.fit.examples]
    fit.run()
    measured = fit.fit.meter.reading()
    size = max(batch["input_ids"].numel() for batch in fit.batches)
    rows = fit.training.per_device_train_batch_size
    found = dry_run(lm.model, FullConfig(), batch_size=rows, sequence_length=size // rows)
    assert (found.gradients, found.optimizer) == (measured.gradients, measured.optimizer)
    assert found.peak == pytest.approx(measured.peak, rel=0.001)
    assert found.optimizer == pytest.approx(12 * fit.adapter.trainable, rel=0.01)


def test_adaloras_step_is_one_before_the_first_cut() -> None:
    late = AdaLoraConfig(target_r=2, init_r=3, tinit=500)
    early = AdaLoraConfig(target_r=2, init_r=3, tinit=0, total_step=3, deltaT=1)
    found = small_dry_run(tiny_config("llama"), late)
    assert small_dry_run(tiny_config("llama"), early).memory == found.memory
    # q is 32 × 32 and v 16 × 32, twice; two moments and two scores for every number.
    numbers = 2 * 3 * (32 + 32 + 1 + 16 + 32 + 1)
    assert found.optimizer == 4 * 4 * numbers + 4 * 2 * 2 * 3  # AdamW counts steps in a float32


def test_the_parts_are_what_torch_allocates() -> None:
    model = adapted(tiny("llama"), ALL)
    learning = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in learning)
    found = small_dry_run(tiny_config("llama"), ALL)
    resident = [*model.parameters(), *model.buffers()]
    assert found.weights == sum(t.numel() * t.element_size() for t in resident)
    assert found.gradients == 4 * count
    assert found.optimizer == 8 * count + 4 * len(learning)  # AdamW counts steps in a float32
    assert found.memory.total == found.peak
    assert found.settings == "batch 4 × 48 tokens, AdamW, float32"


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize("shape", ["full", "lora", "lora, checkpointing"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_meter_measures_what_the_dry_run_said(name: str, shape: str) -> None:
    checkpointing = "checkpointing" in shape
    config = None if shape == "full" else Q_V
    model = adapted(tiny(name), config, checkpointing=checkpointing)
    model.config.use_cache = False
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    meter = Meter(model, optimizer)
    batch = batch_of(model)
    for _ in range(2):
        optimizer.zero_grad()
        with meter.measure(BATCH * LENGTH):
            label_loss(model, **batch).backward()
        with meter.measure_update():
            optimizer.step()
    measured = meter.reading()
    found = small_dry_run(tiny_config(name), config, gradient_checkpointing=checkpointing)
    assert found.peak == pytest.approx(measured.peak, rel=0.03)
    for part in PARTS[:3]:
        assert getattr(found, part) == getattr(measured, part)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_whole_run_measures_what_the_dry_run_said(tmp_path: Any, checkpointing: bool) -> None:
    # Each text and its end fill a block of 32: a step with a shorter block would need a mask.
    texts = ["a text of which all are learned"] * 40
    lm, task = tiny_lm(), LanguageModelingTask("letters", True, texts, texts[:1])
    run = train(
        lm,
        task,
        ALL,
        output_dir=tmp_path,
        max_steps=3,
        max_length=32,
        per_device_train_batch_size=8,
        eval_examples=0,
        gradient_checkpointing=checkpointing,
    )
    run.result()
    measured = run.snapshot.memory
    assert measured is not None
    found = dry_run(
        lm.model,
        ALL,
        batch_size=8,
        sequence_length=32,
        gradient_checkpointing=checkpointing,
    )
    assert found.peak == pytest.approx(measured.peak, rel=0.03)
    assert measured.peak == sum(getattr(measured, part) for part in PARTS)
    assert [getattr(measured, p) for p in PARTS[:3]] == [getattr(found, p) for p in PARTS[:3]]


def test_a_model_with_weights_and_the_closed_form_agree() -> None:
    plan = LoraConfig(r=8, target_modules=["q", "v"])
    found = dry_run("smollm2-135m", plan, batch_size=2, sequence_length=64)
    closed = budget("smollm2-135m", plan, batch_size=2, sequence_length=64).adapted
    assert found.peak == pytest.approx(closed.total, rel=0.01)
    assert (found.gradients, found.weights) == (
        closed.gradients,
        pytest.approx(closed.weights, rel=1e-5),
    )
