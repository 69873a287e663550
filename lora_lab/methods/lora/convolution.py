"""LoRA on convolutions: the kernel, laid flat, is a matrix like any other.

H = A ∗ x has r channels a group, with the layer's own stride, padding and dilation; a 1×1 kernel B
takes them up. In a grouped convolution every group shares A and has its own rows of B, so that
ΔW = s·BA has the kernel's shape, and merging is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_lab._util.torch_private import convolve
from lora_lab.methods.lora.layers import AdaptedLayer, LayerSites


class ConvSites(LayerSites):
    """One adapter's site on a Conv1d, Conv2d or Conv3d."""

    plain = False

    def added(self, y: Tensor, x: Tensor, layer: AdaptedLayer) -> Tensor:
        """Return the convolution y of x with its update."""
        conv: Any = layer
        dimensions = len(conv.kernel_size)
        up = (F.conv1d, F.conv2d, F.conv3d)[dimensions - 1]
        ones = (1,) * dimensions
        for site in self.sites:
            inputs = x.to(site.B.device)
            inputs = F.dropout(inputs, site.dropout) if site.dropout and site.training else inputs
            A = site.A.to(x.dtype).view(site.r, -1, *conv.kernel_size)
            H = convolve(conv, inputs, torch.cat([A] * conv.groups))
            B = site.B.to(x.dtype).view(-1, site.r, *ones)
            y = y + (up(H, B, groups=conv.groups) * site.scale).to(y.device)
        return y
