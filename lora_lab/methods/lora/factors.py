"""A and B at one site, however its layer uses them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_lab.methods.lora import init
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.dora import row_norms
from lora_lab.methods.lora.targets import SitePlan
from lora_lab.spectra.update import LowRankUpdate


class LoraSite(nn.Module):
    """A and B at one site: ΔW = scale·BA, of shape (out, in).

    Attributes:
        magnitude: DoRA's m, (out,); None without.
        initial: (A₀, B₀) where the factors started from W₀ (PiSSA, OLoRA): then
            ΔW = scale·(BA − B₀A₀). None otherwise.
    """

    A: nn.Parameter  # (r, in)
    B: nn.Parameter  # (out, r)
    A0: Tensor | None
    B0: Tensor | None

    def __init__(self, planned: SitePlan, config: LoraConfig, W: Tensor) -> None:
        super().__init__()
        self.site = planned.site
        self.scale = planned.scale
        self.alpha = planned.alpha
        self.dropout = config.lora_dropout
        d, k = planned.site.out_features, planned.site.in_features
        from_base = config.starts_from_base
        # Drawn on the CPU, so that a seed gives the same adapter on every device.
        device = "meta" if W.is_meta else W.device if from_base else "cpu"
        A = torch.empty(planned.r, k, device=device)
        B = torch.zeros(d, planned.r, device=device)
        if not W.is_meta:
            self.initialise(A, B, config.init_lora_weights, W)
        dtype = torch.promote_types(W.dtype, torch.float32)
        self.keep(A.to(W.device, dtype), B.to(W.device, dtype), learn_A=not config.use_lorafa)
        # Not in any state dict of the model: an adapter is saved without them.
        self.register_buffer("A0", self.A.detach().clone() if from_base else None, persistent=False)
        self.register_buffer("B0", self.B.detach().clone() if from_base else None, persistent=False)
        self.magnitude = nn.Parameter(row_norms(W).to(dtype)) if config.use_dora else None

    def initialise(self, A: Tensor, B: Tensor, how: bool | str, W: Tensor) -> None:
        """Fill A and B in place; see `initial.fill`."""
        init.fill(A, B, how, W, self.scale)

    def keep(self, A: Tensor, B: Tensor, learn_A: bool) -> None:
        """Make the parameters."""
        self.A = nn.Parameter(A, requires_grad=learn_A)
        self.B = nn.Parameter(B)

    @property
    def r(self) -> int:
        """The rank of BA."""
        return self.A.shape[0]

    @property
    def initial(self) -> tuple[Tensor, Tensor] | None:
        """(A₀, B₀) that the factors started from, where these came from W₀."""
        return None if self.A0 is None or self.B0 is None else (self.A0, self.B0)

    @property
    def update(self) -> LowRankUpdate:
        """ΔW with the parameters as they are now."""
        return LowRankUpdate(self.A, self.B, self.scale, self.site.rows, self.initial)

    def delta(self) -> Tensor:
        """Return ΔW = s·BA or s·(BA − B₀A₀), (out, in), built in full: for merging."""
        update = self.B @ self.A
        if self.initial is not None:
            A0, B0 = self.initial
            update = update - B0 @ A0
        return update * self.scale

    def extra_repr(self) -> str:
        """Show shapes and scale in the model's repr."""
        return f"{self.site.role}, r={self.r}, scale={self.scale:g}"
