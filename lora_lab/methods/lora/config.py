"""LoRA's config."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from lora_lab._util.format import shown
from lora_lab.errors import ConfigError
from lora_lab.methods.config import (
    as_layers,
    as_names,
    need_count,
    need_mapping,
    need_positive,
    need_rank,
    need_share,
)
from lora_lab.methods.lora.init import INITIALIZATIONS, Initialization, find_init
from lora_lab.methods.lora.init_options import OPTIONS, as_mapping, options_of
from lora_lab.methods.lora.peft_fields import PeftConfig, takes_peft_fields, task_name

BIASES = "none", "all", "lora_only"


@takes_peft_fields
@dataclass(frozen=True)
class LoraConfig(PeftConfig):
    """Which matrices get ΔW = s·BA, and of what rank (Hu et al., 2022, section 4).

    Attributes:
        r: rank of every target that `rank_pattern` does not name.
        lora_alpha: α; the update is scaled by s = α/r (`use_rslora`: α/√r).
        lora_dropout: probability of dropping an entry of x on its way into A.
        target_modules: roles ("q", "v"), module names ("q_proj", "c_attn"), dotted paths, site
            names ("transformer.h.0.attn.c_attn[q]"), or "all-linear"; one string that is none of
            these is a regular expression for the whole module path, as in PEFT. None: the default.
        exclude_modules: what of the targets gets no factors; named likewise.
        layers_to_transform: the numbers of the blocks whose targets get factors; None: all. Not
            with one string as `target_modules`.
        layers_pattern: names of the list of blocks that these numbers count ("layers"); None: any.
        target_parameters: ends of the names of parameters that modules hold themselves: routed
            experts that share one tensor ("experts.gate_up_proj"), a router's ("gate.weight").
        rank_pattern: {regular expression: rank}, matched against the end of a site's path or
            against its role; the first that matches wins.
        alpha_pattern: the same for α.
        init_lora_weights: True: A kaiming-uniform(√5), B zero; "gaussian": A ~ N(0, 1/r²), B zero;
            False: A and B both random, so that ΔW ≠ 0 from the start (for tests); "pissa",
            "pissa_niter_16" and "olora": from W₀ itself, see `lora_lab.methods.lora.init` (best on
            a base in float32: in half precision BA − B₀A₀ is rounded with BA); "eva":
            A from what the layers read; "corda": from both. These two need `attach(batches=)`.
        eva_config, corda_config: settings of the last two, a mapping or `EvaConfig`, `CordaConfig`.
        use_rslora: scale by α/√r (Kalajdzievski, 2023).
        use_dora: a learned length for every output row, or kernel of a convolution; see
            `lora_lab.methods.lora.dora`.
        use_lorafa: A stays as it is drawn and only B learns (Zhang et al., 2023): x need not be
            kept for the backward pass.
        modules_to_save: modules that are trained whole, as copies of their own; whole paths or
            their ends. They get no factors, whatever `target_modules` says.
        lora_bias: B has a bias of its own; linear layers only, with neither DoRA nor an
            initialization other than True and False. Merged where the base has a bias.
        bias: which of the base's own biases are trained too, each adapter having its own: "all",
            "lora_only" (those of the adapted layers) or "none". In the model's dtype, as in PEFT.
        task_type: PEFT's name of what the model is for, a `TaskType`; of SEQ_CLS, TOKEN_CLS and
            QUESTION_ANS the head is trained whole, as if `modules_to_save` named it.
        inference_mode: nothing is trained.
        ensure_weight_tying: where `modules_to_save` names one end of a tied weight, the other is
            trained as one with it. Factors and tokens' vectors are shared by both ends anyway.
        trainable_token_indices: tokens whose vectors are learned whole: of the input embedding, or
            {name of an embedding: tokens}; see `lora_lab.methods.lora.token_rows`.

    PEFT's other fields are taken where they mean nothing (`megatron_config=None`).
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
    bias: Literal["none", "all", "lora_only"] = "none"
    target_parameters: Sequence[str] = ()
    exclude_modules: Sequence[str] | str | None = None
    layers_to_transform: Sequence[int] | int | None = None
    layers_pattern: Sequence[str] | str | None = None
    task_type: str | None = None
    inference_mode: bool = False
    ensure_weight_tying: bool = False
    trainable_token_indices: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    eva_config: Mapping[str, Any] | None = None
    corda_config: Mapping[str, Any] | None = None
    lora_bias: bool = False
    peft_name: ClassVar = "LORA"
    told: ClassVar = frozenset({"r", "target_modules"})
    added: ClassVar = frozenset(
        {
            "target_parameters",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "task_type",
            "inference_mode",
            "ensure_weight_tying",
            "trainable_token_indices",
            "eva_config",
            "corda_config",
            "lora_bias",
        }
    )

    def __post_init__(self) -> None:
        self._normalize()
        self._check_layers()
        self._check_tokens()
        need_rank("r", self.r)
        for key, rank in need_mapping("rank_pattern", self.rank_pattern).items():
            need_rank(f"rank_pattern[{key!r}]", rank)
        need_positive("lora_alpha", self.lora_alpha)
        for key, alpha in need_mapping("alpha_pattern", self.alpha_pattern).items():
            need_positive(f"alpha_pattern[{key!r}]", alpha)
        need_share("lora_dropout", self.lora_dropout)
        if isinstance(named := self.target_parameters, str):
            raise ConfigError(f"target_parameters is {named!r}; it must be a list: [{named!r}]")
        named = as_names("target_parameters", named) or ()
        object.__setattr__(self, "target_parameters", named)
        if not self.target_modules and not named:
            raise ConfigError('target_modules is empty; name at least one, such as ["q", "v"]')
        if (found := find_init(self.init_lora_weights)) is None:
            known = ", ".join(map(repr, INITIALIZATIONS))
            raise ConfigError(
                f"init_lora_weights is {shown(self.init_lora_weights)}; use {known} "
                "(N: a number of 1 to 1000)"
            )
        for name in OPTIONS:
            options = as_mapping(name, getattr(self, name), found.options == name)
            object.__setattr__(self, name, options)
        if self.use_dora and self.init.from_base:
            raise ConfigError(
                f"use_dora and init_lora_weights={self.init_lora_weights!r} do not go together: "
                "DoRA measures the rows of W₀, the other moves part of it; choose one"
            )
        if self.lora_bias and (self.use_dora or not isinstance(self.init_lora_weights, bool)):
            raise ConfigError(
                "lora_bias=True goes with use_dora=False and init_lora_weights=True or False, as "
                "in PEFT; leave it out"
            )
        if self.bias not in BIASES:
            raise ConfigError(f"bias is {self.bias!r}; use one of {', '.join(map(repr, BIASES))}")

    def _normalize(self) -> None:
        """Make tuples of lists and sets: equal configs compare equal, and a set has no order."""
        for name in ("rank_pattern", "alpha_pattern"):
            object.__setattr__(self, name, {} if (own := getattr(self, name)) is None else own)
        if isinstance(saved := self.modules_to_save, str):
            raise ConfigError(f"modules_to_save is {saved!r}; it must be a list: [{saved!r}]")
        targets: Any = ("q", "v") if self.target_modules is None else self.target_modules
        if isinstance(targets, str) and targets.lower() == "all-linear":
            targets = "all-linear"
        object.__setattr__(self, "target_modules", as_names("target_modules", targets))
        object.__setattr__(self, "task_type", task_name(self.task_type))
        for name in _LISTS:
            object.__setattr__(self, name, as_names(name, getattr(self, name)) or None)
        layers = as_layers("layers_to_transform", self.layers_to_transform)
        object.__setattr__(self, "layers_to_transform", layers or None)

    def _check_tokens(self) -> None:
        given: Any = self.trainable_token_indices
        if not given:
            object.__setattr__(self, "trainable_token_indices", None)
            return
        lists = given if isinstance(given, Mapping) else {"": given}
        for tokens in lists.values():
            if not isinstance(tokens, Iterable):
                raise ConfigError(f"trainable_token_indices is {given!r}; it must be a list of ids")
        lists = {name: tuple(tokens) for name, tokens in lists.items()}
        for tokens in lists.values():
            for token in tokens:
                need_count("trainable_token_indices", token, least=0)
            if not tokens or len(set(tokens)) < len(tokens):
                raise ConfigError(
                    f"trainable_token_indices is {given!r}; name at least one, and each once"
                )
        kept = lists if isinstance(given, Mapping) else lists[""]
        object.__setattr__(self, "trainable_token_indices", kept)

    def _check_layers(self) -> None:
        for name in ("layers_to_transform", "layers_pattern"):
            if getattr(self, name) is not None and isinstance(self.target_modules, str):
                raise ConfigError(
                    f"{name} goes with a list of target_modules, and here it is one text, "
                    f"{self.target_modules!r}; use a list, or say the layers in the expression"
                )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern says whose layers; give layers_to_transform too")

    @property
    def method(self) -> str:
        """The paper's name."""
        return "LoRA"

    def check_steps(self, total: int) -> None:  # noqa: ARG002
        """Refuse to train what is there for inference alone; see `MethodConfig.check_steps`."""
        if self.inference_mode:
            raise ConfigError("inference_mode=True trains nothing; set inference_mode=False")

    @property
    def init(self) -> Initialization:
        """How A and B start."""
        found = find_init(self.init_lora_weights)
        assert found is not None, "the config was checked when it was made"
        if not found.options:
            return found
        options = options_of(found.options, getattr(self, found.options))
        ranks = functools.partial(found.ranks, options=options) if found.ranks else None
        return replace(found, start=functools.partial(found.start, options=options), ranks=ranks)

    def not_for(self, kind: str) -> str:
        """Return the option that layers of a kind do not take, "" where none is set.

        Args:
            kind: a `Site.kind`; a linear layer takes them all.
        """
        if kind == "linear":
            return ""
        if self.lora_bias or (self.use_dora and kind != "conv"):
            return "lora_bias" if self.lora_bias else "use_dora"
        looks = self.init.from_base or self.init.needs_activations
        return f"init_lora_weights={self.init_lora_weights!r}" if looks else ""

    @property
    def ignored_label(self) -> int | None:
        """The label of the tokens that an initialization does not look at; None: there is none."""
        if self.init.options != "eva_config":
            return None
        options = options_of("eva_config", self.eva_config)
        return options.label_mask_value if options.use_label_mask else None

    @property
    def needs_batches(self) -> bool:
        """Whether A and B start from what the layers read."""
        return self.init.needs_activations

    def at_peak(self, total: int) -> LoraConfig:  # noqa: ARG002
        """Return the config with a start that takes as much memory, and looks at no values."""
        if not (self.init.from_base or self.needs_batches):
            return self
        start = "olora" if self.init.from_base else True
        return replace(self, init_lora_weights=start, eva_config=None, corda_config=None)

    def scale(self, r: int, alpha: float) -> float:
        """Return s, the factor on BA: α/r, or α/√r with `use_rslora`."""
        return alpha / r**0.5 if self.use_rslora else alpha / r


_LISTS = "modules_to_save", "exclude_modules", "layers_pattern"
