"""What PEFT makes of a file: which factors it ties, and which it misreads."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from lora_lab._util.transformers_private import tied_keys
from lora_lab.anatomy.model_config import embedding
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.read_past import read_past

ByPath = Mapping[str, nn.Module]
_NAMES = frozenset({"embed_tokens", "lm_head"})  # EMBEDDING_LAYER_NAMES


def ties_factors(adapter: LoraAdapter, path: str, head: str, by_path: ByPath) -> bool:
    """Whether PEFT 0.21.2 gives an output layer an embedding's factors (`ensure_weight_tying`).

    It looks for the layers that the model's class ties to its input embedding
    (`_get_module_names_tied_with_embedding`), if target_modules has one of two names, and
    modules_to_save none (`_check_tied_modules`). It compares their paths with a layer's bare name
    (`LoraModel._create_and_replace`): a layer within another module gets factors of its own, and
    one that has but the name of a tied one gets the embedding's.

    Args:
        adapter: on its model.
        path: of the adapted embedding.
        head: path of what has its weight.
        by_path: the model's modules, by every name.
    """
    table = embedding(adapter.model, "get_input_embeddings")
    leaves, saved = (
        {p.rpartition(".")[2] for p in ps} for ps in ((path, head), adapter.saved.copies)
    )
    return (
        table is by_path[path]
        and bool(leaves & _NAMES)
        and not saved & _NAMES
        and _tied_by_class(adapter.model, table, by_path) == {head}
        and [p for p in by_path if p.rpartition(".")[2] == head] == [head]
    )


def _tied_by_class(model: nn.Module, table: nn.Module, by_path: ByPath) -> set[str]:
    """Return the paths of what the model's classes tie to its input embedding, as PEFT has them."""
    keys = tied_keys(model)
    if getattr(getattr(model, "config", None), "tie_word_embeddings", None) is False or not keys:
        return set()
    if not isinstance(keys, Mapping):
        return {key.rpartition(".")[0] for key in keys}
    weight = getattr(table, "weight", None)
    ends = {f"{p}.weight" for p, m in by_path.items() if getattr(m, "weight", None) is weight}
    tied = set()
    for path, module in by_path.items():
        before = f"{path}." if path else ""
        found = tied_keys(module).items()
        tied |= {before + key for key, source in found if before + source in ends}
    return {key.rpartition(".")[0] for key in tied}


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


def misread(model: nn.Module, modules: Collection[str], by_path: ByPath) -> str | None:
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
