"""A module's sites as one pair of factors, for formats that know one A and one B a module."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from lora_lab.checkpoint.modules import rows_of
from lora_lab.errors import AdapterError
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.lora.operator import Term

Factors = tuple[Tensor, Tensor]  # A (r, in) and B (out, r), on the CPU


def stacked(terms: Iterable[Term], scale: float = 1.0) -> Factors:
    """Return A and B with Σ sᵢ·BᵢAᵢ = scale·BA: A's below each other, B's side by side.

    Terms with `scale` for their own keep their B bit for bit; in others the ratio is rounded once.
    """
    terms = list(terms)
    A = torch.cat([term.A.detach().cpu() for term in terms])
    return A, torch.cat([_rescaled(term, scale) for term in terms], dim=1)


def stacked_sites(sites: Sequence[LoraSite], scale: float = 1.0) -> Factors:
    """Return A and B with ΔW = scale·BA over the whole of one module.

    Args:
        sites: the module's: one, or the slices of a fused matrix, which make B block-diagonal. A
            part of W₀ that training began at (PiSSA, OLoRA) is counted off: that doubles r.
        scale: of the pair.
    """
    terms = [term for site in sites for term in site.terms()]
    fused = sites[0].site.rows
    if fused is None:
        return stacked(terms, scale)
    A = torch.cat([term.A.detach().cpu() for term in terms])
    B = A.new_zeros(fused.groups * fused.group_size, A.shape[0])
    at = 0
    for term in terms:
        own = _rescaled(term, scale)
        B[rows_of(term.rows), at : at + own.shape[1]] = own
        at += own.shape[1]
    return A, B


def padded(factor: Tensor, dim: int, r: int) -> Tensor:
    """Return a factor with zeros behind it up to rank r: the product is the same.

    Args:
        factor: A or B.
        dim: which of its dimensions is the rank: 0 of A, 1 of B.
        r: the new rank.
    """
    missing = list(factor.shape)
    missing[dim] = r - missing[dim]
    return torch.cat([factor, factor.new_zeros(missing)], dim)


def refuse_others(adapter: LoraAdapter, who: str, kinds: Collection[str] = ("linear",)) -> None:
    """Raise unless an adapter is nothing but factors of certain kinds of layers.

    Args:
        adapter: the adapter.
        who: can hold only these, in the plural: "loralib's layers".
        kinds: of `Site.kind`.

    Raises:
        AdapterError: it uses DoRA, trains modules whole, or adapts a layer of another kind.
    """
    odd = [site.site for site in adapter.sites.values() if site.site.kind not in kinds]
    if adapter.lora.use_dora:
        what = "uses DoRA"
    elif adapter.lora.modules_to_save:
        what = f"trains {', '.join(adapter.lora.modules_to_save)} whole"
    elif odd:
        kind = "embedding" if odd[0].kind == "embedding" else "convolution"
        what = f"adapts the {kind} {odd[0].module}"
    else:
        return
    raise AdapterError(
        f"adapter {adapter.name!r} {what}, which {who} cannot hold; use save_adapter or "
        "export_merged"
    )


def _rescaled(term: Term, scale: float) -> Tensor:
    B = term.B.detach().cpu()
    return B if term.scale == scale else (B.double() * (term.scale / scale)).to(B.dtype)
