"""A module's sites as one update, for formats that know one A and one B per module."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab.checkpoint.adapter_file import rows_of
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import require_adapters
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.spectra.update import LowRankUpdate


def site_product(site: LoraSite, scale: float = 1.0) -> LowRankUpdate:
    """Return a site's ΔW = scale·BA on the CPU; what training started from (PiSSA) doubles r."""
    first, *others = (
        term._replace(A=term.A.detach().cpu(), B=term.B.detach().cpu())
        for term in site.update.terms()
    )
    return first.rescaled(scale).plus(*others)


def module_update(sites: Sequence[LoraSite], scale: float = 1.0) -> LowRankUpdate:
    """Return ΔW = scale·BA over the whole of one module, on the CPU.

    Args:
        sites: the module's: one, or the slices of a fused matrix, which make B block-diagonal.
        scale: s of the update.
    """
    products = [site_product(site, scale) for site in sites]
    for i, own in enumerate(products):
        if own.rows is not None:
            B = own.B.new_zeros(own.rows.groups * own.rows.group_size, own.r)
            B[rows_of(own.rows)] = own.B
            products[i] = own._replace(B=B, rows=None)
    return products[0].plus(*products[1:])


def padded(update: LowRankUpdate, r: int) -> LowRankUpdate:
    """Return the same ΔW with zeros in A and B up to rank r."""
    more = r - update.r
    A, B = F.pad(update.A, (0, 0, 0, more)), F.pad(update.B, (0, more))
    return update._replace(A=A, B=B)


def as_kernels(A: Tensor, B: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return A (r · groups, in channels, *kernel) and B (out channels, r, 1, …) of a convolution.

    Args:
        A: (r, in channels / groups · kernel size).
        B: (out channels, r).
        layer: the convolution.
    """
    conv = cast(nn.Conv2d, layer)
    r, groups, own = A.shape[0], conv.groups, conv.in_channels // conv.groups
    kernels = A.new_zeros(groups * r, conv.in_channels, *conv.kernel_size)
    for group in range(groups):
        channels = slice(group * own, (group + 1) * own)
        kernels[group * r : (group + 1) * r, channels] = A.view(r, own, *conv.kernel_size)
    return kernels, B.view(*B.shape, *(1 for _ in conv.kernel_size))


def refuse_others(adapter: LoraAdapter, who: str, kinds: Collection[str] = ("linear",)) -> None:
    """Raise unless an adapter is nothing but factors of certain kinds of layers.

    Args:
        adapter: the adapter.
        who: can hold only these, in the plural: "loralib's layers".
        kinds: of `Site.kind`.

    Raises:
        AdapterError: it uses DoRA, trains modules whole, has running statistics (BatchNorm's), or
            adapts a layer of another kind.
    """
    odd = [site.site for site in adapter.sites.values() if site.site.kind not in kinds]
    if adapter.lora.use_dora:
        what = "uses DoRA"
    elif adapter.lora.modules_to_save:
        what = f"trains {', '.join(adapter.lora.modules_to_save)} whole"
    elif require_adapters(adapter.model).statistics.learned(adapter.name):
        what = "has running statistics of its own"
    elif adapter.lora.lora_bias:
        what = "has biases in B (lora_bias)"
    elif adapter.biases.own:
        what = f"trains biases of the base (bias={adapter.lora.bias!r})"
    elif adapter.tokens.rows:
        what = f"learns the vectors of tokens in {', '.join(adapter.tokens.rows)}"
    elif odd:
        kinds_in_words = {"embedding": "embedding", "conv": "convolution"}
        kind = kinds_in_words.get(odd[0].kind, "parameter")
        what = f"adapts the {kind} {odd[0].name}"
    else:
        return
    raise AdapterError(
        f"adapter {adapter.name!r} {what}, which {who} cannot hold; use save_adapter or "
        "export_merged"
    )
