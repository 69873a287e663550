"""CorDA: W₀'s directions as the data weigh them, by the SVD of W₀C (Yang et al., 2024).

C is the covariance of what the layer reads. "ipm" (instruction-previewed mode) starts at the
directions that matter most to the data and trains these; "kpm" (knowledge-preserved mode) at those
that matter least, so that what the data ask for is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_lab.errors import ConfigError
from lora_lab.methods.config import Config
from lora_lab.methods.lora.init import register_init, square_roots
from lora_lab.spectra.directions import top_directions

if TYPE_CHECKING:
    from torch import Tensor

_DAMPING = 0.01  # of the mean of C's diagonal; it doubles until the inverse is good enough
_ERROR = 0.05  # ‖CC⁻¹ − I‖_F that is


@dataclass(frozen=True)
class CordaConfig(Config):
    """What `LoraConfig.corda_config` may hold; the names are PEFT's.

    Attributes:
        corda_method: "ipm" or "kpm".
        cache_file, covariance_file: not supported; the batches are read anew.
        verbose, use_float16_for_covariance, prune_temporary_fields: PEFT's; without effect.
    """

    corda_method: Literal["ipm", "kpm"] = "ipm"
    cache_file: str | None = None
    covariance_file: str | None = None
    verbose: bool = False
    use_float16_for_covariance: bool = False
    prune_temporary_fields: bool = True

    def __post_init__(self) -> None:
        if self.corda_method not in ("ipm", "kpm"):
            raise ConfigError(
                f"corda_config: corda_method is {self.corda_method!r}; use 'ipm' or 'kpm'"
            )
        for name in ("cache_file", "covariance_file"):
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"corda_config: {name} is not supported; leave it out, and pass batches"
                )


def _normalized(rows: Tensor) -> Tensor:
    """Return a sample's rows over their largest entry, so that none outweighs the others (PEFT)."""
    return rows / rows.max().abs().clamp_min(1e-30)


@register_init(
    "corda",
    from_base=True,
    needs_activations=True,
    options="corda_config",
    sample=_normalized,
)
def corda(
    weight: Tensor, r: int, activations: Tensor, scale: float, *, options: CordaConfig
) -> tuple[Tensor, Tensor]:
    """Return A = √S·VᵀC⁻¹ and B = U√S of W₀C/s's r first or last singular triplets."""
    import torch

    C, inverse = _covariance(activations)
    weighed = weight.float() @ C
    if options.corda_method == "ipm":
        U, S, Vt = top_directions(weighed, r)
    else:
        U, S, Vt = torch.linalg.svd(weighed, full_matrices=False)
        U, S, Vt = U[:, len(S) - r :], S[len(S) - r :], Vt[len(S) - r :]
    return square_roots(U, S, Vt @ inverse, scale)


def _covariance(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows' covariance (in, in), damped so that it can be inverted, and its inverse."""
    import torch

    C = rows.T @ rows / len(rows)
    one, mean, damping = (
        torch.eye(len(C), device=C.device, dtype=C.dtype),
        C.diagonal().mean(),
        _DAMPING,
    )
    while True:
        damped = C + one * (mean * damping)
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, one) < _ERROR:
            return damped, inverse
        if damping > 1e6:
            raise ConfigError("CorDA finds nothing in what the layers read; pass other batches")
        damping *= 2
