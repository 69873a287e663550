"""Reads an Anatomy out of a module tree: one walk, no weight looked at."""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lora_lab._util.dtypes import dtype_name, main_dtype
from lora_lab._util.format import a_kind
from lora_lab._util.torch_private import parameters_of
from lora_lab._util.transformers_private import kept_in_float32
from lora_lab.anatomy import model_config
from lora_lab.anatomy.blocks import Row, blocks_of
from lora_lab.anatomy.children import ADAPTER_CHILD, ADDED, LEARNED_CHILD, SAVED_CHILD
from lora_lab.anatomy.experts import own_matrices
from lora_lab.anatomy.heads import head_modules
from lora_lab.anatomy.leaves import Leaf, block_numbers, grid
from lora_lab.anatomy.packed import linear_size, packed_numbers, packing
from lora_lab.anatomy.types import Anatomy, Site, Weight
from lora_lab.anatomy.wrappers import children_within, modules_within, unwrapped
from lora_lab.errors import ModelError


@dataclass
class _ModuleLeaf(Leaf):
    module: nn.Module = field(default_factory=nn.Module)

    def measure(self) -> None:
        """Note the matrix's shape; a quantized Linear's weight has another one."""
        module: Any = self.module
        size = linear_size(module)
        if size is not None:
            self.features = size
        else:
            rows, columns = module.weight.shape
            self.features, self.transposed = (int(rows), int(columns)), True


class _Walk:
    """Collects the matrices and counts the parameters of a module tree."""

    def __init__(self, model: nn.Module) -> None:
        self.leaves: list[_ModuleLeaf] = []
        self.others: list[_ModuleLeaf] = []
        self.parameters: list[tuple[_ModuleLeaf, tuple[str, ...], nn.Parameter]] = []
        self.left_out: dict[str, str] = {}
        self.packed_gate = False  # experts that keep gate and up in one three-way tensor
        self._kinds = _matrix_kinds()
        self._seen: set[int] = set()
        self._visit(_ModuleLeaf(module=model))

    def _visit(self, at: _ModuleLeaf) -> None:
        module = at.module
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        self._collect(at, at.path, module)
        is_matrix = isinstance(module, self._kinds) or _is_packed_matrix(module)
        if is_matrix or isinstance(module, _OTHER_KINDS):
            if why := why_no_site(cast(Any, type(module))):
                self.left_out[".".join(at.path)] = why
                self.others += own_matrices(at)
            elif is_matrix:
                at.measure()
                self.leaves.append(at)
            else:
                self.others.append(at)
            for name, child in children_within(module):
                if name not in ADDED:
                    for path, part in modules_within(child, name):
                        self._collect(at, (*at.path, *path.split(".")), part)
            return
        config = module.__dict__.get("config")
        if not hasattr(config, "model_type"):
            config = at.config
        own = [replace(leaf, config=config) for leaf in own_matrices(at)]
        self.leaves += [leaf for leaf in own if leaf.experts > 1]
        self.others += [leaf for leaf in own if leaf.experts == 1]
        opens_stack = at.stack is None and self._is_stack(module)
        numbers = block_numbers([name for name, _ in module.named_children()])
        for name, child in children_within(module):
            if name in (SAVED_CHILD, LEARNED_CHILD) or (own and name == ADAPTER_CHILD):
                continue
            below = replace(at, path=(*at.path, name), module=child, config=config)
            below.in_list = isinstance(module, nn.ModuleList)
            if opens_stack:
                below.stack, below.layer = at.path, numbers[name]
                below.parallel = _is_parallel(child)
            self._visit(below)

    def _is_stack(self, module: nn.Module) -> bool:
        children = [child for _, child in children_within(module)]
        blocks = [
            child
            for child in children
            if not (isinstance(child, self._kinds) or _is_packed_matrix(child))
            and any(True for _ in child.children())
        ]
        if isinstance(module, nn.ModuleList):
            return bool(blocks)
        # A Sequential is as often a head as a stack: all its entries have to be one kind of block.
        return (
            isinstance(module, nn.Sequential)
            and len(blocks) == len(children) > 1
            and len({type(child) for child in children}) == 1
        )

    def _collect(self, at: _ModuleLeaf, path: tuple[str, ...], module: nn.Module) -> None:
        for name, parameter in parameters_of(module).items():
            if parameter is None or id(parameter) in self._seen:
                continue
            self._seen.add(id(parameter))
            if isinstance(parameter, UninitializedParameter):
                raise ModelError(
                    f"{'.'.join([*path, name])} has no shape yet (a lazy layer of torch's); run "
                    "the model on a batch first"
                )
            self.parameters.append((at, (*path, name), parameter))
            self.packed_gate |= name == "gate_up_proj"


def read(model: nn.Module) -> Anatomy:
    """Read a model that is at hand.

    Raises:
        ModelError: it is a single matrix, which no name leads to, or a layer has no shape yet.
    """
    model = unwrapped(model)
    if isinstance(model, _matrix_kinds()):
        kind = type(model).__name__
        raise ModelError(
            f"the model is {a_kind(kind)} alone, whose name is empty; use nn.Sequential(it)"
        )
    walk = _Walk(model)
    output = model_config.embedding(model, "get_output_embeddings")
    tables = {id(parameters_of(table.module).get("weight")) for table in walk.others}
    heads = [
        leaf
        for leaf in walk.leaves
        if leaf.module is output
        or leaf.path[-1] == "lm_head"
        or id(parameters_of(leaf.module).get("weight", leaf)) in tables  # BLIP's own decoder
    ]
    leaves = [leaf for leaf in walk.leaves if leaf not in heads]
    sites, columns, names = grid(leaves)
    paths = {
        Row(names[leaf.stack], leaf.layer): ".".join(leaf.block)
        for leaf in leaves
        if leaf.stack is not None and leaf.layer is not None
    }
    blocks = blocks_of(sites, paths)
    gate = walk.packed_gate or any("gate_proj" in s.role or s.role == "gate" for s in sites)
    dtype = main_dtype(parameter for *_, parameter in walk.parameters)
    shape = model_config.shape(
        model,
        stack_layers={name: sum(row.stack == name for row in paths) for name in names.values()},
        mlp_width=max((site.in_features for site in sites if site.role == "down"), default=None),
        gated_mlp=gate,
        dtype=dtype,
    )
    weights = _weights(model, walk, names, shape.dtype)
    tied = _tied(walk.others, heads)
    others = [_other(leaf) for leaf in walk.others]
    others += [_output(leaf) for leaf in heads if ".".join(leaf.path) not in tied]
    packed = [leaf for leaf in walk.leaves if not leaf.parameter and packing(leaf.module)]
    held = [packed_numbers(leaf.module) for leaf in packed]
    parameters = sum(weight.size for weight in weights) + sum(lacking for lacking, _ in held)
    return Anatomy(
        *(sites, columns, blocks, shape, parameters, weights, tuple(others)),
        packed={".".join(leaf.path): leaf.features[::-1] for leaf in packed},
        packed_bytes=sum(size for _, size in held),
        heads=head_modules(model),
        left_out=walk.left_out,
        tied=tied,
    )


def _is_packed_matrix(module: nn.Module) -> bool:
    """Whether a module is a quantized layer that is no Linear: GPTQ's, AWQ's, HQQ's, BitNet's."""
    return linear_size(module) is not None and packing(module) is not None


_SEVERAL = "returns several tensors (a router does), and an update has one output to be added to"
_CUT = "cuts its weight into blocks, one for each of several inputs, and an update has one input"
_CUTS = {"chunk", "reshape", "split", "unflatten", "view"}
_OTHER_KINDS = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _other(leaf: _ModuleLeaf) -> Site:
    module: Any = leaf.module
    path = ".".join(leaf.path)
    if leaf.parameter:
        own = ".".join(leaf.path[:-1])
        return Site(
            *(path, own, None, ".".join(leaf.path[-2:]), *leaf.features),
            input_group=path,
            kind="parameter",
            parameter=leaf.parameter,
        )
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


def _output(leaf: _ModuleLeaf) -> Site:
    path, (k, d) = ".".join(leaf.path), leaf.features
    return Site(path, path, None, leaf.path[-1], k, d, transposed=leaf.transposed, input_group=path)


def _tied(tables: Sequence[_ModuleLeaf], heads: Sequence[_ModuleLeaf]) -> dict[str, str]:
    """Return {path of an output layer: path of the embedding that has its weight}."""
    return {
        ".".join(head.path): ".".join(table.path)
        for head in heads
        for table in reversed(tables)
        if table.module.weight is head.module.weight
    }


def _weights(
    model: nn.Module,
    walk: _Walk,
    stack_names: dict[tuple[str, ...], str],
    dtype: str | None,
) -> tuple[Weight, ...]:
    backbone = getattr(model, "base_model_prefix", "")
    has_head = bool(backbone) and hasattr(model, backbone)
    kept = kept_in_float32(model)
    found = []
    for at, path, parameter in walk.parameters:
        name = ".".join(path)
        halves = {k for k, own in kept.items() if any(re.search(p, name) for p in own)}
        # What has no values yet will be loaded.
        waits = parameter.is_meta and dtype in halves
        in_block = at.stack is not None and at.stack in stack_names
        found.append(
            Weight(
                name=name,
                shape=tuple(parameter.shape),
                layer=at.layer if in_block else None,
                stack=stack_names[at.stack] if in_block else "",  # type: ignore[index]
                head=has_head and path[0] != backbone,
                dtype="float32" if waits else dtype_name(parameter.dtype),
                kept_in=frozenset(halves),
            )
        )
    return tuple(found)


def _is_parallel(block: nn.Module) -> bool:
    """Tell whether one norm feeds both attention and MLP (GPT-J, Phi, Cohere, Falcon-7B)."""
    norms = 0
    for path, module in modules_within(block, left_out=lambda _: ADDED):
        name = path.rpartition(".")[2].lower()
        if name.startswith(("q_", "k_")) or not path:
            continue
        norms += "norm" in name or "norm" in type(module).__name__.lower() or name.startswith("ln_")
    return norms == 1


@functools.cache
def why_no_site(kind: type[nn.Module]) -> str | None:
    """Return why a class' matrix takes no update, None where it takes one.

    Its forward ends in a tuple, as those of routers do (Llama 4, Phi-3.5-MoE), or cuts its weight
    into the matrices of several inputs (DeepSeek-V4's output projection). The code is looked at,
    not run; what hides its code behind a decorator passes.
    """
    forward = inspect.unwrap(kind.forward)
    if forward in (nn.Linear.forward, nn.Embedding.forward) or not inspect.isfunction(forward):
        return None
    steps = list(dis.get_instructions(forward))
    if ("BUILD_TUPLE", "RETURN_VALUE") in itertools.pairwise(step.opname for step in steps):
        return _SEVERAL
    ways = {after.argval for step, after in itertools.pairwise(steps) if step.argval == "weight"}
    return _CUT if issubclass(kind, nn.Linear) and ways & _CUTS else None


def _matrix_kinds() -> tuple[type[nn.Module], ...]:
    # Where transformers was never imported, no model can hold one of its Conv1D.
    utilities = sys.modules.get("transformers.pytorch_utils")
    return (nn.Linear,) if utilities is None else (nn.Linear, utilities.Conv1D)
