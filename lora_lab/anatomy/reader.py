"""Reads an Anatomy out of a module tree: one walk, no weight looked at."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lora_lab._util.torch_private import parameters_of
from lora_lab.anatomy import model_config, roles
from lora_lab.anatomy.blocks import blocks_of
from lora_lab.anatomy.children import ADDED, LEARNED_CHILD, SAVED_CHILD
from lora_lab.anatomy.heads import head_modules
from lora_lab.anatomy.types import Anatomy, Rows, Site, Weight


@dataclass
class _Leaf:
    """One matrix as the walk found it."""

    path: tuple[str, ...]
    module: nn.Module
    config: Any  # the nearest one above: a vision tower has its own heads
    stack: tuple[str, ...] | None = None
    layer: int | None = None
    parallel: bool = False  # attention and MLP of its block read one and the same input
    in_list: bool = False  # an entry of a ModuleList that is no stack of blocks

    @property
    def inner(self) -> tuple[str, ...]:
        """The names below the block, or the whole path outside the layers."""
        return self.path if self.stack is None else self.path[len(self.stack) + 1 :]

    @property
    def transposed(self) -> bool:
        return not isinstance(self.module, nn.Linear)

    @property
    def features(self) -> tuple[int, int]:
        """(in, out); a quantized Linear's weight need not have this shape."""
        module = self.module
        if isinstance(module, nn.Linear):
            return module.in_features, module.out_features
        rows, columns = module.weight.shape  # type: ignore[misc]
        return int(rows), int(columns)


class _Walk:
    """Collects the matrices and counts the parameters of a module tree."""

    def __init__(self, model: nn.Module) -> None:
        self.leaves: list[_Leaf] = []
        self.others: list[_Leaf] = []
        self.parameters: list[tuple[_Leaf, tuple[str, ...], nn.Parameter]] = []
        self.dtype_bytes: int | None = None
        self.packed_gate = False  # experts that keep gate and up in one three-way tensor
        self._kinds = _matrix_kinds()
        self._seen: set[int] = set()
        self._visit(_Leaf((), model, None))

    def _visit(self, at: _Leaf) -> None:
        module = at.module
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        self._collect(at, at.path, module)
        if isinstance(module, (*self._kinds, *_OTHER_KINDS)):
            (self.leaves if isinstance(module, self._kinds) else self.others).append(at)
            for name, child in module.named_children():
                if name not in ADDED:
                    for path, part in child.named_modules(prefix=name):
                        self._collect(at, (*at.path, *path.split(".")), part)
            return
        config = module.__dict__.get("config")
        if not hasattr(config, "model_type"):
            config = at.config
        opens_stack = at.stack is None and self._is_stack(module)
        for name, child in module.named_children():
            if name in (SAVED_CHILD, LEARNED_CHILD):
                continue
            below = replace(at, path=(*at.path, name), module=child, config=config)
            below.in_list = isinstance(module, nn.ModuleList)
            if opens_stack:
                below.stack, below.layer = at.path, int(name)
                below.parallel = _is_parallel(child)
            self._visit(below)

    def _is_stack(self, module: nn.Module) -> bool:
        children = list(module.children())
        blocks = [
            child
            for child in children
            if not isinstance(child, self._kinds) and any(True for _ in child.children())
        ]
        if isinstance(module, nn.ModuleList):
            return bool(blocks)
        # A Sequential is as often a head as a stack: all its entries have to be one kind of block.
        return (
            isinstance(module, nn.Sequential)
            and len(blocks) == len(children) > 1
            and len({type(child) for child in children}) == 1
        )

    def _collect(self, at: _Leaf, path: tuple[str, ...], module: nn.Module) -> None:
        for name, parameter in parameters_of(module).items():
            if parameter is None or id(parameter) in self._seen:
                continue
            self._seen.add(id(parameter))
            self.parameters.append((at, (*path, name), parameter))
            self.packed_gate |= name == "gate_up_proj"
            if self.dtype_bytes is None and parameter.is_floating_point():
                self.dtype_bytes = parameter.element_size()


def read(model: nn.Module) -> Anatomy:
    """Read a model that is at hand."""
    walk = _Walk(model)
    output = model_config.embedding(model, "get_output_embeddings")
    leaves = [
        leaf for leaf in walk.leaves if leaf.module is not output and leaf.path[-1:] != ("lm_head",)
    ]
    if not any(leaf.stack for leaf in leaves):
        for leaf in leaves:
            if leaf.in_list:  # no blocks anywhere, but matrices in a list: the list is the stack
                leaf.stack, leaf.layer = leaf.path[:-1], int(leaf.path[-1])
    names = _stack_names([leaf.stack for leaf in leaves if leaf.stack is not None])
    sites, columns = _in_order(
        _own_roles([s for leaf in leaves for s in _sites(leaf, names)]), names
    )
    paths = {name: stack for stack, name in names.items()}
    rows = dict.fromkeys(site.row for site in sites if site.row is not None)
    blocks = blocks_of(sites, {row: ".".join((*paths[row.stack], str(row.layer))) for row in rows})
    gate = walk.packed_gate or any("gate_proj" in s.role or s.role == "gate" for s in sites)
    shape = model_config.shape(
        model,
        stack_layers={stack: sum(row.stack == stack for row in rows) for stack in paths},
        mlp_width=max((site.in_features for site in sites if site.role == "down"), default=None),
        gated_mlp=gate,
        dtype_bytes=walk.dtype_bytes,
    )
    weights = _weights(model, walk, names)
    others = tuple(_other(leaf) for leaf in walk.others)
    parameters = sum(weight.size for weight in weights)
    heads = head_modules(model)
    return Anatomy(sites, columns, blocks, shape, parameters, weights, others, heads)


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


_OTHER_KINDS = (nn.Embedding, nn.Conv1d, nn.Conv2d)


def _other(leaf: _Leaf) -> Site:
    module: Any = leaf.module
    path = ".".join(leaf.path)
    if isinstance(module, nn.Embedding):
        k, d = module.num_embeddings, module.embedding_dim
    else:
        d, k = module.out_channels, math.prod(module.kernel_size)
        k *= module.in_channels // module.groups
    return Site(
        name=path,
        module=path,
        layer=None,
        role=leaf.path[-1] if leaf.path else type(module).__name__,
        in_features=k,
        out_features=d,
        input_group=path,
        kind="embedding" if isinstance(module, nn.Embedding) else "conv",
    )


def _weights(
    model: nn.Module, walk: _Walk, stack_names: dict[tuple[str, ...], str]
) -> tuple[Weight, ...]:
    backbone = getattr(model, "base_model_prefix", "")
    has_head = bool(backbone) and hasattr(model, backbone)
    found = []
    for at, path, parameter in walk.parameters:
        in_block = at.stack is not None and at.stack in stack_names
        found.append(
            Weight(
                name=".".join(path),
                shape=tuple(parameter.shape),
                layer=at.layer if in_block else None,
                stack=stack_names[at.stack] if in_block else "",  # type: ignore[index]
                head=has_head and path[0] != backbone,
            )
        )
    return tuple(found)


def _sites(leaf: _Leaf, stack_names: dict[tuple[str, ...], str]) -> list[Site]:
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


def _input_group(leaf: _Leaf, role: str) -> str:
    """Name the input tensor of a matrix; o, down and cross.q each have their own."""
    assert leaf.stack is not None
    parent = ".".join(leaf.path[:-1])
    if role in ("cross.k", "cross.v"):
        return f"{'.'.join(leaf.stack)}[encoder output]"
    if role in ("q", "k", "v", "gate", "up") and leaf.parallel:
        return f"{'.'.join((*leaf.stack, str(leaf.layer)))}[input]"
    if role in ("q", "k", "v"):
        return f"{parent}[q k v]"
    if role in ("gate", "up"):
        return f"{parent}[gate up]"
    if role == "positions":
        return f"{parent}[positions]"
    return ".".join(leaf.path)


def _own_name(leaf: _Leaf) -> str:
    if leaf.stack is not None and not leaf.inner:
        return leaf.stack[-1] if leaf.stack else str(leaf.layer)
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


def _is_parallel(block: nn.Module) -> bool:
    """Tell whether one norm feeds both attention and MLP (GPT-J, Phi, Cohere, Falcon-7B)."""
    norms = 0
    for path, module in block.named_modules():
        name = path.rpartition(".")[2].lower()
        if name.startswith(("q_", "k_")) or not path:
            continue
        norms += "norm" in name or "norm" in type(module).__name__.lower() or name.startswith("ln_")
    return norms == 1


def _matrix_kinds() -> tuple[type[nn.Module], ...]:
    # Where transformers was never imported, no model can hold one of its Conv1D.
    utilities = sys.modules.get("transformers.pytorch_utils")
    return (nn.Linear,) if utilities is None else (nn.Linear, utilities.Conv1D)
