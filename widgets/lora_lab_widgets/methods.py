"""The methods that the workbench offers: their settings, and the configs that these make."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_lab.anatomy.types import Anatomy
from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError
from lora_lab.methods.adalora.config import AdaLoraConfig
from lora_lab.methods.bottleneck.config import BottleneckConfig
from lora_lab.methods.combined import method_name
from lora_lab.methods.config import Config
from lora_lab.methods.full.config import BitFitConfig, FullConfig
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.targets import config_from_ranks, ranks
from lora_lab.methods.prompt_tuning.config import PrefixEmbedConfig, PrefixLayerConfig

Values = Mapping[str, Any]
Templates = Mapping[type, Config]
"""{config class: where the fields come from that no setting shows}."""

_SCHEDULE = ("init_r", "tinit", "tfinal", "deltaT")
AUTOMATIC = (*_SCHEDULE, "drop_layers")
"""Settings that may be left empty: `automatic` then says what they are."""
WHOLE = {*AUTOMATIC, "top_layers", "prefix_length", "infix_length", "r"}
TICKED = {"new_biases"}


@dataclass(frozen=True)
class Part:
    """One config of a method.

    Attributes:
        kind: its class.
        fields: which of its fields are settings.
        fixed: what the method's name says already.
    """

    kind: type[Config]
    fields: tuple[str, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def serves(self, config: Any) -> bool:
        """Return whether a config is one of this part's."""
        same = all(getattr(config, name, None) == value for name, value in self.fixed.items())
        return type(config) is self.kind and same


@dataclass(frozen=True)
class Method:
    """One entry of the drop-down.

    Attributes:
        name: the paper's.
        parts: its configs; empty for what was set from Python and is kept as it was given.
        about: what it trains, in a few words.
        instead: why the rank grid is not its own, "" where it is.
    """

    name: str
    parts: tuple[Part, ...] = ()
    about: str = ""
    instead: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """The settings that it has."""
        return tuple(name for part in self.parts for name in part.fields)

    @property
    def paints(self) -> bool:
        """Whether the painted ranks are its own."""
        return any(part.kind in (LoraConfig, AdaLoraConfig) for part in self.parts)


_FACTORS = ("lora_alpha", "lora_dropout")
_TOKENS = ("prefix_length", "infix_length")
_LORA = Part(LoraConfig, _FACTORS)
_EMBED, _LAYER = Part(PrefixEmbedConfig, _TOKENS), Part(PrefixLayerConfig, _TOKENS)


def _adapter(variant: str, about: str, *fields: str) -> Method:
    part = Part(BottleneckConfig, ("r", *fields), {"variant": variant})
    return Method(f"Adapter^{variant}", (part,), about, "puts layers of its own between the others")


METHODS = {
    method.name: method
    for method in (
        Method("LoRA", (_LORA,), "ΔW = α/r · BA on every painted matrix; W₀ stays as it is"),
        Method("AdaLoRA", (Part(AdaLoraConfig, (*_FACTORS, *_SCHEDULE)),)),
        Method(
            "FT",
            (Part(FullConfig, (), {"top_layers": None}),),
            "every weight of the model is trained",
            "trains every weight",
        ),
        Method("FT-Top2", (Part(FullConfig, ("top_layers",)),), "", "trains the last blocks whole"),
        Method(
            "BitFit",
            (Part(BitFitConfig, ("new_biases",)),),
            "the bias vectors are trained, nothing else",
            "trains bias vectors",
        ),
        Method(
            "PreEmbed",
            (_EMBED,),
            "word embeddings of special tokens are learned",
            "trains special tokens",
        ),
        Method(
            "PreLayer",
            (_LAYER,),
            "activations of special tokens are learned after every layer",
            "trains special tokens",
        ),
        _adapter("H", "a bottleneck after attention and one after the MLP of every block"),
        _adapter("L", "a bottleneck with a LayerNorm after the MLP of every block"),
        _adapter("P", "a bottleneck after the MLP of every block"),
        _adapter("D", "as Adapter^P; the lowest blocks answer without theirs", "drop_layers"),
        Method("LoRA+PE", (_LORA, _EMBED), "LoRA, and word embeddings of special tokens"),
        Method("LoRA+PL", (_LORA, _LAYER), "LoRA, and special tokens learned after every layer"),
    )
}


def default_values() -> dict[str, Any]:
    """Return the settings of all methods, under the field names of their configs."""
    return {
        "method": "LoRA",
        "lora_alpha": LoraConfig().lora_alpha,
        "lora_dropout": LoraConfig().lora_dropout,
        **dict.fromkeys(AUTOMATIC, ""),
        "top_layers": 2,
        "new_biases": BitFitConfig().new_biases,
        "prefix_length": PrefixEmbedConfig().prefix_length,
        "infix_length": PrefixEmbedConfig().infix_length,
        "r": BottleneckConfig().r,
    }


def method_called(name: Any) -> Method:
    """Return a method of the drop-down.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(f"method is {name!r}; use one of {', '.join(METHODS)}")
    return METHODS[name]


def choices(values: Values, given: Method | None) -> list[dict[str, Any]]:
    """Return the drop-down's entries: name, text, and which settings they have.

    Args:
        values: all settings, as they were typed.
        given: what was set from Python and no entry shows.
    """
    blocks = values["top_layers"]
    texts = {"FT-Top2": f"FT-Top{blocks}"} if isinstance(blocks, int) and blocks > 0 else {}
    every = (*METHODS.values(), *([given] if given else []))
    return [
        {"name": m.name, "text": texts.get(m.name, m.name), "fields": list(m.fields)} for m in every
    ]


def method_of(configs: Sequence[MethodConfig]) -> Method:
    """Return the method whose settings show all of these configs, else one that only names them."""
    for method in METHODS.values():
        parts = method.parts
        if len(parts) == len(configs) and all(map(Part.serves, parts, configs)):
            return method
    name = method_name(configs)
    return Method(
        name if name not in METHODS else f"{name} as given",
        about="set from Python, and kept as it was given",
        instead="was set from Python",
    )


def values_of(method: Method, configs: Sequence[MethodConfig]) -> dict[str, Any]:
    """Return the settings that make these configs again."""
    values = {"method": method.name}
    for part, config in zip(method.parts, configs, strict=False):
        own = {name: getattr(config, name) for name in part.fields}
        values |= {name: "" if value is None else value for name, value in own.items()}
    return values


def ranks_of(anatomy: Anatomy, configs: Iterable[MethodConfig]) -> dict[str, int] | None:
    """Return what the grid shows of these configs; None: nothing, it stays as it is."""
    for config in configs:
        if isinstance(config, LoraConfig):
            return ranks(anatomy, config)
        if isinstance(config, AdaLoraConfig):
            return dict.fromkeys(ranks(anatomy, config.at_start()), config.target_r)
    return None


def automatic(anatomy: Anatomy, painted: Mapping[str, int], max_steps: int) -> dict[str, int]:
    """Return what the settings are that may be left empty.

    init_r is 1.5 times the painted rank, as in the paper, and no more than the smallest matrix has
    room for. The schedule has the medians of the paper's Table 8 (eight tasks of GLUE, their steps
    counted): t_i 13 % of all steps, t_f 48 %, Δ_T 0.2 %.
    """
    limits = [min(_shape(anatomy, name)) for name in painted]
    target = common_rank(painted)
    return {
        "init_r": max(target, min([(3 * target + 1) // 2, *limits])),
        "tinit": round(0.13 * max_steps),
        "tfinal": max(0, min(round(0.48 * max_steps), max_steps - 2)),  # a cut needs two steps
        "deltaT": max(1, round(0.002 * max_steps)),
        "drop_layers": BottleneckConfig("D").dropped(_shortest_stack(anatomy)),
    }


def common_rank(painted: Mapping[str, int]) -> int:
    """Return the rank that most matrices have; 1 where none is painted."""
    counted = Counter(r for r in painted.values() if r)
    return counted.most_common(1)[0][0] if counted else 1


def configs_of(
    method: Method,
    values: Values,
    anatomy: Anatomy,
    painted: Mapping[str, int],
    templates: Templates,
    max_steps: int,
) -> tuple[MethodConfig, ...]:
    """Return the configs of a method of the drop-down.

    Args:
        method: with parts.
        values: all settings, as they were typed.
        anatomy: of the model.
        painted: {site name: rank}.
        templates: for fields that no setting shows.
        max_steps: optimizer steps of the run, that AdaLoRA's schedule has to fit into.

    Raises:
        ConfigError: nothing is painted, or a value that cannot be.
    """
    typed_ = typed(values, method.fields)
    configs: list[Any] = []
    for part in method.parts:
        own = {**part.fixed, **{name: typed_[name] for name in part.fields}}
        template: Any = templates.get(part.kind, part.kind())
        if part.kind is LoraConfig:
            configs.append(config_from_ranks(anatomy, painted, template.replace(**own)))
        elif part.kind is AdaLoraConfig:
            free = automatic(anatomy, painted, max_steps)
            own = {name: free[name] if value == "" else value for name, value in own.items()}
            configs.append(_adalora(anatomy, painted, template, own, max_steps))
        else:
            configs.append(
                part.kind(**{name: None if value == "" else value for name, value in own.items()})
            )
    return tuple(configs)


def typed(values: Values, names: Iterable[str], whole: Iterable[str] = WHOLE) -> dict[str, Any]:
    """Return the named settings as the configs want them; the browser may have sent any text.

    Raises:
        ConfigError: what is no number, or no whole number where one is needed.
    """
    return {name: _typed(name, values[name], name in whole) for name in names}


def _typed(name: str, value: Any, whole: bool) -> Any:
    if name in TICKED:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; it must be True or False")
        return value
    if name in AUTOMATIC and value == "":
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} is {value!r}; it must be a number")
    if not whole:
        return value
    if not math.isfinite(value) or value != int(value):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number")
    return int(value)


def _adalora(
    anatomy: Anatomy,
    painted: Mapping[str, int],
    template: AdaLoraConfig,
    own: dict[str, Any],
    max_steps: int,
) -> AdaLoraConfig:
    target = common_rank(painted)
    same = {name: target for name, r in painted.items() if r}
    targets = config_from_ranks(anatomy, same).target_modules
    config = template.replace(target_r=target, target_modules=targets, **own)
    config.check_steps(max_steps)
    return config


def _shortest_stack(anatomy: Anatomy) -> int:
    return min(Counter(row.stack for row in anatomy.rows).values(), default=1)


def _shape(anatomy: Anatomy, name: str) -> tuple[int, int]:
    site = anatomy.by_name[name]
    return site.out_features, site.in_features


# In words ---------------------------------------------------------------------------------------


def about(method: Method, configs: Sequence[MethodConfig], anatomy: Anatomy) -> str:
    """Say in one line what a method trains, and what it takes from the sequence."""
    lines = [_about(config) for config in configs] if method.parts else []
    lines = [method.about] if method.about else [line for line in lines if line]
    tokens = sum(getattr(config, "tokens", 0) for config in configs)
    if tokens and (most := anatomy.shape.max_positions):
        lines.append(f"usable sequence length: {most:,} − {tokens:,} = {most - tokens:,} tokens")
    return "; ".join(lines)


def with_remedy(method: Method, error: str) -> str:
    """Return an error's line with the remedy that the workbench has for it."""
    if method.name == "BitFit" and "new_biases=True" in error:
        return f"{error.partition(';')[0]}; tick “new zero biases”"
    return error


def _about(config: MethodConfig) -> str:
    if isinstance(config, AdaLoraConfig):
        return (
            f"rank {config.init_r} at the start, a mean of {config.target_r} at the end: memory is "
            "the start's, the checkpoint the end's"
        )
    if isinstance(config, FullConfig):
        count = config.top_layers
        blocks = "block" if count == 1 else f"{count} blocks"
        return f"all weights of the last {blocks} are trained"
    return ""


def instead(method: Method, configs: Sequence[MethodConfig] | None) -> str:
    """Say why the grid is not the method's own; "" where it is."""
    if method.paints:
        return ""
    name = method_name(configs) if configs else method.name
    return f"{name} {method.instead}; the grid is LoRA's"


def numbers(configs: Iterable[MethodConfig]) -> str:
    """Return the configs' own numbers, for the title line."""
    return " · ".join(filter(None, map(_numbers, configs)))


def _numbers(config: MethodConfig) -> str:
    if isinstance(config, LoraConfig):
        return f"α {config.lora_alpha:g} · dropout {config.lora_dropout:g}"
    if isinstance(config, AdaLoraConfig):
        factors = f"α {config.lora_alpha:g} · dropout {config.lora_dropout:g}"
        return f"r {config.init_r} → {config.target_r} · {factors}"
    if isinstance(config, (PrefixEmbedConfig, PrefixLayerConfig)):
        return f"{config.prefix_length} + {config.infix_length} tokens"
    if isinstance(config, BottleneckConfig):
        return f"r {config.r}"
    if isinstance(config, BitFitConfig):
        return "new zero biases" if config.new_biases else ""
    return ""
