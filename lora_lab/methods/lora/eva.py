"""EVA: A starts at the directions in which what a layer reads varies most (Paischer et al., 2024).

PEFT finds them batch by batch, until they hold still (`tau`); here all rows are looked at once,
which is what that converges to.
"""

from __future__ import annotations

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
        rho: 1: every target keeps its rank. PEFT's default is 2, which moves ranks between the
            targets; that is not supported.
        tau: PEFT's, when to stop looking; nothing here is iterated.
        use_label_mask: tokens that are not to be learned (their label is `label_mask_value`) have
            no part in it, where the batches hold labels.
        label_mask_value: see `use_label_mask`.
        whiten: divide each direction by √σ.
        adjust_scaling_factors: PEFT's, for ranks that have moved.
    """

    rho: float = 1.0
    tau: float = 0.99
    use_label_mask: bool = True
    label_mask_value: int = -100
    whiten: bool = False
    adjust_scaling_factors: bool = True

    def __post_init__(self) -> None:
        need_positive("eva_config: rho", self.rho)
        if self.rho != 1:
            raise ConfigError(
                f"eva_config: rho is {self.rho}, which moves ranks between the targets; set rho=1, "
                "and give ranks that differ in rank_pattern"
            )


@register_init("eva", needs_activations=True, options="eva_config")
def eva(
    weight: Tensor, r: int, activations: Tensor, _scale: float, *, options: EvaConfig
) -> tuple[Tensor, Tensor]:
    """Return A, the r leading right singular vectors of the centered rows, and B zero.

    Of each vector the largest entry is positive, as in PEFT.
    """
    if len(activations) <= r:
        raise ConfigError(
            f"EVA finds {r} directions among more than {r} tokens, and the batches hold "
            f"{len(activations)}; pass more batches, or use a lower r"
        )
    _, S, Vt = top_directions(activations - activations.mean(0), r)
    largest = Vt.gather(1, Vt.abs().argmax(1, keepdim=True))
    A = Vt * largest.sign()
    if options.whiten:
        A = A / S.clamp_min(S[0] * 1e-6).sqrt()[:, None]
    return A, A.new_zeros(weight.shape[0], r)
