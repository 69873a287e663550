"""What PEFT makes of a file: which factors it ties, and which it misreads."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from lora_lab.anatomy.model_config import embedding
from lora_lab.methods.lora.read_past import read_past


def ties_factors(model: nn.Module, path: str, head: str) -> bool:
    """Whether PEFT gives an output layer an embedding's factors: the model's own, of known names.

    Args:
        model: the base.
        path: of the embedding.
        head: path of what has its weight.
    """
    leaves = {name.rpartition(".")[2] for name in (path, head)}
    table = embedding(model, "get_input_embeddings")
    return table is model.get_submodule(path) and bool(leaves & {"embed_tokens", "lm_head"})


# PEFT refuses to adapt these of them: fused kernels read them past PEFT's layers.
_FUSED_IN = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
_FUSED = ("conv1d", "out_proj")
# Where the model's code does not tell: {model_type: (a name in the path, what happens)}.
_KNOWN = {
    "jamba": ("dt_proj", "PEFT's adapter does nothing at {}, whose weight the mixer reads"),
    "laguna": (
        "shared_experts",
        "transformers renames what PEFT reads of {}, which it then misses",
    ),
}


def misread(
    model: nn.Module, modules: Collection[str], by_path: Mapping[str, nn.Module]
) -> str | None:
    """Return what to say of modules where PEFT's adapter is refused, or does nothing."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    fused = [path for path in modules if path.rpartition(".")[2] in _FUSED]
    readers = read_past(by_path, only=True)
    past = [path for path in modules if by_path[path] in readers]
    name, happens = _KNOWN.get(str(model_type), ("", ""))
    known = [path for path in modules if name in path.split(".")]
    if model_type in _FUSED_IN and fused:
        what = f"PEFT refuses adapters at {fused[0]} of a {model_type} model"
    elif past:
        what = (
            f"PEFT's adapter does nothing at {past[0]}, whose weight {readers[by_path[past[0]]]} "
            "reads by itself"
        )
    elif known:
        what = happens.format(known[0])
    else:
        return None
    return f"{what}; load this file with LoRA Lab, or write the whole model with export_merged"
