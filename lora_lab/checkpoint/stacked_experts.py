"""Factors of parameters in PEFT's files: of routed experts, all of them stacked in one A and one B.

A is (experts · r, in), expert by expert; B is (out, r · experts), rank by rank. Several parameters
of one module are told apart by their nesting only: the module's first is innermost, below one
"base_layer" for each of the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from lora_lab._util.patterns import Patterns, endings
from lora_lab.checkpoint.files import quoted
from lora_lab.errors import AdapterError
from lora_lab.spectra.update import LowRankUpdate

Parts = dict[str, np.ndarray]  # {"A": …, "B": …}
# In the order in which transformers' modules hold them; without a base nothing else tells.
_MOST_TARGETS = 10_000
_ORDER = ("gate", "w1", "v1", "up", "w3", "input", "w2", "down", "output")


class HeldNames:
    """Which modules of a file are targeted by their parameters' names, and by which.

    Args:
        settings: adapter_config.json.
        known: names of the base's modules and of the parameters that can be targets, in its order;
            none where there is no base.
    """

    def __init__(self, settings: Mapping[str, Any], known: Collection[str]) -> None:
        self._targets: list[str] = list(dict.fromkeys(settings["target_parameters"]))
        modules = settings.get("target_modules")
        self._modules = set() if isinstance(modules, str) else {str(m) for m in modules or ()}
        if len(self._targets) > _MOST_TARGETS:
            raise AdapterError(
                f"target_parameters has {len(self._targets):,} names; fetch the adapter again"
            )
        self._known = set(known)
        self._inside: defaultdict[str, list[str]] = defaultdict(list)
        for name in known if self._targets else ():
            self._inside[name.rpartition(".")[0]].append(name)

    def of(self, module: str) -> list[str]:
        """Return the names of a module's targeted parameters in its order; [] of a layer."""
        if not self._targets:
            return []
        if module in self._known:
            own = self._inside[module]
            return [name for name in own if any(_ends(name, t) for t in self._targets)]
        dotted = [t for t in self._targets if "." in t and _ends(module, t.rpartition(".")[0])]
        if not dotted and not self._modules.isdisjoint(endings(module)):
            return []
        leaves = {t.rpartition(".")[2] for t in dotted or self._targets if dotted or "." not in t}
        return [f"{module}.{leaf}" for leaf in sorted(leaves - {"weight"}, key=_place)]


def _ends(name: str, ending: str) -> bool:
    return f".{name}".endswith(f".{ending}")


def _place(leaf: str) -> tuple[int, str]:
    found = [at for at, word in enumerate(_ORDER) if leaf.startswith(word)]
    return (found[0] if found else len(_ORDER)), leaf


def unstacked(
    held: Mapping[str, Mapping[int, Parts]],
    names: HeldNames,
    settings: Mapping[str, Any],
    ranks: Patterns[int],
    alphas: Patterns[float],
) -> dict[str, tuple[LowRankUpdate, ...]]:
    """Return {parameter's name: every expert's update}.

    Args:
        held: {module: {its factors' depth below "base_layer": factors}}.
        names: of the parameters.
        settings: adapter_config.json.
        ranks, alphas: its patterns.

    Raises:
        AdapterError: the factors do not fit the config.
    """
    found = {}
    for module, levels in held.items():
        order = names.of(module)
        if sorted(levels) != list(range(len(order))):
            raise AdapterError(
                f"{quoted(module)} has factors for {len(levels)} parameters, and target_parameters "
                f"names {len(order)} of it; fetch the adapter again"
            )
        for depth, name in enumerate(reversed(order)):
            r = ranks.lookup(name, settings["r"])
            alpha = alphas.lookup(name, settings["lora_alpha"])
            scale = alpha / (r**0.5 if settings.get("use_rslora") else r)
            found[name] = _experts(name, levels[depth], r, scale)
    return found


def _experts(name: str, parts: Parts, r: int, scale: float) -> tuple[LowRankUpdate, ...]:
    if parts.keys() != {"A", "B"}:
        raise AdapterError(
            f"{quoted(name)} has lora_{min(parts)} without its partner; fetch the adapter again"
        )
    A, B = parts["A"], parts["B"]
    count, rest = divmod(A.shape[0], r)
    if rest or B.shape[1] != A.shape[0]:
        raise AdapterError(
            f"{quoted(name)}: A is {tuple(A.shape)} and B {tuple(B.shape)}, and the config says "
            f"r={quoted(r)}; fetch the adapter again"
        )
    A, B = A.reshape(count, r, -1), B.reshape(len(B), r, count)
    return tuple(LowRankUpdate(A[e], np.ascontiguousarray(B[:, :, e]), scale) for e in range(count))


def check_experts(
    name: str, updates: Sequence[LowRankUpdate], count: int, shape: tuple[int, int]
) -> None:
    """Raise unless a file's experts are so many and of that shape.

    Raises:
        AdapterError: the adapter is for another base.
    """
    if (len(updates), updates[0].shape) != (count, shape):
        (out, in_), (d, k) = shape, updates[0].shape
        raise AdapterError(
            f"the adapter is for another base: {name} has {count} experts of {out} × {in_} here, "
            f"{len(updates)} of {d} × {k} in the file"
        )
