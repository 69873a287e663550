"""Gradients that reach the optimizer when the base is in half precision."""

from __future__ import annotations

import torch
from transformers import LlamaConfig

import lora_lab as ll
from benchmarks._measure import Row
from benchmarks.gpu.lines import Place
from lora_lab._util.own_random import seeded
from lora_lab.budget.meter import Meter
from lora_lab.configs import TrainingConfig
from lora_lab.methods import attach
from lora_lab.training.step import Step
from lora_lab.training.trainer import Fit
from tests.helpers.loop_memory import collate, model_in

# Relative errors: without a loss scale float16's is 5.5 % at 4,096 tokens and 23 % at 32,768.
LIMITS = {torch.float16: 0.01, torch.bfloat16: 0.05}
PASSES = 8


def gradients(place: Place) -> list[Row]:
    """Compare the gradients of one step of the real loop, of few and of many tokens."""
    sizes = ((2, 16),) if place.small else ((2, 256), (4, 1024))
    rows = []
    for batch, length in sizes:
        exact = _gradients(place, torch.float32, batch, length)
        for dtype, limit in LIMITS.items():
            found = _gradients(place, dtype, batch, length)
            error = float((found - exact).norm() / exact.norm())
            zeros = float((found == 0).double().mean() - (exact == 0).double().mean())
            rows.append(
                Row(
                    f"gradients, {str(dtype).removeprefix('torch.')} base against float32, "
                    f"{PASSES * batch * length:,} tokens a step",
                    f"{error:.2%}",
                    f"≤ {limit:.0%}",
                    error <= limit,
                    f"{zeros:.1%} lost to zero",
                )
            )
    return rows


def _recipe(small: bool) -> LlamaConfig:
    width, layers = (64, 2) if small else (256, 8)
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=512 if small else 8192,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )


def _gradients(place: Place, dtype: torch.dtype, batch: int, length: int) -> torch.Tensor:
    """Return what AdamW was given, in float64: its first moment is (1 − β₁) of it.

    So a loss scale is seen as the loop has it, with its unscaling. A step that it skips, since its
    first scale is too large, leaves no moment and no change; the next one has the same data.
    """
    torch.manual_seed(0)
    model = model_in(_recipe(place.small), dtype, "cpu").to(place.device)
    config = ll.LoraConfig(r=4, lora_alpha=1, target_modules="all-linear", init_lora_weights=False)
    with seeded(1):
        adapter = attach(model, config)
    drawn = torch.Generator().manual_seed(2)
    rows = torch.randint(3, 500, (PASSES * batch, length), generator=drawn).tolist()
    found: list[torch.Tensor] = []

    def on_step(_: Step) -> bool:
        assert fit.optimizer is not None
        states = [fit.optimizer.state.get(p, {}) for p in adapter.parameters() if p.requires_grad]
        if all(state and int(state["step"]) == 1 for state in states):
            beta = fit.optimizer.param_groups[0]["betas"][0]
            moments = [state["exp_avg"].flatten().double() / (1 - beta) for state in states]
            found.append(torch.cat(moments).cpu())
        return bool(found)

    fit = Fit(
        model=model,
        adapter=adapter,
        examples=rows,
        collate=collate,
        training=TrainingConfig(
            max_steps=30,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=PASSES,
            max_grad_norm=0.0,
        ),
        folder=place.folder,
        meter=Meter(model),
        on_step=on_step,
    )
    fit.run()
    assert found, "AdamW has been given no gradient in 30 steps"
    return found[0]
