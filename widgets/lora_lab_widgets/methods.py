"""The drop-down: the registry's methods, their settings, and the configs that these make."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_lab._util.format import shown
from lora_lab.anatomy.types import Anatomy
from lora_lab.captions.glossary import keys_of
from lora_lab.errors import ConfigError
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.descriptor import LEARNING_RATE, Field, Method, Plan
from lora_lab.methods.lora.targets import common_rank
from lora_lab.methods.registry import method_of, offered
from lora_lab.runs.training_config import TrainingConfig
from lora_lab_widgets.decoding_fields import DECODING, decoding_values
from lora_lab_widgets.training_fields import TRAINING, training_values

Values = Mapping[str, Any]
Templates = Mapping[str, MethodConfig]
"""{method: where the fields come from that no setting shows}."""


@dataclass(frozen=True)
class Entry:
    """One entry of the drop-down.

    Attributes:
        name: the paper's.
        methods: one, or several that are combined; none for what was set from Python and is kept
            as it was given.
    """

    name: str
    methods: tuple[Method, ...] = ()

    @property
    def fields(self) -> tuple[Field, ...]:
        """The settings that it has."""
        return tuple(field for method in self.methods for field in method.typed_fields)

    def rate_for(self, width: int | None) -> float:
        """Return the learning rate to begin with: of a combination the lowest of its methods'.

        Args:
            width: of the model's hidden states.
        """
        return min((method.rate_for(width) for method in self.methods), default=LEARNING_RATE)

    def rate_reason(self, width: int | None) -> str:
        """Return the finding that it rests on."""
        rate = self.rate_for(width)
        own = [method for method in self.methods if method.rate_for(width) == rate]
        return own[0].rate_reason(width) if own else ""

    @property
    def paints(self) -> bool:
        """Whether the painted ranks are its own."""
        return any(method.ranks for method in self.methods)

    def serves(self, config: MethodConfig) -> bool:
        """Return whether its settings show all of a config."""
        parts = config.parts
        return len(parts) == len(self.methods) and all(map(Method.serves, self.methods, parts))

    def values(self, config: MethodConfig) -> dict[str, Any]:
        """Return the settings that make a config again."""
        values = {"method": self.name}
        for method, part in zip(self.methods, config.parts, strict=False):
            values |= {f.name: as_setting(f, getattr(part, f.name)) for f in method.typed_fields}
        return values

    def config(
        self,
        values: Values,
        anatomy: Anatomy,
        painted: Mapping[str, int],
        templates: Templates,
        max_steps: int,
    ) -> MethodConfig:
        """Return the config that settings and ranks make.

        Args:
            values: all settings, as they were typed.
            anatomy: of the model.
            painted: {site name: rank}.
            templates: for fields that no setting shows.
            max_steps: optimizer steps of the run, that AdaLoRA's schedule has to fit into.

        Raises:
            ConfigError: nothing is painted, or a value that cannot be.
        """
        parts = []
        for method in self.methods:
            template: Any = templates.get(method.name) or method.config(**method.fixed)
            own: dict[str, Any] = {**method.fixed, **typed(values, method.typed_fields)}
            if method.rank_fields:
                own |= method.rank_fields(anatomy, painted, template)
            own = method.filled(own, _plan(anatomy, painted, max_steps))
            part = template.replace(**own)
            part.check_steps(max_steps)
            parts.append(part)
        return as_config(parts)

    def about(self, config: MethodConfig, anatomy: Anatomy) -> str:
        """Say in one line what it trains, and what it takes from the sequence."""
        lines = []
        if self.methods and (last := self.methods[-1].describe(config.parts[-1])):
            lines.append(", and ".join([*(method.name for method in self.methods[:-1]), last]))
        elif not self.methods:
            lines.append("set from Python, and kept as it was given")
        tokens = config.tokens
        if tokens and (most := anatomy.shape.max_positions):
            usable = f"{most:,} − {tokens:,} = {most - tokens:,} tokens"
            lines.append(f"usable sequence length: {usable}")
        return "; ".join(lines)

    def with_remedy(self, error: str, chosen: str) -> str:
        """Return an error's line with the remedy that the workbench has for it.

        Args:
            error: of this entry's config.
            chosen: the name of the entry whose boxes are on show.
        """
        first = "" if self.name == chosen else f"choose {self.name} in the settings, "
        for field in self.fields:
            if field.kind is bool and f"{field.name}=True" in error:
                return f"{error.partition(';')[0]}; {first}tick “{field.label}”"
        return error

    def instead(self, config: MethodConfig | None) -> str:
        """Say why the grid is not its own; "" where it is."""
        if self.paints:
            return ""
        why = self.methods[0].no_ranks if self.methods else "was set from Python"
        return f"{config.method if config else self.name} {why}; the grid is LoRA's"


def entries() -> dict[str, Entry]:
    """Return {name: entry}: every method, then the combinations that methods are offered in."""
    known = offered()
    found = {name: Entry(name, (method,)) for name, method in known.items()}
    for method in known.values():
        for first in method.joins:
            name = f"{first}+{method.short or method.name}"
            found[name] = Entry(name, (known[first], method))
    return found


def method_fields() -> tuple[Field, ...]:
    """Return the settings of all methods; those of one name are one setting."""
    found: dict[str, Field] = {}
    for method in offered().values():
        for field in method.typed_fields:
            found.setdefault(field.name, field)
    return tuple(found.values())


def form_fields() -> list[dict[str, Any]]:
    """Return how the form shows the settings, those of all methods first."""
    own = default_values()
    training = {**training_values(TrainingConfig()), **decoding_values()}
    return [_told(field, "method", own) for field in method_fields()] + [
        _told(field, "training", training) for field in (*TRAINING, *DECODING)
    ]


def _told(field: Field, part: str, starts: Values) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": field.name,
        "label": field.label,
        "help": field.help,
        "part": part,
    }
    told["start"] = starts[field.name]
    told |= {"term": term} if (term := keys_of("settings").get(field.name)) else {}
    told |= {"ticked": field.kind is bool, "wide": field.kind is tuple, "more": field.more}
    return told | ({"options": list(field.choices())} if field.choices is not None else {})


def default_values() -> dict[str, Any]:
    """Return the settings of all methods, under the field names of their configs."""
    values: dict[str, Any] = {"method": next(iter(offered()))}
    for method in offered().values():
        for field in method.typed_fields:
            values.setdefault(field.name, as_setting(field, field.start(method.config)))
    return values


def entry_called(name: Any) -> Entry:
    """Return an entry of the drop-down.

    Raises:
        ConfigError: there is none of that name.
    """
    known = entries()
    if name not in known:
        raise ConfigError(f"method is {name!r}; use one of {', '.join(known)}")
    return known[name]


def choices(values: Values, given: Entry | None) -> list[dict[str, Any]]:
    """Return the drop-down's entries: name, text, settings, and terms that explain them.

    Args:
        values: all settings, as they were typed.
        given: what was set from Python and no entry shows.
    """
    every = (*entries().values(), *([given] if given else []))
    known = keys_of("methods")
    return [
        {
            "name": e.name,
            "text": _text(e, values),
            "fields": [f.name for f in e.fields if not f.more],
            "terms": [known[m.name] for m in e.methods if m.name in known],
        }
        for e in every
        if all(f.name in values for f in e.fields)  # not one that was registered since
    ]


def _text(entry: Entry, values: Values) -> str:
    """Return an entry's name with the settings that are a part of it, such as FT-Top3."""
    with contextlib.suppress(ConfigError):
        if len(entry.methods) == 1 and not entry.paints:
            (method,) = entry.methods
            return method.config(**method.fixed, **typed(values, entry.fields)).method
    return entry.name


def entry_of(config: MethodConfig) -> Entry:
    """Return the entry whose settings show all of a config, else one that only names it."""
    found = next((entry for entry in entries().values() if entry.serves(config)), None)
    return found or as_given(config)


def as_given(config: MethodConfig) -> Entry:
    """Return an entry that only names a config."""
    return Entry(config.method if config.method not in entries() else f"{config.method} as given")


def as_setting(field: Field, value: Any) -> Any:
    """Return a config's value as a setting: "" for None, words parted by commas, a choice's name.

    A value that is none of the choices stands for itself.
    """
    if field.choices is not None:
        return next((name for name, own in field.choices().items() if own == value), value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else value


def ranks_of(anatomy: Anatomy, config: MethodConfig) -> dict[str, int] | None:
    """Return what the grid shows of a config; None: nothing, it stays as it is."""
    for part in config.parts:
        if ranks := method_of(part).ranks:
            return ranks(anatomy, part)
    return None


def automatic(anatomy: Anatomy, painted: Mapping[str, int], max_steps: int) -> dict[str, int]:
    """Return what the settings are that may be left empty, of all methods."""
    plan = _plan(anatomy, painted, max_steps)
    found: dict[str, int] = {}
    for method in offered().values():
        found |= method.automatic(plan) if method.automatic else {}
    return found


def _plan(anatomy: Anatomy, painted: Mapping[str, int], max_steps: int) -> Plan:
    sites = [anatomy.by_name[name] for name in painted]
    return Plan(
        rank=common_rank(painted),
        limit=min((min(s.out_features, s.in_features) for s in sites), default=None),
        steps=max_steps,
        blocks=min(Counter(row.stack for row in anatomy.rows).values(), default=1),
    )


def max_length_of(values: Mapping[str, Any]) -> int:
    """Return how many tokens an example has at most.

    Raises:
        ConfigError: what is typed can be no such number.
    """
    own = [field for field in TRAINING if field.name == "max_length"]
    return TrainingConfig(**typed(values, own)).max_length


def typed(values: Values, fields: Iterable[Field]) -> dict[str, Any]:
    """Return settings as the configs want them; the browser may have sent any text.

    Raises:
        ConfigError: what is no number, or no whole number where one is needed.
    """
    return {field.name: _typed(field, values[field.name]) for field in fields}


def _typed(field: Field, value: Any) -> Any:
    if field.choices is not None:
        return field.choices().get(value, value) if isinstance(value, str) else value
    if field.kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{field.name} is {value!r}; it must be True or False")
        return value
    if field.kind is tuple:
        return field.words(str(value))
    if field.automatic and value in ("", None):
        return None
    if field.kind is str:
        return str(value)
    return number(field.name, value, whole=field.kind is int)


def number(name: str, value: Any, *, whole: bool) -> float | int:
    """Return what was typed as a number.

    Raises:
        ConfigError: it is none, or no whole one where that is needed.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        given = "empty" if value == "" else shown(value)
        raise ConfigError(f"{name} is {given}; it must be a number")
    if not whole:
        return value
    if not math.isfinite(value) or value != int(value):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number")
    return int(value)


def numbers(config: MethodConfig) -> str:
    """Return a config's own numbers, for the title line."""
    return " · ".join(filter(None, (method_of(part).title(part) for part in config.parts)))
