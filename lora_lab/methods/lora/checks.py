"""What a model must be for LoRA's factors: asked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.types import Site
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.embedding import check_embedding
from lora_lab.methods.lora.experts import held_parameter
from lora_lab.methods.lora.own_forward import hold_weight
from lora_lab.methods.lora.targets import TargetSpec
from lora_lab.methods.offload import weight_keys


def check_site(
    site: Site, module: nn.Module, config: LoraConfig, read: Mapping[nn.Module, str]
) -> None:
    """Refuse what cannot be adapted, before anything is changed."""
    held = site.kind in ("experts", "parameter")
    weight = held_parameter(module, site.parameter) if held else hold_weight(module)
    if packed := packing(module):
        if module in read:
            raise ConfigError(
                f"{read[module]} reads the {packed} weight of {site.module} itself, past its "
                "forward; leave it out of target_modules, or load the base unquantized"
            )
        if config.use_dora or config.init.from_base:  # what a layer reads has nothing to do with it
            start = f"init_lora_weights={config.init_lora_weights!r}"
            option = "use_dora" if config.use_dora else start
            raise ConfigError(
                f"{option} starts from W₀ in floating point, and {site.module} holds {packed} "
                "weights; leave the option out, or load the base unquantized"
            )
        return
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else "no tensor"
        raise AdapterError(
            f"{site.module} holds {kind}, not floating-point weights; load it unquantized"
        )
    if option := config.not_for(site.kind):
        also = " and convolutions" if option == "use_dora" else ""
        raise ConfigError(
            f"{option} is for linear layers{also}, and {site.name} is none; leave it out of "
            f"{'target_parameters' if held else 'target_modules'}"
        )
    if config.use_dora and getattr(module, "groups", 1) > 1:
        raise ConfigError(
            f"use_dora has no lengths for a grouped convolution, in PEFT neither, and {site.name} "
            "is one; leave it out of target_modules"
        )
    if held and config.lora_dropout:
        raise ConfigError(
            f"lora_dropout={config.lora_dropout} drops what a layer reads, and {site.name} is a "
            "parameter, of which only W₀ + ΔW is seen; set lora_dropout=0"
        )
    if site.kind == "embedding" and config.use_lorafa:
        raise ConfigError(
            f"use_lorafa freezes A, which is zero at the start in an embedding ({site.module}), so "
            "that nothing would be learned; leave it out of target_modules"
        )
    if site.kind == "embedding":
        check_embedding(site.module, module)


def each_weight_once(specs: list[TargetSpec], by_path: Mapping[str, nn.Module]) -> list[TargetSpec]:
    """Return the specs without embeddings whose weight another one of them has (T5's two)."""
    found: dict[object, TargetSpec] = {}
    key = weight_keys(by_path)
    for p in specs:
        found.setdefault(key(p.site.module) if p.site.kind == "embedding" else p, p)
    return list(found.values())
