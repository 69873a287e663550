"""Sites told from module names and shapes alone, where there is no model to look at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lora_lab.anatomy.leaves import Leaf, grid
from lora_lab.anatomy.types import Site

_INDEX = re.compile(r"0|[1-9][0-9]{0,5}")


def sites_from_names(shapes: Mapping[str, tuple[int, int]]) -> dict[str, Site]:
    """Return {module path: its site}, row by row as `anatomy` of the model would order them.

    The names are laid out as a tree, in which a module of numbered modules is a stack of blocks, so
    that layers, roles and stacks come out as those of the model. A fused matrix stays whole: names
    do not tell the order of its rows.

    Args:
        shapes: {module path: (out, in)}.
    """
    tree: dict[str, Any] = {}
    # A file's keys come by the alphabet; a model runs its encoder first.
    for path in sorted(shapes, key=lambda path: "decoder" in path.split(".")):
        out, in_ = shapes[path]
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            inner = node.setdefault(parent, {})
            if isinstance(inner, tuple):  # a matrix has no matrices below it
                break
            node = inner
        else:
            node[name] = in_, out
    leaves = [leaf for leaf in _leaves(tree, Leaf()) if leaf.path[-1] != "lm_head"]
    sites = {site.module: site for site in grid(leaves).sites}
    # The output embedding is no site of a model's grid, but an adapter may be on it.
    return sites | {
        path: site_alone(path, *shape) for path, shape in shapes.items() if path not in sites
    }


def _leaves(node: Mapping[str, Any], at: Leaf) -> Iterator[Leaf]:
    """Yield the matrices of a tree of names, {name: its inside, or (in, out) of a matrix}."""
    is_list = bool(at.path) and all(map(_INDEX.fullmatch, node))
    opens_stack = at.stack is None and is_list and any(isinstance(v, dict) for v in node.values())
    for name, inside in node.items():
        below = replace(at, path=(*at.path, name), in_list=is_list)
        if opens_stack:
            below = replace(below, stack=at.path, layer=int(name))
        if isinstance(inside, tuple):
            yield replace(below, features=inside)
        else:
            yield from _leaves(inside, below)


def site_alone(path: str, out: int, in_: int) -> Site:
    """Return the site of a matrix outside the layers, such as the output embedding."""
    return Site(path, path, None, path.rpartition(".")[2], in_, out, input_group=path)
