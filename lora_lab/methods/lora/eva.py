"""EVA: A starts at the directions in which what a layer reads varies most (Paischer et al., 2024).

PEFT finds them batch by batch, until they hold still (`tau`); here all rows are looked at once,
which is what that converges to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.errors import ConfigError
from lora_lab.methods.config import Config, need_positive
from lora_lab.methods.lora.init import register_init
from lora_lab.spectra.directions import top_directions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EvaConfig(Config):
    """What `LoraConfig.eva_config` may hold; the names are PEFT's.

    Attributes:
        rho: 1: every target keeps its rank. Above, ranks move to the targets whose inputs they
            explain most of, up to rho times a target's own; their sum stays, and a target may be
            left with none. PEFT's default is 2.
        tau: PEFT's, when to stop looking; nothing here is iterated.
        use_label_mask: tokens that are not to be learned (their label is `label_mask_value`) have
            no part in it, where the batches hold labels.
        label_mask_value: see `use_label_mask`.
        whiten: divide each direction by √σ.
        adjust_scaling_factors: where a rank has moved α goes with it, so that s = α/r stays.
    """

    rho: float = 1.0
    tau: float = 0.99
    use_label_mask: bool = True
    label_mask_value: int = -100
    whiten: bool = False
    adjust_scaling_factors: bool = True

    def __post_init__(self) -> None:
        need_positive("eva_config: rho", self.rho)
        if self.rho < 1:
            raise ConfigError(f"eva_config: rho is {self.rho}; it must be at least 1")


def moved_ranks(
    ranks: Mapping[str, tuple[int, float]], rows: Mapping[str, Tensor], *, options: EvaConfig
) -> dict[str, tuple[int, float]]:
    """Return the ranks by what share of the variance each direction explains (section 3.2).

    Among sites that read one input, whose shares are the same, the first has the higher rank.

    Args:
        ranks: {site: the config's r and α}.
        rows: {site: what it reads}, one tensor for all sites that read the same.
        options: the config's.
    """
    if options.rho == 1:
        return dict(ranks)
    most: dict[int, int] = {}
    for name, (rank, _) in ranks.items():
        key = id(rows[name])
        most[key] = max(most.get(key, 0), round(rank * options.rho))
    shares = {id(own): _shares(own, most[id(own)]) for own in rows.values()}
    every = [(-share, name) for name in ranks for share in shares[id(rows[name])]]
    every.sort(key=lambda entry: entry[0])
    counts = Counter(name for _, name in every[: sum(rank for rank, _ in ranks.values())])
    moves = options.adjust_scaling_factors
    return {
        name: (counts[name], alpha * counts[name] / rank if moves else alpha)
        for name, (rank, alpha) in ranks.items()
    }


def _shares(rows: Tensor, count: int) -> list[float]:
    """Return which share of the rows' variance each of the leading directions explains."""
    _check_enough(rows, count)
    centered = rows - rows.mean(0)
    S = top_directions(centered, count)[1].double()
    return [float(share) for share in S.square() / centered.double().square().sum()]


def _check_enough(rows: Tensor, count: int) -> None:
    if len(rows) <= count:
        raise ConfigError(
            f"EVA finds {count} directions among more than {count} tokens, and the batches hold "
            f"{len(rows)}; pass more batches, or use a lower r"
        )


@register_init("eva", needs_activations=True, options="eva_config", ranks=moved_ranks)
def eva(
    weight: Tensor, r: int, activations: Tensor, _scale: float, *, options: EvaConfig
) -> tuple[Tensor, Tensor]:
    """Return A, the r leading right singular vectors of the centered rows, and B zero.

    Of each vector the largest entry is positive, as in PEFT.
    """
    _check_enough(activations, r)
    _, S, Vt = top_directions(activations - activations.mean(0), r)
    largest = Vt.gather(1, Vt.abs().argmax(1, keepdim=True))
    A = Vt * largest.sign()
    if options.whiten:
        A = A / S.clamp_min(S[0] * 1e-6).sqrt()[:, None]
    return A, A.new_zeros(weight.shape[0], r)
