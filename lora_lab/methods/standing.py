"""Whether the modules that an adapter acts at are still the model's.

Who puts another module in a place (`set_input_embeddings`, a new head, a block that is left out)
takes away what the adapter has there, and whatever stands there now goes without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from lora_lab._util.torch_private import children_of, hooks_of, parameters_of
from lora_lab.anatomy.children import SAVED_CHILD, without_wrappers
from lora_lab.errors import AdapterError
from lora_lab.methods.lora.shared_input import SharedInput
from lora_lab.methods.own_tensors import added_children

if TYPE_CHECKING:
    from lora_lab.methods.base import Adapter

_FIX = "put the module back, or detach and attach again"
_NONE = frozenset[int]()
_Link = tuple[nn.Module, str, nn.Module]  # parent, the child's name there, child


class Standing:
    """Where one adapter acts: at what holds its parameters, or holds a module that does, and at
    what has got hooks of it.

    Args:
        model: with the adapter in place.
        adapter: of any method.
        hooks: what `hooks_by_module` returned before it was put there.

    Attributes:
        layers: {path: module}, under each of its names.
    """

    def __init__(
        self, model: nn.Module, adapter: Adapter, hooks: dict[nn.Module, set[int]]
    ) -> None:
        own = {id(tensor) for tensor in (*adapter.parameters(), *adapter.state().values())}
        self.layers: dict[str, nn.Module] = {}
        self._parameters: dict[str, tuple[nn.Module, str, nn.Parameter]] = {}
        at, places = set(adapter.acts_at()), _places(model)
        whole: tuple[str, ...] = ()  # of which copies answer, with all that is below
        for path, module, _, _ in places:
            for name, parameter in parameters_of(module).items():
                if parameter is not None and id(parameter) in own:
                    self._parameters[f"{path}.{name}".lstrip(".")] = module, name, parameter
                    self.layers[path] = module
            children = children_of(module)
            for name in added_children(module) if children else ():
                added = children.get(name)
                if added is not None and any(id(p) in own for p in added.parameters()):
                    self.layers[path] = module
                    whole += (f"{path}.",) if name == SAVED_CHILD else ()
            within = module in at or (whole and path.startswith(whole))
            if within or _hooks(module) - hooks.get(module, _NONE):
                self.layers[path] = module
        every = Counter(place.module for place in places)
        self._names = {layer: every[layer] for layer in self.layers.values()}
        self._links = _links(places, self.layers.values())

    def replaced(self, model: nn.Module) -> list[str]:
        """Return the paths of the modules that the model has no more where the adapter acts."""
        if all(children_of(parent).get(name) is child for parent, name, child in self._links):
            return []
        places = _places(model)
        here = {place.path: place.module for place in places}
        now = Counter(here.values())
        gone = [
            path
            for path, layer in self.layers.items()
            if now[layer] < self._names[layer] and not self._serves(here.get(path), layer)
        ]
        if not gone:  # something stands around a module now, or it has moved
            self._links = _links(places, self.layers.values())
        return gone

    def _serves(self, there: nn.Module | None, layer: nn.Module) -> bool:
        """Whether the adapter acts at what stands in a layer's place: T5's ends of one weight."""
        if there is layer:
            return True
        weight = getattr(layer, "weight", None)
        return there in self._names and weight is not None and there.weight is weight

    def replaced_parameters(self) -> list[str]:
        """Return the names of parameters, trained in place, that their modules have no more."""
        own = self._parameters.items()
        return [n for n, (m, leaf, p) in own if parameters_of(m).get(leaf) is not p]


def hooks_by_module(model: nn.Module) -> dict[nn.Module, set[int]]:
    """Return which hooks each module of a model has."""
    return {place.module: _hooks(place.module) for place in _places(model)}


def missing(model: nn.Module, adapter: Adapter, *, parameters: bool = True, fix: str = _FIX) -> str:
    """Return in one line what an adapter acts at no more, as it was replaced; "" if nothing.

    Args:
        model: without wrappers.
        adapter: on it.
        parameters: whether those count that it trains in place. Within a pass they may be others
            for a moment, as `torch.func.functional_call` has it.
        fix: the end of the line.
    """
    if adapter.stands is None:
        return ""
    gone = adapter.stands.replaced(model)
    if parameters and not gone:
        gone = adapter.stands.replaced_parameters()
    if not gone:
        return ""
    more = f" (and {len(gone) - 1} more)" if gone[1:] else ""
    return (
        f"{gone[0] or 'the model'}{more} was replaced or taken out after adapter "
        f"{adapter.name!r} was attached, so that the adapter does nothing there; {fix}"
    )


def refuse_missing(model: nn.Module, adapter: Adapter) -> None:
    """Raise `AdapterError` if the model has a module no more that an adapter acts at."""
    if line := missing(model, adapter):
        raise AdapterError(line)


def _hooks(module: nn.Module) -> set[int]:
    # Layers that share what they read do without it as well.
    return {
        id(hook)
        for hook in hooks_of(module)
        if not isinstance(getattr(hook, "__self__", None), SharedInput)
    }


class _Place(NamedTuple):
    """A module under one of its names."""

    path: str
    module: nn.Module
    name: str  # in the module above
    above: int  # that one's place in the list; -1: it is the model


def _places(model: nn.Module) -> list[_Place]:
    """Return a model's modules without what adapters have added, under each of their names.

    In the order of `named_modules`. It is gone through several times for each adapter, so it is no
    recursion of generators, each module coming through all above it.
    """
    found: list[_Place] = []
    waiting = [("", model, "", -1)]
    while waiting:
        path, module, name, above = waiting.pop()
        here = len(found)
        found.append(_Place(without_wrappers(path), module, name, above))
        children = children_of(module)
        if not children:
            continue
        added = added_children(module)
        waiting += [
            (f"{path}.{name}" if path else name, child, name, here)
            for name, child in reversed(children.items())
            if child is not None and name not in added
        ]
    return found


def _links(places: Sequence[_Place], layers: Iterable[nn.Module]) -> list[_Link]:
    """Return how some modules are reached, each step once."""
    wanted, known = set(layers), set[int]()
    found = []
    for number, place in enumerate(places):
        if place.module not in wanted:
            continue
        while number not in known and place.above >= 0:
            known.add(number)
            above = places[place.above]
            found.append((above.module, place.name, place.module))
            number, place = place.above, above
    return found
