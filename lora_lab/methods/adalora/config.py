"""AdaLoRA's config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from lora_lab.errors import ConfigError
from lora_lab.methods.config import need_count, need_positive, need_rank, need_share
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.peft_fields import PeftConfig, read_config, takes_peft_fields

_NOT_DONE = {
    "r": "ranks start at init_r, and target_r is left of them; set these",
    "inference_mode": "",  # True in every file
    "task_type": "train its head beside this one: [AdaLoraConfig(...), HeadConfig()]",
    "modules_to_save": "train them beside this one: [AdaLoraConfig(...), HeadConfig(modules=...)]",
    **dict.fromkeys(
        (
            *("alpha_pattern", "bias", "corda_config", "ensure_weight_tying", "eva_config"),
            *("exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform"),
            *("lora_bias", "rank_pattern", "target_parameters", "trainable_token_indices"),
            *("use_dora", "use_rslora"),
        ),
        "AdaLoRA goes without; leave it out, or use LoraConfig",
    ),
}


@takes_peft_fields
@dataclass(frozen=True)
class AdaLoraConfig(PeftConfig):
    """AdaLoRA: ΔW = s·PΛQ whose triplets are pruned by a budget (Zhang et al., 2023).

    The paper adapts all six matrices of a block (Wq, Wk, Wv, Wo, Wf1 and Wf2: here "all-linear"):
    the fewer there are to choose from, the less there is to win. It starts at 1.5 times the final
    rank and prunes in the first half of the training or so; its settings for GLUE are in Table 8.

    Attributes:
        target_r: mean rank a matrix when the budget is final, b(T)/matrices.
        init_r: rank of every matrix at the start.
        tinit: optimizer steps before the first cut.
        tfinal: optimizer steps after the last cut.
        deltaT: optimizer steps between two cuts; the last one comes when it is due, in any case.
        beta1, beta2: averages of the sensitivity and of its uncertainty.
        orth_reg_weight: γ, weight of the regularizer: the mean of ‖PᵀP−I‖_F and ‖QQᵀ−I‖_F over
            all P and Q, which keeps them near to orthogonal.
        total_step: optimizer steps of the run; None: the run tells.
        lora_alpha: α; the update is scaled by α/init_r, also when triplets are gone.
        lora_dropout, target_modules: as in `LoraConfig`.
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

    peft_name: ClassVar = "ADALORA"
    told: ClassVar = frozenset({"target_r", "init_r", "target_modules"})
    not_done: ClassVar = _NOT_DONE

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
            self.check_steps(self.total_step)
        start = self.at_start()  # checks α, dropout and targets
        object.__setattr__(self, "target_modules", start.target_modules)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AdaLoraConfig:
        """Read the config of an adapter's folder; see `LoraConfig.from_pretrained`."""
        values = read_config(cls, folder)
        values.pop("rank_pattern", None)  # which triplets a training has left
        return cls.from_dict(values)

    @property
    def method(self) -> str:
        """The paper's name."""
        return "AdaLoRA"

    def check_steps(self, total: int) -> None:
        """Refuse a training of so many optimizer steps that the schedule does not fit.

        Raises:
            ConfigError: it leaves no time for pruning, or is for another number of steps.
        """
        if self.total_step not in (None, total):
            raise ConfigError(
                f"total_step is {self.total_step} and the run takes {total} steps (max_steps); "
                "leave total_step out, or make them the same"
            )
        left = total - self.tinit - self.tfinal
        if left < self.deltaT:
            fix = f"; or use a deltaT of at most {left}" if left > 0 else ""
            raise ConfigError(
                f"tinit {self.tinit} and tfinal {self.tfinal} leave {left if left > 0 else 'none'} "
                f"of the {total} steps for pruning, and deltaT is {self.deltaT}; make them shorter"
                f"{fix}"
            )
        if total - self.tfinal < 2:
            raise ConfigError(
                f"the last cut comes after step {total - self.tfinal}, when no triplet has been "
                f"scored yet; train for at least {self.tfinal + 2} steps, or make tfinal shorter"
            )

    def at_peak(self, total: int) -> AdaLoraConfig:
        """Return the config that does not cut before the middle of the training."""
        return replace(self, tinit=total // 2, tfinal=0, total_step=None)

    @staticmethod
    def check_kind(module: str, kind: str) -> None:
        """Refuse a target that is no linear layer.

        Args:
            module: its path.
            kind: `Site.kind`.

        Raises:
            ConfigError: an embedding or a convolution.
        """
        if kind != "linear":
            raise ConfigError(
                f"AdaLoRA is for linear layers, and {module} is none; leave it out of "
                "target_modules"
            )

    def at_start(self) -> LoraConfig:
        """Return the LoRA of the same targets whose rank is this one's before the first cut."""
        return LoraConfig(
            r=self.init_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules,
        )
