"""What is done with an adapter takes as many calls for each matrix, however many there are."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lora_lab import methods
from lora_lab.anatomy import anatomy
from lora_lab.checkpoint import export_uniform, load_adapter, save_adapter
from lora_lab.configs import AdaLoraConfig, IA3Config, LoraConfig, OFTConfig
from lora_lab.methods.lora.targets import config_from_ranks

LAYERS = (3, 6, 12)


def painted(model: Any) -> LoraConfig:
    rng = random.Random(0)
    return config_from_ranks(
        anatomy(model), {s.name: rng.randint(1, 8) for s in anatomy(model).grid_sites}
    )


CONFIGS: dict[str, Callable[[Any], Any]] = {
    "LoRA": lambda _: LoraConfig(r=4, target_modules="all-linear"),
    "DoRA": lambda _: LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "painted ranks": painted,
    "every module by its path": lambda model: LoraConfig(
        r=4,
        target_modules=[site.module for site in anatomy(model).grid_sites],
        rank_pattern={site.module: 2 for site in anatomy(model).grid_sites[::2]},
    ),
    "AdaLoRA": lambda _: AdaLoraConfig(init_r=4, target_r=2),
    "IA3": lambda _: IA3Config(),
    "OFT": lambda _: OFTConfig(oft_block_size=4, r=0),
}


def calls_of(work: Callable[[], object]) -> int:
    """Count the functions that are called, of Python and of C."""
    count = 0

    def note(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.collect()
    gc.disable()  # what earlier tests left behind calls its finalizers when it is collected
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def tiny(layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=layers,
            hidden_size=16,
            intermediate_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=64,
        )
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_matrix_costs_the_same(tmp_path: Path, name: str) -> None:
    calls: dict[str, list[int]] = {}
    for layers in (1, *LAYERS):  # the first for what is imported and made once
        model, folder = tiny(layers), tmp_path / str(layers)
        config = CONFIGS[name](model)
        own = tiny(layers)

        def switch(own: Any = own) -> None:
            adapter = next(iter(methods.attached(own)))
            methods.activate(own, None)
            methods.activate(own, adapter)

        verbs: dict[str, Callable[[], object]] = {
            "attach": lambda model=model, config=config: methods.attach(model, config),
            "save": lambda model=model, folder=folder: save_adapter(model, folder),
            "load": lambda own=own, folder=folder: load_adapter(own, folder),
            "switch": switch,
            "merge": lambda own=own: methods.merge(own),
            "unmerge": lambda own=own: methods.unmerge(own),
            "detach": lambda own=own: methods.detach(own, next(iter(methods.attached(own)))),
        }
        if name in ("LoRA", "painted ranks"):
            verbs["export"] = lambda m=model, f=folder: export_uniform(m, f"{f}-uniform")
        for verb, work in verbs.items():
            calls.setdefault(verb, []).append(calls_of(work))
    for verb, (_, few, some, many) in calls.items():
        # Twice as many matrices more are twice as many calls more; four times if it is quadratic.
        assert many - some < 2.2 * (some - few) + 100, (verb, calls[verb])
