"""AdaLoRA's budget: how many triplets are left after which step, and which (Zhang et al., 2023).

A triplet i of a matrix is a column of P, λ_i and a row of Q. Steps are counted from 1: step t is
over when the optimizer has moved the weights for the t-th time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_lab._util.torch_private import distances, products, update_averages


@dataclass(frozen=True)
class RankAllocator:
    """b(t), the number of triplets that all matrices together keep after step t.

    b(0) up to step tinit; b(T) from step T − tfinal on; between them (section 3.3)
    b(T) + (b(0) − b(T))·(1 − (t − tinit)/(T − tinit − tfinal))³, rounded down. The paper prints
    t − tinit − tfinal in the numerator: a misprint, by which the budget would jump up at tinit. The
    authors' code and PEFT's have what stands here.

    Attributes:
        first: b(0).
        last: b(T).
        tinit: steps before the first cut.
        tfinal: steps after the last cut.
        deltaT: a cut comes after every step that it divides.
        total: T, steps of the whole training.
    """

    first: int
    last: int
    tinit: int
    tfinal: int
    deltaT: int  # noqa: N815 (the config's name)
    total: int

    @property
    def final_step(self) -> int:
        """The step with the last cut."""
        return self.total - self.tfinal

    def triplets(self, step: int) -> int:
        """Return b(t)."""
        if step <= self.tinit:
            return self.first
        if step >= self.final_step:
            return self.last
        to_go = 1 - (step - self.tinit) / (self.final_step - self.tinit)
        return int((self.first - self.last) * to_go**3 + self.last)

    def cuts(self, step: int) -> bool:
        """Whether the weakest triplets are cut after this step."""
        if step >= self.final_step:
            return True
        return step > self.tinit and step % self.deltaT == 0

    def scores(self, step: int) -> bool:
        """Whether this step's gradients count.

        As in the authors' code not those of the step of the last cut itself: it goes by what was
        known before. Algorithm 1 has no final phase.
        """
        return step < self.final_step


@dataclass
class Scores:
    """The importance of single weights: s = Ī·Ū, from sensitivities |w·∂L/∂w| (section 3.2).

    Attributes:
        weights: any parameters; all methods take and return lists in their order.
        sensitivity: Ī of each, an average over steps.
        uncertainty: Ū of each, the average of |I − Ī|.
    """

    weights: Sequence[Tensor]
    beta1: float
    beta2: float
    sensitivity: list[Tensor] = field(default_factory=list)
    uncertainty: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sensitivity = self.sensitivity or [torch.zeros_like(w) for w in self.weights]
        self.uncertainty = self.uncertainty or [torch.zeros_like(w) for w in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take up the gradients that the weights have now.

        I = |w·∇w|; Ī ← β₁Ī + (1 − β₁)I; Ū ← β₂Ū + (1 − β₂)|I − Ī| with the new Ī (equations 8 to
        10, in the order of the authors' code). Without a gradient I is 0.
        """
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        weights = [w.detach() for w in self.weights]
        now = products(weights, gradients)
        update_averages(self.sensitivity, now, 1 - self.beta1)
        update_averages(self.uncertainty, distances(now, self.sensitivity), 1 - self.beta2)

    def each(self) -> list[Tensor]:
        """Return s of every single weight, a tensor like each of `weights`."""
        pairs = zip(self.sensitivity, self.uncertainty, strict=True)
        return [sensitivity * uncertainty for sensitivity, uncertainty in pairs]


def triplet_scores(P: Tensor, lambdas: Tensor, Q: Tensor) -> Tensor:
    """Return S_i = s(λ_i) + mean_j s(P_ji) + mean_j s(Q_ij) of one matrix (equation 7), (r,).

    Args:
        P, lambdas, Q: s of every single weight, (out, r), (r,) and (r, in).
    """
    return lambdas + P.mean(0) + Q.mean(1)


def strongest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return which triplets are among the `count` strongest of all matrices.

    Of equals the earlier one is kept, so that there are always exactly `count`. The authors zero
    whatever is not above the k-th smallest score: of equals all go, and at the first steps, while
    many scores are 0, that can be most of them.

    Args:
        scores: of every matrix, (r,).
        count: how many to keep.

    Returns:
        For every matrix (r,) bool, on the CPU.
    """
    together = torch.cat([s.detach().to(scores[0].device) for s in scores]).cpu()  # one wait
    order = torch.sort(together, descending=True, stable=True).indices
    kept = torch.zeros_like(order, dtype=torch.bool).index_fill_(0, order[:count], True)
    return list(kept.split([len(s) for s in scores]))
