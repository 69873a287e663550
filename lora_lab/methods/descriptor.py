"""What a method tells of itself, once: all that lists methods or asks after them reads this.

A method's folder holds a `method.py` that registers its descriptors; one that is defined elsewhere
(in a notebook, in a test) calls `register` itself. Nothing here needs torch: the adapter is named,
and imported when it is put on a model.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy
    from lora_lab.methods.base import Adapter
    from lora_lab.methods.config import MethodConfig
    from lora_lab.methods.cost import MethodCost

    Cost = Callable[[Anatomy, Any, dict[str, Any]], MethodCost]

LEARNING_RATE = 2e-3  # LoRA's, as `TrainingConfig` has it
# Widths (of the hidden states) between which own rates go over from published ones to what was
# found best on mini-llama: SmolLM2-135M's and mini-llama's.
WIDE, SMALL = 576, 192
_SWEPT = "found by a sweep with one seed, of this method or a near one"


@dataclass(frozen=True)
class Plan:
    """What a setting that is left empty may follow from; None: not known.

    Attributes:
        rank: that most of the targets have.
        limit: the smallest min(out, in) of the targets.
        steps: optimizer steps of the run.
        blocks: of the model's shortest stack.
    """

    rank: int
    limit: int | None = None
    steps: int | None = None
    blocks: int | None = None


@dataclass(frozen=True)
class Field:
    """A field of a method's config that people set; methods may share one of the same name.

    Attributes:
        name: the config's.
        label: what the workbench calls it.
        help: in a few words, for the command line and the workbench.
        kind: int, float, bool, or tuple: words, parted by commas.
        flag: of `lora-lab budget`; "": the name, with dashes; None: it is not offered there.
        default: where it starts, if that is not the config's own default.
        automatic: it may be left empty: `Method.automatic` or else the config says what it is.
        painted: the workbench's grid sets it, where the method uses the grid.
        choices: returns {what people read: value} of a field that is chosen, its default first.
        more: it is seldom needed: the workbench has it behind "more".
    """

    name: str
    label: str
    help: str
    kind: type = float
    flag: str | None = ""
    default: Any = None
    automatic: bool = False
    painted: bool = False
    choices: Callable[[], Mapping[str, Any]] | None = None
    more: bool = False

    @property
    def option(self) -> str:
        """The command line's name of it, without the two dashes in front."""
        return self.flag or self.name.replace("_", "-")

    def text(self, value: Any) -> str:
        """Return "α 16", "new zero biases" or, of what is empty or not ticked, ""."""
        if self.choices is not None:
            default, *others = self.choices().items()
            return "" if value == default[1] else next((k for k, v in others if v == value), value)
        if value is None or value is False:
            return ""
        if isinstance(value, (list, tuple)):
            value = " ".join(map(str, value))
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        return self.label if value is True else f"{self.label} {shown}"

    def start(self, config: type[MethodConfig]) -> Any:
        """Return the value that it starts with; None: it is empty."""
        known = self.automatic or self.default is not None
        return self.default if known else _default(config, self.name)

    def words(self, text: str) -> str | list[str]:
        """Return the words of a text that are parted by commas; "all-linear" stays what it is."""
        if text.strip().lower() == "all-linear":
            return "all-linear"
        return [word.strip() for word in text.split(",") if word.strip()]


@dataclass(frozen=True)
class PeftForm:
    """How PEFT writes what a method learns: one tensor a module.

    The adapter has `peft_form` and `fill_from_peft`, see `LayerAdapter`.

    Attributes:
        type: peft_type in adapter_config.json.
        key: what follows a module's path in the tensor's name.
        config: what a file means, called with (settings, {module path: its tensor's shape}).
    """

    type: str
    key: str
    config: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], MethodConfig]


@dataclass(frozen=True)
class Method:
    """One entry that people choose from.

    Attributes:
        name: the paper's; with `fixed` a config's class may have several.
        config: the config's class.
        adapter: what is put on a model, called with (model, config, name) and, where
            `config.needs_batches`, the batches: a class, or its place, "package.module:Class".
        cost: what it adds to a training step, called with (anatomy, config, price table) and
            returning a `MethodCost`; likewise.
        key: the command line's name; "": it is not offered, only used beside others.
        fixed: values of the config's fields that the name says already.
        fields: what people set.
        about: what it trains, in a few words; or says so of a config.
        numbers: a config's own numbers for a title; None: all of its fields.
        setting: the same for a table of runs, in the paper's letters; None: as a title has it.
        size: what tells two of its runs apart, as short as can be; None: as a title has it.
        short: its name in a combination's.
        joins: names of the methods that it is offered together with.
        rank: the field that a rank is given by ("r"), "" where it has none.
        ranks: a config's {site: rank} on a model, where it learns low-rank updates of targets.
        rank_fields: the fields that give a config other targets and ranks: called with (anatomy,
            {site: rank}, config).
        no_ranks: of a method without `ranks`, in a word: what it trains.
        automatic: {field: what it is where it is left empty}.
        trains_everything: it leaves no weight that another method could train.
        learning_rate: the peak rate to begin with, some hundred steps long, of models whose hidden
            states are 576 wide or wider; `rate_for` has that of any.
        rate_from: the finding that it rests on, in a few words; "": there is none of its own.
        small_rate: the rate for models 192 wide, as mini-llama is, or narrower; None: nobody has
            tried, it is `learning_rate`.
        sparse_gradients: a step may leave some of its parameters without a gradient.
        peft_form: it is saved in PEFT's format, as LoRA.
        peft: it is saved in PEFT's format, as a method of its own.
        order: where it stands in lists.
    """

    name: str
    config: type[MethodConfig]
    adapter: type[Adapter] | str
    cost: Cost | str
    key: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[Field, ...] = ()
    about: str | Callable[[Any], str] = ""
    numbers: Callable[[Any], str] | None = None
    setting: Callable[[Any], str] | None = None
    size: Callable[[Any], str] | None = None
    short: str = ""
    joins: tuple[str, ...] = ()
    rank: str = ""
    ranks: Callable[[Anatomy, Any], dict[str, int]] | None = None
    rank_fields: Callable[[Anatomy, Mapping[str, int], Any], Mapping[str, Any]] | None = None
    no_ranks: str = "has no ranks"
    automatic: Callable[[Plan], Mapping[str, int]] | None = None
    trains_everything: bool = False
    learning_rate: float = LEARNING_RATE
    rate_from: str = ""
    small_rate: float | None = None
    sparse_gradients: bool = False
    peft_form: bool = False
    peft: PeftForm | None = None
    order: int = 100

    def serves(self, config: Any) -> bool:
        """Whether a config is one of this entry's."""
        return type(config) is self.config and all(
            getattr(config, name) == value for name, value in self.fixed.items()
        )

    @property
    def typed_fields(self) -> tuple[Field, ...]:
        """Those of the fields that the workbench's grid does not set."""
        return tuple(f for f in self.fields if not (f.painted and self.ranks))

    def rate_for(self, width: int | None) -> float:
        """Return the peak learning rate to begin with, to two digits.

        Smaller models learn more at higher rates than the published ones, FT at many times as high
        a one. Between mini-llama's width, where sweeps over rates measured it, and
        SmolLM2-135M's it is a power of the width, as in LoRA Without Regret (Schulman & Thinking
        Machines, 2025), whose own power, 0.781, was fitted to Llamas ten times as wide and more.

        Args:
            width: of the model's hidden states (`hidden_size`); None: not known, as a wide one.
        """
        if self.small_rate is None or width is None or width >= WIDE:
            return self.learning_rate
        share = math.log(WIDE / max(width, SMALL)) / math.log(WIDE / SMALL)
        rate = self.learning_rate * (self.small_rate / self.learning_rate) ** share
        return float(f"{rate:.1e}")

    def rate_reason(self, width: int | None) -> str:
        """Say what `rate_for` rests on; "" where it is nothing of the method's own."""
        rate = self.rate_for(width)
        if not self.rate_from or rate == self.learning_rate:
            return self.rate_from
        wide = f"from {WIDE} wide on it is {_told(self.learning_rate)}, {self.rate_from}"
        if rate == self.small_rate:
            return f"for models as small as mini-llama ({SMALL} wide), {_SWEPT}; {wide}"
        small = f"mini-llama's {_told(self.small_rate)} ({SMALL} wide), {_SWEPT}"
        return f"by a power of the width ({width}) from {small}; {wide}"

    def filled(self, values: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
        """Return values of the config's fields; those that are None become what is automatic.

        Where the config itself takes None, it is left to the config.
        """
        free = self.automatic(plan) if self.automatic else {}
        own = {name: _default(self.config, name) for name in values}
        return {
            name: free.get(name, own[name]) if value is None and own[name] is not None else value
            for name, value in values.items()
        }

    def build(self, *arguments: Any) -> Adapter:
        """Make the adapter of (model, config, name), or of these and batches."""
        made: Adapter = _resolved(self.adapter)(*arguments)
        return made

    def price(self, *arguments: Any) -> MethodCost:
        """Return what it adds to a step, of (anatomy, config, price table)."""
        cost: MethodCost = _resolved(self.cost)(*arguments)
        return cost

    def describe(self, config: Any) -> str:
        """Say in a few words what a config trains."""
        return self.about(config) if callable(self.about) else self.about

    def title(self, config: Any) -> str:
        """Return a config's own numbers as a title has them."""
        if self.numbers is not None:
            return self.numbers(config)
        shown = [f.text(getattr(config, f.name)) for f in self.typed_fields]
        return " · ".join(filter(None, shown))


METHODS: dict[str, Method] = {}


def register(*methods: Method) -> None:
    """Make methods known everywhere; one of the same name is replaced."""
    for method in methods:
        METHODS[method.name] = method


def _told(rate: float | None) -> str:
    return f"{rate:g}".replace("e-0", "e-")


def _default(config: type[MethodConfig], name: str) -> Any:
    own = next(f for f in fields(config) if f.name == name)  # type: ignore[arg-type]
    return None if own.default is MISSING else own.default


def _resolved(named: Any) -> Any:
    if not isinstance(named, str):
        return named
    module, _, name = named.partition(":")
    return getattr(importlib.import_module(module), name)
