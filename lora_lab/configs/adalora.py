"""AdaLoRA's config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_lab.configs.base import Config, need_count, need_positive, need_rank, need_share
from lora_lab.configs.lora import LoraConfig
from lora_lab.errors import ConfigError


@dataclass(frozen=True)
class AdaLoraConfig(Config):
    """AdaLoRA: ΔW = s·PΛQ whose triplets are pruned by a budget (Zhang et al., 2023).

    Attributes:
        target_r: mean rank a matrix when the budget is final, b(T)/matrices.
        init_r: rank of every matrix at the start.
        tinit: optimizer steps before the first cut.
        tfinal: optimizer steps after the last cut.
        deltaT: optimizer steps between two cuts.
        beta1, beta2: averages of the sensitivity and of its uncertainty.
        orth_reg_weight: γ, weight of the regulariser ‖PᵀP−I‖² + ‖QQᵀ−I‖².
        total_step: optimizer steps of the run; None: the run tells.
        lora_alpha, lora_dropout, target_modules: as in `LoraConfig`.
    """

    target_r: int = 8
    init_r: int = 12
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1  # noqa: N815 (PEFT's name)
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int | None = None
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: Sequence[str] | str = ("q", "v")

    def __post_init__(self) -> None:
        need_rank("target_r", self.target_r)
        need_rank("init_r", self.init_r)
        if self.target_r > self.init_r:
            raise ConfigError(
                f"target_r is {self.target_r} and init_r {self.init_r}; AdaLoRA only prunes: "
                "use an init_r of at least target_r (the paper: 1.5 times)"
            )
        need_count("tinit", self.tinit, least=0)
        need_count("tfinal", self.tfinal, least=0)
        need_count("deltaT", self.deltaT, least=1)
        need_share("beta1", self.beta1)
        need_share("beta2", self.beta2)
        if self.orth_reg_weight:
            need_positive("orth_reg_weight", self.orth_reg_weight)
        if self.total_step is not None:
            need_count("total_step", self.total_step, least=1)
            if self.tinit + self.tfinal >= self.total_step:
                raise ConfigError(
                    f"tinit {self.tinit} and tfinal {self.tfinal} leave none of the "
                    f"{self.total_step} steps for pruning; make them shorter"
                )
        start = self.at_start()  # checks α, dropout and targets
        object.__setattr__(self, "target_modules", start.target_modules)

    @property
    def method(self) -> str:
        """The paper's name."""
        return "AdaLoRA"

    def at_start(self) -> LoraConfig:
        """Return the LoRA of the same targets whose rank is this one's before the first cut."""
        return LoraConfig(
            r=self.init_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules,
        )
