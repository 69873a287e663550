"""What accelerate keeps away, on the CPU or the disk: no place to learn, refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from lora_lab._util.accelerate_private import is_offloaded, loads_submodules
from lora_lab.errors import AdapterError
from lora_lab.methods.lora.own_forward import hold_weight

if TYPE_CHECKING:
    from lora_lab.methods.base import Adapter


def check_present(module: nn.Module, path: str) -> None:
    """Refuse to compute with learned parameters that went away with the model's weights.

    What comes back for a pass is a copy of the old values that no optimizer knows.

    Args:
        module: what an adapter has put into the model.
        path: where.

    Raises:
        AdapterError: the model was offloaded after the adapter was attached.
    """
    if any(is_offloaded(part) for part in module.modules()):
        raise AdapterError(
            f"the model was offloaded after attaching, and what is learned at {path} with it; "
            "offload the model first, then attach or load the adapter"
        )


def check_trained(model: nn.Module, adapter: Adapter) -> None:
    """Refuse to train parameters that are the model's no more: nothing would reach them.

    Raises:
        AdapterError: the model was offloaded, or moved by such a hook, after attaching.
    """
    own = set(map(id, model.parameters()))
    for place, parameters in adapter.parameters_by_location().items():
        if any(id(parameter) not in own for parameter in parameters):
            raise AdapterError(
                f"what is learned at {place} is no part of the model any more: it was offloaded "
                "after attaching; load it again, offload it first, then attach or train"
            )


def offload_notes(model: nn.Module) -> list[str]:
    """Return what a person should know who trains a model with weights that are kept away."""
    away = sum(
        p.numel() for part in model.modules() if is_offloaded(part) for p in part.parameters(False)
    )
    if not away:
        return []
    return [
        f"{away:,} weights are kept on the CPU or the disk, and each pass brings them; they stay "
        "until its backward pass has used them, block by block with gradient_checkpointing=True"
    ]


def check_room(paths: Iterable[str], by_path: Mapping[str, nn.Module]) -> None:
    """Refuse to put something below modules whose weights accelerate brings all at once.

    It would look for what is new there too.

    Args:
        paths: where something is to be put.
        by_path: the model's modules.

    Raises:
        AdapterError: the line names the place.
    """
    for path in paths:
        parts = path.split(".")
        for depth in range(len(parts) + 1):
            above = by_path.get(".".join(parts[:depth]))  # a name may have a dot in it
            if above is not None and loads_submodules(above):
                raise AdapterError(
                    f"{path or 'the model'} is offloaded as a part of "
                    f"{'.'.join(parts[:depth]) or 'the model'}, which nothing can be put into; "
                    "leave preload_module_classes out when the model is loaded"
                )


def weight_keys(by_path: Mapping[str, nn.Module]) -> Callable[[str], object]:
    """Return what gives the modules with one weight (tied) the same key, and each other its own.

    A tied weight that is offloaded becomes a tensor for each of its modules: there the model's own
    word counts, transformers' `all_tied_weights_keys`.

    Args:
        by_path: the model's modules; "" is the model.
    """
    declared: Mapping[str, str] = getattr(by_path.get(""), "all_tied_weights_keys", None) or {}
    groups: dict[str, list[str]] = {}
    for name, other in declared.items():
        groups.setdefault(other, [other]).append(name)
    ends = {
        _path(name): first
        for first, names in groups.items()
        if any(map(is_offloaded, (by_path[p] for p in map(_path, names) if p in by_path)))
        for name in names
    }

    def key(path: str) -> object:
        return ends.get(path) or id(hold_weight(by_path[path]))

    return key


def _path(name: str) -> str:
    return name.removesuffix(".weight")
