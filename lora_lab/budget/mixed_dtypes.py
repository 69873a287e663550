"""Models whose weights are of several types, such as T5: its `wo` stays float32 in float16."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from lora_lab._util.dtypes import DTYPES
from lora_lab._util.format import format_share

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy, Site


class Elements:
    """Bytes of a number, matrix by matrix, in a model of one type.

    Args:
        anatomy: the model's.
        dtype: what it is loaded in.

    Attributes:
        stream: of the residual stream, which is as wide as the widest of what is added to it.
    """

    def __init__(self, anatomy: Anatomy, dtype: str) -> None:
        self._sizes = anatomy.sizes(dtype)
        self._main = DTYPES[dtype].size
        tables = (site for site in anatomy.others if site.kind == "embedding")
        ends = (s for s in anatomy.sites if s.role.rpartition(".")[2] in ("o", "down"))
        self.stream = max([self._main, *map(self.of, itertools.chain(tables, ends))])

    def of(self, site: Site) -> int:
        """Return what a number of a matrix takes, and one that it reads or makes."""
        return self._sizes.get(f"{site.module}.{site.parameter}", self._main)


class Mixture(NamedTuple):
    """The types of a model's weights.

    Attributes:
        dtype: that the model is loaded in.
        others: {weight: its type} of those that are of another; packed ones are not among them.
        notes: what people should know of it.
    """

    dtype: str
    others: Mapping[str, str]
    notes: tuple[str, ...]


def mixture(anatomy: Anatomy, dtype: str) -> Mixture:
    """Return the types of a model's weights where it is loaded in `dtype`."""
    sizes = anatomy.sizes(dtype)
    found = [w for w in anatomy.weights if w.name in sizes]
    others = {w.name: own for w in found if (own := anatomy.dtype_of(w, dtype)) != dtype}
    if not others:
        return Mixture(dtype, {}, ())
    share = format_share(sum(w.size for w in found if w.name in others), anatomy.parameters)
    modules = dict.fromkeys(name.rpartition(".")[0] or name for name in others)
    paths = (module.split(".")[-2:] for module in modules)
    names = list(dict.fromkeys(".".join(n for n in path if not n.isdecimal()) for path in paths))
    kinds, shown = " and ".join(sorted(set(others.values()))), ", ".join(names[:3])
    more = ", …" if len(names) > 3 else ""
    note = f"{share} of the model's numbers are {kinds}, not {dtype}: {shown}{more}"
    return Mixture(dtype, others, (note,))
