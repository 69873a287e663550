"""DoRA: W' = m · (W₀ + ΔW)/‖W₀ + ΔW‖, a learned length for every output row (Liu et al., 2024).

The norm is not differentiated (section 4.3 of the paper), and never built: with W₀ fixed,
‖w + s·bA‖² = ‖w‖² + 2s·(wAᵀ)·b + s²·b(AAᵀ)bᵀ for each row, O(out·in·r) in every forward pass,
or once while weights are known to be steady (`steady_weights`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lora_lab.methods.lora.convolution import ConvSites
from lora_lab.methods.lora.layers import AdaptedLayer, LayerSites, owned_rows
from lora_lab.methods.lora.operator import owned_columns
from lora_lab.methods.lora.own_forward import PATCHED, base_forward, base_tensor
from lora_lab.methods.offload import check_present
from lora_lab.methods.steady_weights import once_while_steady

if TYPE_CHECKING:
    from lora_lab.methods.lora.factors import LoraSite


class DoraSites(LayerSites):
    """One adapter's DoRA sites on one layer."""

    plain = False

    def output(self, x: Tensor, layer: AdaptedLayer) -> Tensor:
        """Return gain · (W₀x + updates) + bias, (..., out)."""
        if PATCHED in layer.__dict__ or not layer.plain_product:
            check_present(self, self.path)
            return self.added(base_forward(layer, x), x, layer)
        return self._lengthened(self.product(x, layer, bias=None), layer)

    def added(self, y: Tensor, x: Tensor, layer: AdaptedLayer) -> Tensor:
        """Return the same of the base's output y."""
        bias = self._bias(layer, y)
        return self._lengthened(super().added(y if bias is None else y - bias, x, layer), layer)

    def _lengthened(self, z: Tensor, layer: AdaptedLayer) -> Tensor:
        y = z * self._in_place(self._gain(layer, z), layer)
        bias = self._bias(layer, y)
        return y if bias is None else y + bias

    def _bias(self, layer: AdaptedLayer, y: Tensor) -> Tensor | None:
        if (bias := layer.bias) is None:
            return None
        if bias.is_meta:
            bias = cast(nn.Parameter, base_tensor(cast(nn.Module, layer), "bias").to(y.device))
        return self._in_place(bias, layer)

    @staticmethod
    def _in_place(numbers: Tensor, layer: AdaptedLayer) -> Tensor:  # noqa: ARG004
        """Return one number an output (out,) in the dimension that outputs are in."""
        return numbers

    def effective(self, weight: Tensor) -> Tensor:
        """Return W' in float32 (float64 for a float64 weight)."""
        whole = super().effective(weight)
        for site in self.sites:
            own = owned_rows(whole, site.site)
            rows = own.reshape(site.site.out_features, -1).clone()
            gain = cast(Tensor, site.magnitude) / _divisors(rows.detach().norm(dim=1))
            own.copy_((rows * gain[:, None]).view(own.shape))
        return whole

    def _gain(self, layer: AdaptedLayer, z: Tensor) -> Tensor:
        """Return m/‖W₀ + ΔW‖ for every output of the layer, 1 where no site owns it."""
        precise = torch.promote_types(z.dtype, torch.float32)
        gain = torch.ones(z.shape[-1], dtype=precise, device=z.device)
        for site in self.sites:
            own = cast(Tensor, site.magnitude) / self._norm(site, layer)
            if site.site.rows is None:
                gain = own
            else:
                columns = owned_columns(gain, site.site.rows)
                columns.copy_(own.view(columns.shape))
        return gain.to(z)

    def _norm(self, site: LoraSite, layer: AdaptedLayer) -> Tensor:
        def compute() -> Tensor:
            weight = base_tensor(cast(nn.Module, layer))
            W = owned_rows(weight, site.site).reshape(site.site.out_features, -1)
            with torch.no_grad(), torch.autocast(W.device.type, enabled=False):
                return updated_row_norms(W, site.A, site.B, site.scale)

        return once_while_steady(site, compute)


class DoraConvSites(DoraSites, ConvSites):
    """One adapter's DoRA site on a convolution: a length for every kernel, as in PEFT."""

    @staticmethod
    def _in_place(numbers: Tensor, layer: AdaptedLayer) -> Tensor:
        return numbers.view(-1, *(1 for _ in cast(nn.Conv2d, layer).kernel_size))


def zero_rows_warning(sites: Iterable[LoraSite]) -> str | None:
    """Return what PEFT makes of rows of zeros, where there are some; here they stay zero."""
    for site in sites:
        if site.magnitude is not None and (count := int((site.magnitude == 0).sum())):
            return (
                f"W₀ has {count} rows of zeros at {site.site.name}, from which PEFT's DoRA makes "
                "NaN; for PEFT leave the module out of target_modules, or write the whole model "
                "with ll.export_merged(model, folder)"
            )
    return None


def row_norms(W: Tensor) -> Tensor:
    """Return ‖w‖ of every row of W (out, in), float32 or better."""
    return W.detach().to(torch.promote_types(W.dtype, torch.float32)).norm(dim=1)


def updated_row_norms(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """Return ‖w + s·bA‖ of every row of W + s·BA, which is not built; ∞ for a row of zeros.

    Args:
        W: (out, in).
        A: (r, in).
        B: (out, r).
        scale: s.
    """
    crossed = ((W.to(A.dtype) @ A.T) * B).sum(1)
    own = ((B @ (A @ A.T)) * B).sum(1)
    rows = torch.linalg.vector_norm(W, dim=1, dtype=A.dtype)
    squared = rows.square() + 2 * scale * crossed + scale**2 * own
    # Rounding may carry a row that the update cancels below zero.
    return _divisors(squared.clamp_min(0).sqrt())


def _divisors(norms: Tensor) -> Tensor:
    """Return ∞ for a row that is zero: it has no direction, and whatever its m is, it stays zero.

    Bases have such rows (511 in Llama-3.1-8B's first o_proj); m/‖w‖ is 0/0 there, NaN in PEFT.
    """
    return norms.masked_fill(norms <= torch.finfo(norms.dtype).tiny ** 0.5, torch.inf)
