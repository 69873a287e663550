"""Models whose weights are of several types, against real steps and transformers' own loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from lora_lab.anatomy import anatomy
from lora_lab.budget import budget
from lora_lab.budget.dry_run import dry_run
from lora_lab.configs import BitFitConfig, FullConfig, LoraConfig
from lora_lab.methods.api import attach
from tests.helpers.half_precision import CopiedUp
from tests.helpers.measured_step import LiveBytes, gpt2, label_loss
from tests.helpers.quantized_layers import Linear4bit, quantize
from tests.helpers.small_steps import BATCH, LENGTH, batch_of, small_dry_run
from tests.helpers.tiny_experts import tiny_experts
from tests.helpers.tiny_models import tiny

ALL = LoraConfig(r=4, target_modules="all-linear")
CONFIGS = {
    "all": ALL,
    "FT": FullConfig(),
    "FT-Top2": FullConfig(top_layers=2),
    "BitFit": BitFitConfig(new_biases=True),
    "LoRA, bias=all": LoraConfig(r=4, target_modules=["q", "v"], bias="all"),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    tiny("t5").save_pretrained(folder)
    return folder


def loaded(folder: Path, dtype: str = "float16") -> Any:
    return transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=dtype)


def upcast(model: nn.Module, *names: str) -> Any:
    """A model some of whose weights somebody has made float32."""
    for path, parameter in model.named_parameters():
        if any(name in path for name in names):
            parameter.data = parameter.data.float()
    return model


def measured(model: Any, config: Any) -> int:
    """Return the live bytes at the dearest moment of two real steps, masters by hand."""
    model.train()
    model.config.use_cache = False
    adapter = attach(model, config)
    copied = CopiedUp(list(adapter.parameters()))
    optimizer = torch.optim.AdamW(copied.masters)
    adapter.begin_training(optimizer, 1000)
    batch, counter = batch_of(model), LiveBytes()
    with counter:
        counter.add([list(model.parameters()), list(model.buffers()), copied.masters])
        for _ in range(2):
            optimizer.zero_grad()
            label_loss(model, **batch).backward()
            copied.gather()
            nn.utils.clip_grad_norm_(copied.masters, 1.0)
            optimizer.step()
            copied.write()
    return counter.peak


@pytest.mark.parametrize("method", ["all", "FT"])
def test_t5_in_float16_is_forecast_as_it_is_loaded(t5: Path, method: str) -> None:
    expected = pytest.approx(measured(loaded(t5), CONFIGS[method]), rel=0.001)
    assert small_dry_run(loaded(t5), CONFIGS[method]).peak == expected
    assert small_dry_run(str(t5), CONFIGS[method], dtype="float16").peak == expected


@pytest.mark.parametrize("method", CONFIGS)
def test_the_closed_forms_parts_are_the_dry_runs(t5: Path, method: str) -> None:
    model = loaded(t5)
    found = budget(model, CONFIGS[method], batch_size=1, sequence_length=8).adapted
    run = dry_run(model, CONFIGS[method], batch_size=1, sequence_length=8)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert (found.weights + buffers, found.gradients) == (run.weights, run.gradients)
    assert found.optimizer == pytest.approx(run.optimizer, abs=4 * 200)  # AdamW's counts


@pytest.mark.parametrize("method", ["all", "FT", "BitFit"])
def test_norms_that_somebody_made_float32(method: str) -> None:
    """Within the 2 % that the tests hold GPT-2 to in one type."""
    expected = measured(upcast(gpt2().to(torch.bfloat16), "ln_"), CONFIGS[method])
    model = upcast(gpt2().to(torch.bfloat16), "ln_")
    assert small_dry_run(model, CONFIGS[method]).peak == pytest.approx(expected, rel=0.004)
    for dtype in (None, "bfloat16"):  # which it is in already
        options: Any = {"batch_size": BATCH, "sequence_length": LENGTH, "dtype": dtype}
        found = budget(model, CONFIGS[method], **options).adapted
        assert found.total == pytest.approx(expected, rel=0.02)


def test_a_dtype_that_is_asked_for_is_loaded_anew(t5: Path) -> None:
    """bfloat16 keeps nothing of T5's; float32 is float32."""
    numbers = sum(p.numel() for p in loaded(t5).parameters())
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        assert budget(loaded(t5), ALL, dtype=dtype).full_checkpoint_bytes == size * numbers
        assert budget(loaded(t5), ALL, dtype=dtype).notes == ()
    all_half = loaded(t5).half()  # it is there already, and as it is
    assert budget(all_half, ALL, dtype="float16").full_checkpoint_bytes == 2 * numbers


KINDS = ["t5", "gpt-oss", "ernie", "glm4-moe", "gpt2"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_transformers_loads(kind: str, dtype: str, tmp_path: Path) -> None:
    model: Any = tiny(kind) if kind in ("t5", "gpt2") else tiny_experts(kind)
    model.save_pretrained(tmp_path)
    real = type(model).from_pretrained(tmp_path, dtype=dtype)
    expected = {name: str(p.dtype).removeprefix("torch.") for name, p in real.named_parameters()}
    for found in (anatomy(model), anatomy(real)):
        assert {w.name: found.dtype_of(w, dtype) for w in found.weights} == expected
        assert found.weight_bytes(dtype) == sum(p.nbytes for p in real.parameters())
    assert anatomy(real).shape.dtype == dtype


def test_people_are_told(t5: Path) -> None:
    sizes = {name: p.numel() for name, p in tiny("t5").named_parameters()}
    share = 100 * sum(n for name, n in sizes.items() if "wo" in name) / sum(sizes.values())
    line = f"{share:.1f} % of the model's numbers are float32, not float16: DenseReluDense.wo"
    assert budget(loaded(t5), ALL).notes == (line,) == dry_run(str(t5), ALL, dtype="float16").notes
    ups = upcast(gpt2().to(torch.bfloat16), "ln_", "wpe")
    assert (
        budget(ups, ALL).notes[0].endswith("float32, not bfloat16: transformer.wpe, ln_1, ln_2, …")
    )


def test_a_packed_base_with_float32_norms() -> None:
    """As `prepare_model_for_kbit_training` leaves one: tables, norms and head in float32."""
    model: Any = quantize(tiny("llama"), Linear4bit).to(torch.bfloat16)
    upcast(model, "norm", "embed")
    floats = [p for p in model.parameters() if p.is_floating_point()]
    packed = sum(p.nbytes for p in model.parameters() if not p.is_floating_point())
    found = anatomy(model)
    assert found.weight_bytes(found.shape.dtype or "") == packed + sum(p.nbytes for p in floats)
