"""The dry run against the meter's measured peak, and how long it takes for Llama-2-7B."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from benchmarks._measure import Row, print_table
from lora_lab.budget.dry_run import DryRun, dry_run
from lora_lab.budget.meter import Meter
from lora_lab.budget.reading import MemoryReading
from lora_lab.configs import LoraConfig
from lora_lab.methods.api import attach
from lora_lab.methods.recompute_mlp import recomputed_mlps
from lora_lab.tasks.label_logits import label_logits

PLAN = LoraConfig(r=8, target_modules="all-linear")
REACH, REACH_SECONDS = 0.03, 5.0


class Size(NamedTuple):
    """A model's sizes and the batch that it is trained on."""

    width: int
    layers: int
    vocabulary: int
    batch: int
    length: int


def main(size: Size | None = None) -> None:
    """Print the table."""
    size = size or Size(256, 6, 8192, 8, 128)
    # What is imported once: transformers, and what fake tensors need.
    dry_run("gpt2-medium", PLAN, batch_size=1, sequence_length=8)
    rows = []
    for architecture, config in configs(size).items():
        for name, plan, checkpointing in (
            ("full fine-tuning", None, False),
            ("LoRA", PLAN, False),
            ("LoRA, gradient checkpointing", PLAN, True),
        ):
            found = dry_run(
                config,
                plan,
                batch_size=size.batch,
                sequence_length=size.length,
                gradient_checkpointing=checkpointing,
            )
            measured = measure(config, plan, checkpointing, size)
            rows.append(compare(f"{architecture}, {name}", found, measured))
    full, adapted = (
        dry_run("llama-2-7b", plan) for plan in (None, LoraConfig(r=8, target_modules=["q", "v"]))
    )
    seconds = full.seconds + adapted.seconds
    rows.append(
        Row(
            "Llama-2-7B, full fine-tuning and LoRA on q, v: both dry runs",
            f"{seconds:.1f} s",
            f"< {REACH_SECONDS:.0f} s",
            seconds < REACH_SECONDS,
            f"{full.peak / 2**30:.1f} and {adapted.peak / 2**30:.1f} GiB; {adapted.settings}",
        )
    )
    print_table(
        f"Dry run against measured peak, width {size.width}, {size.layers} layers, "
        f"{size.batch} × {size.length} tokens, float32 on the CPU",
        rows,
    )


def configs(size: Size) -> dict[str, Any]:
    """Return the two architectures' configs."""
    from transformers import GPT2Config, LlamaConfig

    llama = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    gpt2 = GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=size.vocabulary,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=8,
        n_positions=size.length,
        bos_token_id=None,
        eos_token_id=None,
    )
    return {"Llama": llama, "GPT-2": gpt2}


def measure(config: Any, plan: LoraConfig | None, checkpointing: bool, size: Size) -> MemoryReading:
    """Take two real steps and return what the meter saw."""
    import transformers

    config.use_cache = False
    model = getattr(transformers, config.architectures[0])(config).train()
    if plan:
        attach(model, plan)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    meter = Meter(model, optimizer)
    ids = torch.randint(0, size.vocabulary, (size.batch, size.length))
    mask = torch.ones_like(ids)
    for _ in range(2):
        optimizer.zero_grad()
        with meter.measure(ids.numel()):
            with label_logits(model, ids.numel()), recomputed_mlps(model):
                loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
            loss.backward()
        with meter.measure_update():
            optimizer.step()
    return meter.reading()


def compare(what: str, found: DryRun, measured: MemoryReading) -> Row:
    """Return a line of the table."""
    off = found.peak / measured.peak - 1
    note = f"measured {measured.peak / 2**20:,.1f} MiB; dry run {found.seconds:.1f} s"
    return Row(what, f"{off:+.2%}", f"± {REACH:.0%}", abs(off) <= REACH, note)


if __name__ == "__main__":
    main()
