"""loralib's files and a model: written from its adapter, and read onto it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lora_lab._util.files import disk_errors, make_dirs, user_path, write_file_atomic
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.types import Anatomy
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.checkpoint.adapter_file import AdapterFile, check_shape, match_sites
from lora_lab.checkpoint.loralib import FACTS_KEY, FUSED, encode_facts, read_loralib
from lora_lab.checkpoint.saving import named_adapter, tidy
from lora_lab.checkpoint.stacking import module_update, padded, refuse_others, site_product
from lora_lab.errors import AdapterError
from lora_lab.methods.api import attach
from lora_lab.methods.attached import activate, one_step
from lora_lab.methods.finite import check_finite
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.lora.targets import config_from_ranks
from lora_lab.methods.turns import turn
from lora_lab.spectra.update import LowRankUpdate

_PICKLES = (".pt", ".bin")


def save_loralib(model: nn.Module, path: str | Path, name: str | None = None) -> float:
    """Write the state dict of an adapter for a model made of loralib's own layers.

    q, k and v of equal width in one matrix are written as a `MergedLinear` with the `enable_lora`
    of what is adapted; embeddings as an `Embedding`, and every other module as a `Linear`. Smaller
    ranks within a MergedLinear are padded with zeros. An output layer tied to an embedding has the
    update too where loralib has merged it, which its eval mode does.

    Args:
        model: a model with a LoRA adapter on linear layers and embeddings.
        path: .safetensors, or .pt or .bin for `torch.load`.
        name: which adapter; the one in force by default.

    Returns:
        α, with which loralib's layers are to be made: its own files do not hold it. Where an
        adapter's scales are not one α over the ranks, the difference is in B.

    Raises:
        AdapterError: loralib has no such layer (DoRA, modules trained whole; its convolutions are
            factored otherwise), or the file cannot be written.
    """
    path = user_path(path, AdapterError)
    if path.suffix not in (".safetensors", *_PICKLES):
        raise AdapterError(
            f"{path.name} is no name for loralib's file; end it in .safetensors or .pt"
        )
    with turn(model), one_step(model, name):
        return _save(unwrapped(model), path, name)


def _save(model: nn.Module, path: Path, name: str | None) -> float:
    adapter = named_adapter(model, name)
    refuse_others(adapter, "loralib's layers", ("linear", "embedding"))
    grouped: dict[str, list[LoraSite]] = {}
    for site in adapter.sites.values():
        grouped.setdefault(site.site.module, []).append(site)
    alphas = Counter(s[0].scale * _rank(s) for s in grouped.values())
    alpha = alphas.most_common(1)[0][0]
    tensors = {}
    slices = {}
    for module, sites in grouped.items():
        scale = alpha / _rank(sites)
        if _thirds(sites):
            slices[module] = [site.site.role for site in sites]
            update = _merged_linear(sites, scale)
        else:
            update = module_update(sites, scale)
        tensors[f"{module}.lora_A"] = update.A.contiguous()
        tensors[f"{module}.lora_B"] = update.B.contiguous()
    check_finite(adapter.name, tensors)
    with disk_errors(path, AdapterError, "another folder"):
        make_dirs(path.parent)
        with write_file_atomic(path) as place:
            _write(tensors, place, encode_facts(alpha, slices), pickled=path.suffix in _PICKLES)
    return alpha


def load_loralib(
    model: nn.Module,
    path: str | Path,
    name: str = "default",
    *,
    lora_alpha: float | None = None,
    slices: Sequence[str] | None = None,
    allow_pickle: bool = False,
) -> LoraAdapter:
    """Attach an adapter from a file of loralib's.

    Names and shapes are compared with the model before anything is changed.

    Args:
        model: the bare base; its own layers stay.
        path: .safetensors, or a pickle of the state dict.
        name: of the new adapter.
        lora_alpha: α of the training. Only files of `save_loralib` hold it themselves.
        slices: which of q, k and v a MergedLinear adapts; by default what the file tells, or q and
            v of two, with a warning.
        allow_pickle: whether a pickle may be read, with `weights_only=True`.

    Raises:
        AdapterError: the file is missing, damaged or foreign, holds more than factors of linear
            layers and embeddings, is for another base, or α is missing.
    """
    file = read_loralib(Path(path), lora_alpha, slices=slices, allow_pickle=allow_pickle)
    others = {kind: names for kind, names in file.left_out.items() if kind != "embeddings"}
    for kind, names in others.items():
        raise AdapterError(
            f"{path} holds {kind} too ({names[0]}), and only factors of linear layers and "
            "embeddings are attached; take the rest out of the file"
        )
    model = unwrapped(model)
    map_ = anatomy(model)
    factors = _matched(file, map_)
    for assumption in file.assumptions:
        warnings.warn(assumption, stacklevel=2)
    ranks = {site: update.r for site, update in factors.items()}
    some = next(iter(factors.values()))
    # Its α, whatever the rank: s = α/r of every layer, as loralib has it.
    config = config_from_ranks(map_, ranks, LoraConfig(lora_alpha=tidy(some.scale * some.r)))
    adapter = cast(LoraAdapter, attach(model, config, name, activate=False))
    with torch.no_grad():
        for site, update in factors.items():
            adapter.sites[site].A.copy_(torch.from_numpy(update.A))
            adapter.sites[site].B.copy_(torch.from_numpy(update.B))
    activate(model, name)
    return adapter


def _matched(file: AdapterFile, map_: Anatomy) -> dict[str, LowRankUpdate]:
    """Return {site name: its update}; what is an embedding the model tells, not the name."""
    tables = {site.module: site for site in map_.others if site.kind == "embedding"}
    modules = {**file.modules, **file.embeddings}
    updates = {}
    for path in modules.keys() & tables.keys():
        check_shape(path, modules[path], tables[path])
        updates[tables[path].name] = modules.pop(path)
    return updates | match_sites(replace(file, modules=modules, embeddings={}), map_)


def _rank(sites: Sequence[LoraSite]) -> int:
    """Return the r that loralib's layer is made with."""
    ranks = [sum(term.r for term in site.update.terms()) for site in sites]
    return max(ranks) if _thirds(sites) else sum(ranks)


def _thirds(sites: Sequence[LoraSite]) -> bool:
    """Whether a MergedLinear holds these slices: each is one third of the rows, of q, k and v."""
    return all(_third(site) is not None for site in sites)


def _third(site: LoraSite) -> int | None:
    rows = site.site.rows
    if rows is None or rows.groups != 1 or rows.group_size != len(FUSED) * rows.width:
        return None
    index, rest = divmod(rows.offset, rows.width)
    named = site.site.name == f"{site.site.module}[{FUSED[index]}]"
    return index if named and not rest else None


def _merged_linear(sites: Sequence[LoraSite], scale: float) -> LowRankUpdate:
    """Return A (n·r, in) and B (n·width, r) of slices in the order of their rows."""
    r = _rank(sites)
    slices = [padded(site_product(site, scale), r) for site in sites]
    A, B = (torch.cat([getattr(own, name) for own in slices]) for name in "AB")
    return LowRankUpdate(A, B, scale)


def _write(tensors: dict[str, Tensor], path: Path, facts: str, *, pickled: bool) -> None:
    if pickled:
        with path.open("wb") as file:
            torch.save(tensors, file)
        return
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt", FACTS_KEY: facts})
