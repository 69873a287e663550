"""LoRA's config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lora_lab.errors import ConfigError
from lora_lab.methods.config import MethodConfig, need_positive, need_rank, need_share
from lora_lab.methods.lora.init import INITIALIZATIONS, Initialization, find_init


@dataclass(frozen=True)
class LoraConfig(MethodConfig):
    """Which matrices get ΔW = s·BA, and of what rank (Hu et al., 2022, section 4).

    Attributes:
        r: rank of every target that `rank_pattern` does not name.
        lora_alpha: α; the update is scaled by s = α/r (`use_rslora`: α/√r).
        lora_dropout: probability of dropping an entry of x on its way into A.
        target_modules: roles ("q", "v"), module names ("q_proj", "c_attn"), dotted paths, site
            names ("transformer.h.0.attn.c_attn[q]"), or "all-linear"; one string that is none of
            these is a regular expression for the whole module path, as in PEFT.
        rank_pattern: {regular expression: rank}, matched against the end of a site's path or
            against its role; the first that matches wins.
        alpha_pattern: the same for α.
        init_lora_weights: True: A kaiming-uniform(√5), B zero; "gaussian": A ~ N(0, 1/r²), B zero;
            False: A and B both random, so that ΔW ≠ 0 from the start (for tests); "pissa",
            "pissa_niter_16" and "olora": from W₀ itself, see `lora_lab.methods.lora.init`.
        use_rslora: scale by α/√r (Kalajdzievski, 2023).
        use_dora: a learned length for every output row; see `lora_lab.methods.lora.dora`.
        use_lorafa: A stays as it is drawn and only B learns (Zhang et al., 2023): x need not be
            kept for the backward pass.
        modules_to_save: modules that are trained whole, as copies of their own; whole paths or
            their ends. They get no factors, whatever `target_modules` says.
        bias: PEFT's field; read so that a file that needs it is refused, not misread.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: Sequence[str] | str = ("q", "v")
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    use_lorafa: bool = False
    init_lora_weights: bool | str = True
    modules_to_save: Sequence[str] | None = None
    bias: Literal["none"] = "none"

    def __post_init__(self) -> None:
        targets = self.target_modules
        if not isinstance(targets, str):
            # A list in the notebook, a tuple inside: equal configs compare equal.
            object.__setattr__(self, "target_modules", tuple(targets))
        if isinstance(saved := self.modules_to_save, str):
            raise ConfigError(f"modules_to_save is {saved!r}; it must be a list: [{saved!r}]")
        if saved is not None:
            object.__setattr__(self, "modules_to_save", tuple(saved) or None)
        need_rank("r", self.r)
        for key, rank in self.rank_pattern.items():
            need_rank(f"rank_pattern[{key!r}]", rank)
        need_positive("lora_alpha", self.lora_alpha)
        for key, alpha in self.alpha_pattern.items():
            need_positive(f"alpha_pattern[{key!r}]", alpha)
        need_share("lora_dropout", self.lora_dropout)
        if not targets:
            raise ConfigError('target_modules is empty; name at least one, such as ["q", "v"]')
        if find_init(self.init_lora_weights) is None:
            known = ", ".join(map(repr, INITIALIZATIONS))
            raise ConfigError(
                f"init_lora_weights is {self.init_lora_weights!r}; use {known} (N: a number)"
            )
        if self.use_dora and self.init.from_base:
            raise ConfigError(
                f"use_dora and init_lora_weights={self.init_lora_weights!r} do not go together: "
                "DoRA measures the rows of W₀, the other moves part of it; choose one"
            )
        if self.bias != "none":
            raise ConfigError(f"bias={self.bias!r} is not supported yet; set bias='none'")

    @property
    def method(self) -> str:
        """The paper's name."""
        return "LoRA"

    @property
    def init(self) -> Initialization:
        """How A and B start."""
        found = find_init(self.init_lora_weights)
        assert found is not None, "the config was checked when it was made"
        return found

    @property
    def needs_batches(self) -> bool:
        """Whether A and B start from what the layers read."""
        return self.init.needs_activations

    def at_peak(self, total: int) -> LoraConfig:  # noqa: ARG002
        """Return the config with a start that takes as much memory, and looks at no values."""
        if not (self.init.from_base or self.needs_batches):
            return self
        return replace(self, init_lora_weights="olora" if self.init.from_base else True)

    def scale(self, r: int, alpha: float) -> float:
        """Return s, the factor on BA: α/r, or α/√r with `use_rslora`."""
        return alpha / r**0.5 if self.use_rslora else alpha / r
