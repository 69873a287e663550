"""A and B at one site, however its layer uses them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_lab.errors import ConfigError
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.dora import row_norms
from lora_lab.methods.lora.targets import TargetSpec
from lora_lab.methods.own_generator import generator
from lora_lab.spectra.update import LowRankUpdate


class LoraSite(nn.Module):
    """A and B at one site: ΔW = scale·BA, of shape (out, in).

    Attributes:
        magnitude: DoRA's m, (out,); None without.
        bias: lora_bias's β, (out,); None without.
        initial: (A₀, B₀) where the factors started from W₀ (PiSSA, OLoRA): then
            ΔW = scale·(BA − B₀A₀). None otherwise.
    """

    A: nn.Parameter  # (r, in)
    B: nn.Parameter  # (out, r)
    A0: Tensor | None
    B0: Tensor | None

    def __init__(
        self,
        planned: TargetSpec,
        config: LoraConfig,
        W: Tensor,
        activations: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.site = planned.site
        self.scale = planned.scale
        self.alpha = planned.alpha
        self.dropout = config.lora_dropout
        r, (d, k) = planned.r, W.shape
        A, B = torch.empty(r, k, device="meta"), torch.empty(d, r, device="meta")
        if not W.is_meta:
            shapes = A.shape, B.shape
            A, B = self.start(config, W, r, activations)
            if (A.shape, B.shape) != shapes:
                raise ConfigError(
                    f"init_lora_weights={config.init_lora_weights!r} made A {tuple(A.shape)} and B "
                    f"{tuple(B.shape)}; make them {(r, k)} and {(d, r)}"
                )
        dtype = torch.promote_types(W.dtype, torch.float32)
        # Copies: an initialization may have returned views of W₀.
        A, B = (f.to(W.device, dtype).clone(memory_format=torch.contiguous_format) for f in (A, B))
        self.keep(A, B, learn_A=not config.use_lorafa)
        from_base = config.init.from_base
        # Not in any state dict of the model: an adapter is saved without them.
        self.register_buffer("A0", self.A.detach().clone() if from_base else None, persistent=False)
        self.register_buffer("B0", self.B.detach().clone() if from_base else None, persistent=False)
        self.magnitude = nn.Parameter(row_norms(W).to(dtype)) if config.use_dora else None
        self.bias = None
        if config.lora_bias:
            beta = torch.zeros(d, device=W.device, dtype=dtype)
            if config.init_lora_weights is False:  # as nn.Linear's
                nn.init.uniform_(beta, -(r**-0.5), r**-0.5, generator())
            self.bias = nn.Parameter(beta)

    def start(
        self, config: LoraConfig, W: Tensor, r: int, activations: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return A and B at the start; see `Initialization.start`."""
        return config.init.start(W, r, activations, self.scale)

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
