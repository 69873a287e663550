"""What a model remembers of its adapters: one object, whose `Active` every adapted layer looks at.

So switching costs the same with 2 or 200 adapters loaded.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_lab._util.cpu_layout import allow_cpu_layout, prevent_cpu_layout
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.errors import AdapterError
from lora_lab.methods.base import Active, Adapter
from lora_lab.methods.own_modes import can_be_apart
from lora_lab.methods.resizing import unwatch_resizing, watch_resizing
from lora_lab.methods.running_statistics import RunningStatistics
from lora_lab.methods.turns import is_at_work, turn_of

if TYPE_CHECKING:
    from lora_lab.methods.lora.watch import Watch

_ATTRIBUTE = "_lora_lab"
_MERGES = "_lora_lab_merges"


@dataclass
class AttachedAdapters:
    """A model's adapters and what is needed to give its base back as it was."""

    statistics: RunningStatistics
    model: nn.Module
    active: Active = field(default_factory=Active)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    required_grad: list[tuple[nn.Parameter, bool]] = field(default_factory=list)
    merged: str | None = None
    originals: list[tuple[nn.Parameter, Tensor]] | None = None  # None: merged for good
    quantized: list[tuple[str, nn.Module]] = field(default_factory=list)  # taken out by `merge`
    saving: RemovableHandle | None = None  # tells of adapters when the model's state is taken
    watch: Watch | None = None  # tells of layers that the first pass goes past
    cpu_layouts: list[nn.Module] = field(default_factory=list)  # see `prevent_cpu_layout`
    trained: Adapter | None = None  # the latest run's; one at a time trains on a model

    @property
    def names(self) -> str:
        """The adapters' names, for people."""
        return ", ".join(map(repr, self.adapters)) or "none"

    def find(self, name: str) -> Adapter:
        """Return an adapter by name.

        Raises:
            AdapterError: there is none, or the name is no text.
        """
        if not isinstance(name, str):
            raise AdapterError(
                f"{name!r} is no adapter's name; give one name, and several as one adapter by "
                "combine(model, weights, name)"
            )
        if name not in self.adapters:
            raise AdapterError(f"no adapter is called {name!r}; attached are {self.names}")
        return self.adapters[name]

    def refuse_merged(self) -> None:
        """Raise `AdapterError` while an adapter is merged; the line names the way on."""
        if self.merged:
            way = "unmerge" if self.originals is not None else "merge_and_unload"
            raise AdapterError(f"adapter {self.merged!r} is merged; call {way}(model) first")

    def refuse_training(self) -> None:
        """Raise `AdapterError` while a run trains one of them, or somebody has the model.

        Not if it is the run itself that asks, or who has the model.
        """
        turn_of(self.model).refuse_others()
        if (adapter := self.trained) is not None and adapter.trains():
            raise AdapterError(
                f"run {adapter.run} trains adapter {adapter.name!r} of this model now; do it "
                "within `with run.paused() as model:`, or stop the run first"
            )

    def switch(self, name: str | None) -> None:
        """Make an adapter the active one; None: the bare base."""
        before = self.active.name
        if before == name:
            return
        if before is not None:
            self.adapters[before].set_active(False)
        self.active.name = name
        self.statistics.become(name)
        if name is None:
            return
        try:
            self.adapters[name].set_active(True)
        except BaseException:  # out of memory: no part of it stays on
            self.adapters[name].set_active(False)
            self.active.name = None
            self.statistics.become(None)
            raise

    def can_step_aside(self, model: nn.Module) -> bool:
        """Whether the base can answer one thread while an adapter does the others, of this model.

        Args:
            model: that they ask, wrapped or not.
        """
        name = self.active.name
        within = name is None or self.merged or self.adapters[name].modifies_base
        return not (within or self.statistics) and can_be_apart(model)

    @contextlib.contextmanager
    def base_in_place(self) -> Iterator[None]:
        """Have the base's values in the model meanwhile, where the active adapter modifies them.

        Raises:
            AdapterError: it does, and a run trains it now.
        """
        name = self.active.name
        if name is None or not (self.adapters[name].modifies_base or self.statistics.learned(name)):
            yield
            return
        self.refuse_training()
        self.switch(None)
        try:
            yield
        finally:
            self.switch(name)


def attached_adapters(model: nn.Module) -> AttachedAdapters | None:
    """Return what a model knows of its adapters; None: it has none."""
    return getattr(unwrapped(model), _ATTRIBUTE, None)


def require_adapters(model: nn.Module) -> AttachedAdapters:
    """Return what a model knows of its adapters, or say that it has none."""
    found = attached_adapters(model)
    if found is None:
        raise no_adapter(model)
    return found


def no_adapter(model: nn.Module) -> AdapterError:
    """Return what to say of a model without one: maybe it stands around one that has."""
    parts = model.named_modules() if isinstance(model, nn.Module) else ()
    part = next((path for path, module in parts if path and hasattr(module, _ATTRIBUTE)), None)
    if part is None:
        return AdapterError("the model has no adapter; call attach(model, config) first")
    return AdapterError(f"the model has no adapter, but its part {part!r} has; pass that one")


def merges_for_good(model: nn.Module) -> int:
    """Return how many adapters have become part of a model's own weights."""
    return int(getattr(unwrapped(model), _MERGES, 0))


def refuse_lost_base(model: nn.Module, merges: int) -> None:
    """Raise `AdapterError` if more adapters have become part of the weights since there were so."""
    if merges_for_good(model) > merges:
        raise AdapterError(
            "an adapter was merged into the weights for good, so W₀ is gone; load the model again"
        )


def remember(model: nn.Module) -> AttachedAdapters:
    """Freeze a model and have it know of adapters, none yet; or return what it knows."""
    known = attached_adapters(model)
    if known is None:
        known = AttachedAdapters(
            RunningStatistics(model),
            unwrapped(model),
            required_grad=[(p, p.requires_grad) for p in model.parameters()],
            cpu_layouts=prevent_cpu_layout(model),
        )
        model.requires_grad_(False)
        setattr(unwrapped(model), _ATTRIBUTE, known)
        watch_resizing(unwrapped(model), known)
    return known


def forget(model: nn.Module) -> None:
    """Give a model back as it was before its first adapter; all of them are off it."""
    known = require_adapters(model)
    for parameter, required in known.required_grad:
        parameter.requires_grad_(required)
    if known.merged and known.originals is None:
        setattr(unwrapped(model), _MERGES, merges_for_good(model) + 1)
    allow_cpu_layout(known.cpu_layouts)
    if known.saving is not None:
        known.saving.remove()
    if known.watch is not None:
        known.watch.end(unwrapped(model))
    delattr(unwrapped(model), _ATTRIBUTE)
    unwatch_resizing(unwrapped(model))


def one_step(model: nn.Module, name: str | None) -> AbstractContextManager[object]:
    """Return a ``with`` block in which an adapter is that of one step: what trains it rests.

    Without it half of what is read would be of one step, and half of the next.

    Args:
        model: any.
        name: the adapter's; None: the one in force.
    """
    known = attached_adapters(model)
    if known is None or known.trained is None or is_at_work():
        return contextlib.nullcontext()
    adapter = known.adapters.get(name or known.merged or known.active.name or "")
    return contextlib.nullcontext() if adapter is not known.trained else known.trained.at_rest()


def activate(model: nn.Module, name: str | None) -> None:
    """Switch to an attached adapter, or with None to the bare base model."""
    known = require_adapters(model) if name else attached_adapters(model)
    if known is None:
        return
    if known.merged:
        if known.merged == name:
            return
        known.refuse_merged()
    if name is not None:
        known.find(name)
    if name != known.active.name:
        known.refuse_training()
    known.switch(name)


def active(model: nn.Module) -> str | None:
    """Return the name of the adapter in force, merged or active; None for the bare base."""
    known = attached_adapters(model)
    return (known.merged or known.active.name) if known else None


def attached(model: nn.Module) -> dict[str, Adapter]:
    """Return the model's adapters by name, in the order of attaching."""
    known = attached_adapters(model)
    return dict(known.adapters) if known else {}


@contextlib.contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """Have the bare base model meanwhile.

    For this thread alone where that can be: what another one asks is answered as before. Not so
    where the adapter in force works within the model's own parameters, the model has running
    statistics, or its passes are not this thread's (see `can_be_apart`).
    """
    known, before = attached_adapters(model), active(model)
    if known is not None and known.can_step_aside(model):
        known.refuse_training()
        with known.active.apart(()):
            yield
        return
    activate(model, None)
    try:
        yield
    finally:
        activate(model, before)


def original_weight(model: nn.Module, weight: nn.Parameter) -> Tensor:
    """Return W₀ of a parameter, also while an adapter is merged into it."""
    known = attached_adapters(model)
    if known and known.merged:
        if known.originals is None:
            raise AdapterError("W₀ was not kept (keep_original=False); load the model again")
        for changed, original in known.originals:
            if changed is weight:
                return original.to(weight.device)
    elif known and (own := known.adapters.get(known.active.name or "")):
        base_value = own.base_value(weight)
        return weight.detach() if base_value is None else base_value
    return weight.detach()


def base_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the base's own parameters in their order, without any adapter's."""
    known = attached_adapters(model)
    return [p for p, _ in known.required_grad] if known else list(model.parameters())


def tell_of_adapters(model: nn.Module, *_: Any) -> None:
    """Warn that the model's state is not its base's: `save_pretrained` asks for it too."""
    known = attached_adapters(model)
    if known is None or known.merged or not known.adapters:
        return
    warnings.warn(
        f"the model's state dict, which save_pretrained writes, is not the base's: it holds "
        f"{', '.join(f'adapter {name!r} ({own.method})' for name, own in known.adapters.items())}; "
        "ll.save_adapter(model, folder) writes an adapter, ll.export_merged(model, folder) a whole "
        "model",
        stacklevel=4,  # torch's two frames between
    )
