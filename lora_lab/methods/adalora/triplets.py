"""P, Λ and Q at one site, and how far P and Q are from orthogonal (Zhang et al., 2023)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab.methods.adalora.shrink_optimizer import Shrunk
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.lora.targets import TargetSpec
from lora_lab.methods.own_generator import generator

_STD = 0.02  # of P and Q at the start, the authors'


class AdaLoraSite(LoraSite):
    """P, Λ and Q at one site: ΔW = scale·PΛQ.

    Attributes:
        first_rank: triplets at the start.
        kept: for every triplet whether the last cut spared it. What it zeroed may grow again until
            the next one.
    """

    P: nn.Parameter  # (out, r)
    lambdas: nn.Parameter  # Λ's diagonal, (r,)
    Q: nn.Parameter  # (r, in)
    kept: list[bool]

    def __init__(self, planned: TargetSpec, config: LoraConfig, W: Tensor) -> None:
        super().__init__(planned, config, W)
        self._planned = planned
        self.first_rank = planned.r
        self.kept = [True] * planned.r

    def start(
        self, _config: LoraConfig, W: Tensor, r: int, _activations: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return Q and P, N(0, 0.02²)."""
        shapes = (r, W.shape[1]), (W.shape[0], r)
        Q, P = (torch.empty(shape, device="cpu", dtype=torch.float32) for shape in shapes)
        of = generator()
        return Q.normal_(std=_STD, generator=of), P.normal_(std=_STD, generator=of)

    def keep(self, A: Tensor, B: Tensor, learn_A: bool) -> None:  # noqa: ARG002
        """Make the parameters; Λ is zero."""
        self.P = nn.Parameter(B)
        self.lambdas = nn.Parameter(torch.zeros_like(B[0]))
        self.Q = nn.Parameter(A)

    @property
    def A(self) -> Tensor:  # type: ignore[override]  # noqa: N802
        """Q, (r, in)."""
        return self.Q

    @property
    def B(self) -> Tensor:  # type: ignore[override]  # noqa: N802
        """PΛ, (out, r)."""
        return self.P * self.lambdas

    @property
    def triplets(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        """P, λ and Q."""
        return self.P, self.lambdas, self.Q

    def replace(self, P: Tensor, lambdas: Tensor, Q: Tensor, kept: Sequence[bool]) -> None:
        """Put triplets in the place of these, as new parameters if there are more or fewer."""
        values = {"P": P, "lambdas": lambdas, "Q": Q}
        with torch.no_grad():
            for name, value in values.items():
                old = cast(nn.Parameter, getattr(self, name))
                if value.shape == old.shape:
                    old.copy_(value)
                    continue
                # What is empty learns nothing, and no norm can be taken of its gradient.
                new = nn.Parameter(value.to(old), requires_grad=value.numel() > 0)
                setattr(self, name, new)
        self.kept = list(kept)
        self.alpha = self._planned.alpha * self.r / self._planned.r  # so that α/r is s still

    def gather(self) -> Iterator[tuple[nn.Parameter, Shrunk]]:
        """Drop what the last cut zeroed; yield every old parameter and what is in its place."""
        old = self.triplets
        left = torch.tensor([i for i, kept in enumerate(self.kept) if kept], dtype=torch.int64)
        index = left.to(self.lambdas.device, non_blocking=True)
        dims = 1, 0, 0
        P, lambdas, Q = (
            p.detach().index_select(dim, index) for p, dim in zip(old, dims, strict=True)
        )
        self.replace(P, lambdas, Q, [True] * len(index))
        for before, after, dim in zip(old, self.triplets, dims, strict=True):
            if after is not before:
                yield before, Shrunk(after, dim, index)


def mean_deviation(matrices: Iterable[Tensor]) -> Tensor:
    """Return the mean of ‖MMᵀ − I‖_F over matrices M, those of one shape at a time.

    Args:
        matrices: at least one, (r, n) each, r at least 1.
    """
    same: defaultdict[Any, list[Tensor]] = defaultdict(list)
    for M in matrices:
        same[M.shape, M.device, M.dtype].append(M)
    norms = []
    for together in same.values():
        stacked = torch.stack(together)  # (count, r, n)
        unit = torch.eye(stacked.shape[1], dtype=stacked.dtype, device=stacked.device)
        off = stacked @ stacked.mT - unit
        norms.append(torch.linalg.vector_norm(off, dim=(1, 2)))
    return torch.cat([n.to(norms[0]) for n in norms]).mean()
