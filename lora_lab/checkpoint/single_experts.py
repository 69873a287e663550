"""Files in which every expert is a module: as those written with transformers 4.

Today's models hold all experts in one tensor. What a file has for them one by one is put together:
gate and up, each with an A of its own, become [A_gate; A_up] and a block-diagonal B of rank 2r; an
expert that the file leaves out, or that has a smaller rank, is filled up with zeros. All exact.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lora_lab.anatomy.types import Site
from lora_lab.checkpoint.adapter_file import AdapterFile
from lora_lab.checkpoint.files import quoted
from lora_lab.errors import AdapterError
from lora_lab.spectra.update import LowRankUpdate

_MODULE = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d{1,6})\.(?P<leaf>\w+)")
# {name in transformers 4: (tensor today, which of its parts)}
_PLACES = {
    **dict.fromkeys(("w1", "gate_proj"), ("gate_up_proj", 0)),
    **dict.fromkeys(("w3", "up_proj"), ("gate_up_proj", 1)),
    **dict.fromkeys(("w2", "down_proj"), ("down_proj", 0)),
}
# Modules that had other names in transformers 4, and their names today.
_RENAMED = ((".block_sparse_moe.", ".mlp."), (".gate.weight", ".router.weight"))


def together(
    file: AdapterFile, sites: Mapping[str, Site]
) -> tuple[AdapterFile, dict[str, list[LowRankUpdate]]]:
    """Return a file without what it has for single experts, and that as {site name: updates}.

    Args:
        file: as it was read.
        sites: {name: site} of the model's own parameters.

    Raises:
        AdapterError: the adapter is for another base.
    """
    parts: defaultdict[str, dict[tuple[int, int], LowRankUpdate]] = defaultdict(dict)
    modules, found = dict(file.modules), {}
    for path in file.modules:
        match = _MODULE.fullmatch(path)
        if match is not None and match["leaf"] in _PLACES:
            tensor, part = _PLACES[match["leaf"]]
            name = _today(f"{match['experts']}.{tensor}", sites)
            if name is not None:
                parts[name][int(match["number"]), part] = modules.pop(path)
        elif (name := _today(f"{path}.weight", sites)) is not None:  # a router
            found[name] = [modules.pop(path)]
    for name, own in parts.items():
        found[name] = _stacked(name, own, sites[name])
    return replace(file, modules=modules), found


def _today(name: str, sites: Mapping[str, Site]) -> str | None:
    for old, new in (("", ""), *_RENAMED):
        name = name.replace(old, new)
        if name in sites:
            return name
    return None


def _stacked(
    name: str, parts: Mapping[tuple[int, int], LowRankUpdate], site: Site
) -> list[LowRankUpdate]:
    count = 2 if name.endswith("gate_up_proj") else 1
    shape = site.out_features // count, site.in_features
    for (number, _), update in parts.items():
        if number >= site.experts or update.shape != shape:
            raise AdapterError(
                f"the adapter is for another base: {quoted(name)} has {site.experts} experts of "
                f"{site.out_features} × {site.in_features} here; expert {number} is "
                f"{update.shape[0]} × {update.shape[1]} in the file"
            )
    scale = next(iter(parts.values())).scale
    ranks = [max([u.r for (_, p), u in parts.items() if p == part] or [0]) for part in range(count)]
    experts = []
    for number in range(site.experts):
        own = [parts.get((number, part)) for part in range(count)]
        experts.append(_joined(own, ranks, scale, shape))
    return experts


def _joined(
    parts: Sequence[LowRankUpdate | None],
    ranks: Sequence[int],
    scale: float,
    shape: tuple[int, int],
) -> LowRankUpdate:
    out, in_ = shape
    A = np.zeros((sum(ranks), in_), np.float32)
    B = np.zeros((len(parts) * out, sum(ranks)), np.float32)
    for part, update in enumerate(parts):
        if update is not None:
            at = sum(ranks[:part])
            A[at : at + update.r] = update.A
            B[part * out : (part + 1) * out, at : at + update.r] = update.rescaled(scale).B
    return LowRankUpdate(A, B, scale)
