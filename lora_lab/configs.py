"""The dataclasses that users fill in. Field names are PEFT's where PEFT has them."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from lora_lab.errors import ConfigError


class _Config:
    """What all configs share: to and from plain dicts, with unknown fields refused."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping.

        Raises:
            ConfigError: on a field that does not exist; the nearest name is proposed.
        """
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = (
                    f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
                )
                raise ConfigError(f"{cls.__name__} has no field {name!r}; {hint}")
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self).from_dict({**self.to_dict(), **changes})

    def to_python(self) -> str:
        """Return the Python expression that builds this config, default fields left out."""
        shown = []
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            default = f.default_factory() if callable(f.default_factory) else f.default
            if value != default:
                shown.append(f"{f.name}={value!r}")
        return f"ll.{type(self).__name__}({', '.join(shown)})"


_INITIALISATION = re.compile(r"gaussian|olora|pissa(_niter_[1-9]\d*)?")


@dataclass(frozen=True)
class LoraConfig(_Config):
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
            "pissa_niter_16" and "olora": from W₀ itself, see `adapters.initial`.
        use_rslora: scale by α/√r (Kalajdzievski, 2023).
        use_dora: a learnt length for every output row; see `adapters.dora`.
        use_lorafa: A stays as it is drawn and only B learns (Zhang et al., 2023): x need not be
            kept for the backward pass.
        bias, modules_to_save: PEFT's fields; read so that a file that needs them is refused, not
            misread.
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
        _need_rank("r", self.r)
        for key, rank in self.rank_pattern.items():
            _need_rank(f"rank_pattern[{key!r}]", rank)
        _need_positive("lora_alpha", self.lora_alpha)
        for key, alpha in self.alpha_pattern.items():
            _need_positive(f"alpha_pattern[{key!r}]", alpha)
        if not isinstance(self.lora_dropout, (int, float)) or not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout is {self.lora_dropout!r}; it must lie in [0, 1)")
        if not targets:
            raise ConfigError('target_modules is empty; name at least one, such as ["q", "v"]')
        how = self.init_lora_weights
        if not (isinstance(how, bool) or (isinstance(how, str) and _INITIALISATION.fullmatch(how))):
            raise ConfigError(
                f"init_lora_weights is {how!r}; use True, False, 'gaussian', 'pissa', "
                "'pissa_niter_16' (a faster approximation) or 'olora'"
            )
        if self.use_dora and self.starts_from_base:
            raise ConfigError(
                f"use_dora and init_lora_weights={self.init_lora_weights!r} do not go together: "
                "DoRA measures the rows of W₀, the other moves part of it; choose one"
            )
        if self.modules_to_save:
            raise ConfigError("modules_to_save is not supported yet; set modules_to_save=None")
        if self.bias != "none":
            raise ConfigError(f"bias={self.bias!r} is not supported yet; set bias='none'")

    @property
    def starts_from_base(self) -> bool:
        """Whether A and B start from W₀'s own directions, so that ΔW is counted from there."""
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights != "gaussian"

    def scale(self, r: int, alpha: float) -> float:
        """Return s, the factor on BA: α/r, or α/√r with `use_rslora`."""
        return alpha / r**0.5 if self.use_rslora else alpha / r


@dataclass(frozen=True)
class TrainingConfig(_Config):
    """How long and how to train. Names are those of transformers' TrainingArguments.

    Attributes:
        max_steps: optimizer steps.
        per_device_train_batch_size: examples a forward pass.
        gradient_accumulation_steps: forward passes an optimizer step.
        learning_rate: peak rate of AdamW.
        warmup_steps: linear warm-up from 0, then `lr_scheduler_type` down to the last step.
        weight_decay: AdamW's, of A and B.
        max_grad_norm: gradients are scaled down to this norm over the whole adapter.
        max_length: tokens an example, prompt and completion together; of a longer one the start
            of the prompt is cut, and how many were cut is noted.
        eval_examples: held-out prompts answered and scored before and after training; 0: none.
        save_steps: a checkpoint every so many steps, and one at the end; 0: only at the end.
        gradient_checkpointing: recompute each block in the backward pass.
        seed: of the adapter's init, the data order and dropout.
    """

    max_steps: int = 100
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-3
    warmup_steps: int = 5
    lr_scheduler_type: Literal["linear", "constant", "cosine"] = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 128
    eval_examples: int = 16
    save_steps: int = 50
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name in ("warmup_steps", "eval_examples", "save_steps", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 0")
        if self.max_length < 8:
            raise ConfigError(f"max_length is {self.max_length}; it must be at least 8 tokens")
        _need_positive("learning_rate", self.learning_rate)


def _need_rank(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; a rank is a whole number of at least 1")


def _need_positive(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigError(f"{name} is {value!r}; it must be a positive number")
