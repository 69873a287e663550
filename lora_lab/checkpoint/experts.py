"""Routed experts in PEFT's files, where one tensor holds the weights of all of them."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_lab._util.torch_private import parameters_of
from lora_lab.anatomy.types import Site
from lora_lab.checkpoint.files import quoted
from lora_lab.checkpoint.stacked_experts import check_experts
from lora_lab.errors import AdapterError
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.spectra.update import LowRankUpdate

# PEFT (0.19 and later, with transformers 5) reads these names in `target_modules` as the experts of
# a file written with transformers 4, wherever in the model they stand.
_NAMES_OF_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


def taken_for_experts(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Return the modules whose factors PEFT would look for in experts that are one tensor each."""
    named = [path for path in paths if path.rpartition(".")[2] in _NAMES_OF_EXPERTS]
    if named and any("gate_up_proj" in parameters_of(module) for module in model.modules()):
        return named
    return []


def named_as_parameters(model: nn.Module, paths: Iterable[str], config: LoraConfig) -> list[str]:
    """Return the modules that a file has to name as parameters ("…down_proj.weight").

    What is named so, PEFT leaves where it is. It has neither DoRA nor dropout on a parameter.
    """
    found = taken_for_experts(model, paths)
    if found and config.use_dora:
        warnings.warn(
            f"PEFT with transformers 5 takes {found[0]!r} for this model's routed experts, and has "
            "no DoRA under the other name that it knows; load this file with LoRA Lab, or write "
            "the whole model with export_merged",
            stacklevel=5,
        )
        return []
    if found and config.lora_dropout:
        warnings.warn(
            f"lora_dropout={config.lora_dropout} is written as 0: in a model with routed experts "
            f"PEFT has to be given {found[0]!r} as a parameter, and has no dropout on those",
            stacklevel=5,
        )
    return found


class HeldFactors(NamedTuple):
    """One parameter's factors in PEFT's form.

    Attributes:
        name: the parameter's.
        r: the rank of one expert's.
        alpha: α.
        tensors: {name in the file, without PEFT's prefix: tensor}.
    """

    name: str
    r: int
    alpha: float
    tensors: dict[str, Tensor]


def held_factors(
    sites: Iterable[LoraSite], by_path: Mapping[str, nn.Module]
) -> Iterator[HeldFactors]:
    """Yield the factors of parameters as PEFT's `ParamWrapper` has them.

    Several parameters of one module nest: the first is innermost, below "base_layer" of the others.
    """
    together: defaultdict[str, list[LoraSite]] = defaultdict(list)
    for site in sites:
        together[site.site.module].append(site)
    for path, own in together.items():
        order = list(parameters_of(by_path[path]))
        own.sort(key=lambda site: order.index(site.site.parameter))
        for depth, site in enumerate(reversed(own)):
            key = path + ".base_layer" * depth
            A, B = _peft_factors(site, by_path[path])
            tensors = {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}
            yield HeldFactors(site.site.name, site.r, site.alpha, tensors)


def _peft_factors(site: LoraSite, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return A (experts · r, in) and B (out, r · experts): A by expert, B by rank."""
    A, B = (factor.detach().cpu() for factor in (site.A, site.B))
    if site.site.kind == "experts":
        if is_swapped(site.site, module):
            A, B = B.mT, A.mT
        A, B = A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)
    return A.clone(memory_format=torch.contiguous_format), B.contiguous().clone()


def is_swapped(site: Site, module: nn.Module) -> bool:
    """Whether PEFT takes a site's inputs for its outputs: Llama 4 does not say how it stores them.

    PEFT reads (experts, out, in) unless the module's `is_transposed` says otherwise.
    """
    return bool(getattr(module, "is_transposed", False)) != site.transposed


def match_experts(
    experts: Mapping[str, Sequence[LowRankUpdate]],
    sites: Mapping[str, Site],
    by_path: Mapping[str, nn.Module],
) -> dict[str, list[LowRankUpdate]]:
    """Return {site name: its experts' updates} as the site's factors have them.

    Args:
        experts: a file's, {parameter's name: its experts' updates}.
        sites: {name: site} of the model's parameters.
        by_path: the model's modules.

    Raises:
        AdapterError: the adapter is for another base.
    """
    found = {}
    for name, updates in experts.items():
        site = sites.get(name)
        if site is None:
            raise AdapterError(
                f"the adapter is for another base: this model has no parameter {quoted(name)} that "
                "could be adapted"
            )
        own = list(updates)
        if site.kind == "experts" and is_swapped(site, by_path[site.module]):
            own = [update._replace(A=update.B.T, B=update.A.T) for update in own]
        check_experts(name, own, site.experts, (site.out_features, site.in_features))
        found[name] = own
    return found


def refuse_interleaved(name: str, module: nn.Module) -> None:
    """Refuse single experts where gate's and up's rows alternate, or are stored otherwise.

    Raises:
        AdapterError: names the parameter.
    """
    if getattr(module, "is_transposed", False) or not getattr(module, "is_concatenated", True):
        raise AdapterError(
            f"{name} holds gate and up in another order than a file of single experts has them; "
            "fetch an adapter that names target_parameters"
        )
