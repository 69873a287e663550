"""Tiny models whose own weights are trained, and their weights compared to the bit."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

import lora_lab as ll
from lora_lab.methods.full.adapter import FullAdapter

# A decoder with and one without tied embeddings, an encoder, an encoder-decoder.
FAMILIES = ["gpt2", "smollm", "llama", "bert", "t5"]
WITH_BIASES = ["gpt2", "bert", "opt", "qwen2"]
NEW = ll.BitFitConfig(new_biases=True)


def loss_of(model: nn.Module, batch: dict) -> torch.Tensor:
    """A sum of squares of all outputs: every weight shows in it."""
    return model(**batch).logits.square().sum()


def trained(model: nn.Module, config, name: str = "default", seed: int = 1) -> FullAdapter:
    """Attach, and move every tuned value, as an optimizer does, in place."""
    adapter = ll.attach(model, config, name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapter


def weights_of(model: nn.Module) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in expected
    )


def file_of(folder: Path) -> dict:
    return load_file(folder / "lora_lab_adapter.safetensors")
