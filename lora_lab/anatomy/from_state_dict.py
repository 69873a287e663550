"""Sites told from module names and shapes alone, where there is no model to look at."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from lora_lab._util.torch_private import children_of
from lora_lab.anatomy.reader import read
from lora_lab.anatomy.types import Site

_INDEX = re.compile(r"0|[1-9][0-9]{0,5}")


def sites_from_names(shapes: Mapping[str, tuple[int, int]]) -> dict[str, Site]:
    """Return {module path: its site}, row by row as `anatomy` of the model would order them.

    The names are built into a tree of empty layers and read as a model is, so that layers, roles
    and stacks come out the same. A fused matrix stays whole: names do not tell the order of its
    rows.

    Args:
        shapes: {module path: (out, in)}.
    """
    root = nn.Module()
    # A file's keys come by the alphabet; a model runs its encoder first.
    for path in sorted(shapes, key=lambda path: "decoder" in path.split(".")):
        out, in_ = shapes[path]
        at: nn.Module = root
        *parents, leaf = path.split(".")
        names = [*parents, leaf]
        for here, below in zip(parents, names[1:], strict=True):
            inside = children_of(at)
            if here not in inside:
                inside[here] = nn.ModuleList() if _INDEX.fullmatch(below) else nn.Module()
            at = inside[here]  # type: ignore[assignment]
        # Not setattr: a module's name may be that of a method.
        children_of(at)[leaf] = nn.Linear(in_, out, bias=False, device="meta")
    found = {site.module: site for site in read(root).sites}
    # The output embedding is no site of a model's grid, but an adapter may be on it.
    return found | {
        path: site_alone(path, *shape) for path, shape in shapes.items() if path not in found
    }


def site_alone(path: str, out: int, in_: int) -> Site:
    """Return the site of a matrix outside the layers, such as the output embedding."""
    return Site(path, path, None, path.rpartition(".")[2], in_, out, input_group=path)
