"""From matrices and their paths to a grid of sites: layers, roles, stacks; without torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lora_lab.anatomy import roles
from lora_lab.anatomy.types import Rows, Site


@dataclass
class Leaf:
    """One matrix of a model, and what stands above it.

    Attributes:
        path: the names of the modules down to it.
        features: (in, out).
        transposed: stored (in, out), as transformers' Conv1D does.
        config: the nearest one above: a vision tower has its own heads.
        stack: path of the list of blocks that it lies in.
        layer: the block's index there.
        parallel: attention and MLP of its block read one and the same input.
        in_list: an entry of a ModuleList that is no stack of blocks.
        parameter: the name that `path` ends in where that is no module's, "" elsewhere.
        experts: matrices in that parameter.
    """

    path: tuple[str, ...] = ()
    features: tuple[int, int] = (0, 0)
    transposed: bool = False
    config: Any = None
    stack: tuple[str, ...] | None = None
    layer: int | None = None
    parallel: bool = False
    in_list: bool = False
    parameter: str = ""
    experts: int = 1

    @property
    def inner(self) -> tuple[str, ...]:
        """The names below the block, or the whole path outside the layers."""
        return self.path if self.stack is None else self.path[len(self.stack) + 1 :]

    @property
    def block(self) -> tuple[str, ...]:
        """The path of the block that it lies in; () outside the layers."""
        return () if self.stack is None else self.path[: len(self.stack) + 1]


class Grid(NamedTuple):
    """Sites in order.

    Attributes:
        sites: row by row; those outside the layers come last.
        roles: the columns.
        stack_names: {path of a list of blocks: its short name}.
    """

    sites: tuple[Site, ...]
    roles: tuple[str, ...]
    stack_names: dict[tuple[str, ...], str]


def grid(leaves: Sequence[Leaf]) -> Grid:
    """Lay matrices out as a grid; the output embedding ("lm_head") is to be left out before."""
    if not any(leaf.stack for leaf in leaves):
        lists: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for leaf in leaves:
            if leaf.in_list:
                lists[leaf.path[:-1]].append(leaf.path[-1])
        for leaf in leaves:
            if leaf.in_list:  # no blocks anywhere, but matrices in a list: the list is the stack
                leaf.stack = leaf.path[:-1]
                leaf.layer = block_numbers(lists[leaf.stack])[leaf.path[-1]]
    names = _stack_names([leaf.stack for leaf in leaves if leaf.stack is not None])
    sites = _own_roles([site for leaf in leaves for site in _sites(leaf, names)])
    return Grid(*_in_order(sites, names), names)


def block_numbers(names: Sequence[str]) -> dict[str, int]:
    """Return {name of a block: its number}: the name itself, or where one is none, its place."""
    numbered = all(name.isdecimal() and name == str(int(name)) for name in names)
    return {name: int(name) if numbered else place for place, name in enumerate(names)}


def _in_order(
    sites: list[Site], stack_names: dict[tuple[str, ...], str]
) -> tuple[tuple[Site, ...], tuple[str, ...]]:
    """Return the sites row by row, those outside the layers last, and the roles of the layers."""
    appearance = list(dict.fromkeys(site.role for site in sites if site.layer is not None))
    columns = (
        *(role for role in roles.ROLE_ORDER if role in appearance),
        *(role for role in appearance if role not in roles.ROLE_ORDER),
    )
    stack = {name: number for number, name in enumerate(stack_names.values())}
    column = {role: number for number, role in enumerate(columns)}

    def place(site: Site) -> tuple[int, int, int]:
        if site.layer is None:
            return len(stack), 0, 0
        return stack[site.stack], site.layer, column[site.role]

    return tuple(sorted(sites, key=place)), columns


def _sites(leaf: Leaf, stack_names: dict[tuple[str, ...], str]) -> list[Site]:
    inner, module = leaf.inner, ".".join(leaf.path)
    cross = leaf.stack is not None and roles.is_cross_attention(inner)
    prefix = "cross." if cross else ""
    in_features, out_features = leaf.features
    whole = Site(
        name=module,
        module=module,
        layer=leaf.layer,
        role=_own_name(leaf),
        in_features=in_features,
        out_features=out_features,
        transposed=leaf.transposed,
        stack=stack_names[leaf.stack] if leaf.stack is not None else "",
        input_group=module,
    )
    if leaf.parameter:
        name = roles.expert_path(inner) or ".".join(inner[-2:])
        return [
            replace(
                whole,
                module=".".join(leaf.path[:-1]),
                role=name,
                kind="experts",
                parameter=leaf.parameter,
                experts=leaf.experts,
            )
        ]
    if leaf.stack is None or not inner:
        return [whole]
    slices = roles.fused_slices(inner[-1], leaf.config, out_features, cross=cross)
    if slices:
        return [
            replace(
                whole,
                name=f"{module}[{prefix}{part.role}]",
                role=prefix + part.role,
                out_features=part.groups * part.width,
                rows=Rows(*part[1:]),
                input_group=_input_group(leaf, prefix + part.role),
            )
            for part in slices
        ]
    role = roles.role(inner)
    if role is None:
        input_group = _input_group(leaf, "positions") if inner[-1] in _POSITION_LEAVES else module
        return [replace(whole, input_group=input_group)]
    expert = roles.expert_path(inner)
    return [
        replace(whole, role=expert or prefix + role, input_group=_input_group(leaf, prefix + role))
    ]


_POSITION_LEAVES = ("pos_key_proj", "pos_query_proj")  # DeBERTa: both read the relative positions


def _input_group(leaf: Leaf, role: str) -> str:
    """Name the input tensor of a matrix; o, down and cross.q each have their own."""
    assert leaf.stack is not None
    parent = ".".join(leaf.path[:-1])
    if role in ("cross.k", "cross.v"):
        return f"{'.'.join(leaf.stack)}[encoder output]"
    if role in ("q", "k", "v", "gate", "up") and leaf.parallel:
        return f"{'.'.join(leaf.block)}[input]"
    if role in ("q", "k", "v"):
        return f"{parent}[q k v]"
    if role in ("gate", "up"):
        return f"{parent}[gate up]"
    if role == "positions":
        return f"{parent}[positions]"
    return ".".join(leaf.path)


def _own_name(leaf: Leaf) -> str:
    if leaf.stack is not None and not leaf.inner:
        return leaf.stack[-1] if leaf.stack else leaf.path[-1]
    expert = roles.expert_path(leaf.inner)
    if leaf.stack is not None and expert:
        return expert
    name = leaf.path[-1]
    # A number is no name; a router that is called "gate" must not pass for the MLP's gate, nor a
    # pooler's "dense" for the many in the blocks.
    taken = name.isdigit() or name in roles.STANDARD_ROLES
    taken |= leaf.stack is None and name in roles.AMBIGUOUS_LEAVES
    return ".".join(leaf.path[-2:]) if taken else name


def _own_roles(sites: list[Site]) -> list[Site]:
    """Lengthen the roles that would name two sites of one row, until each names one."""
    deepest = max((site.module.count(".") for site in sites), default=0) + 1
    for length in range(2, deepest + 1):
        counted = Counter((site.stack, site.layer, site.role) for site in sites)
        doubled = {(stack, role) for (stack, _, role), count in counted.items() if count > 1}
        if not doubled:
            break
        sites = [
            replace(site, role=_longer_role(site, length))
            if (site.stack, site.role) in doubled
            else site
            for site in sites
        ]
    return sites


def _longer_role(site: Site, length: int) -> str:
    """Return the end of a module's path; of a fused one also which of its rows are meant."""
    path = ".".join(site.module.split(".")[-length:])
    return path + site.name.removeprefix(site.module)


def _stack_names(stacks: list[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Name each stack by where its path parts from the others; a lone one needs no name."""
    paths = list(dict.fromkeys(stacks))
    if len(paths) < 2:
        return dict.fromkeys(paths, "")
    shared = 0
    while len({path[: shared + 1] for path in paths}) == 1:
        shared += 1
    firsts = Counter(path[shared : shared + 1] for path in paths)
    return {
        path: ".".join(
            path[shared : shared + 1] if firsts[path[shared : shared + 1]] == 1 else path[shared:]
        )
        for path in paths
    }
