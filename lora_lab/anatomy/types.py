"""A transformer as a grid of weight matrices: layer × role."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from lora_lab._util.dtypes import DTYPES, MODEL_DTYPES
from lora_lab.anatomy import table
from lora_lab.anatomy.blocks import Block, Row, row_of


@dataclass(frozen=True)
class Rows:
    """The output rows of a fused matrix that belong to one site.

    Seen as ``(groups, group_size)``, a site owns columns ``offset : offset + width`` of every
    group. Contiguous slices have one group; head-interleaved ones (GPT-NeoX, BLOOM) have one
    group a head; grouped-query ones (Falcon) one group a key-value head.

    >>> Rows(groups=1, group_size=2304, offset=768, width=768)      # k of GPT-2's c_attn
    >>> Rows(groups=12, group_size=192, offset=64, width=64)        # k of Pythia-160m
    """

    groups: int
    group_size: int
    offset: int
    width: int


@dataclass(frozen=True)
class Site:
    """One weight matrix that can be adapted, W₀ of shape (out_features, in_features).

    An embedding is the matrix of its vectors as columns, (width, vocabulary). A convolution is its
    kernel laid flat, (out channels, in channels / groups · kernel size). Routed experts that share
    one tensor are one site, with the sizes of one of them.
    """

    name: str  # unique: the module path, with "[role]" behind it where the matrix is fused
    module: str  # dotted path of the module that owns the weight
    layer: int | None  # index within its stack; None outside the layers (pooler, classifier)
    role: str  # q k v o gate up down, "cross.q" …, else the bare module name
    in_features: int  # k: the width of its input
    out_features: int  # d: the number of its own output rows
    rows: Rows | None = None  # None: the site is the whole matrix
    transposed: bool = False  # stored (in, out), as transformers' Conv1D does
    stack: str = ""  # "encoder" or "decoder" where a model has both
    input_group: str = ""  # sites of one group share one input tensor (q, k and v; gate and up)
    # A "parameter" is what a module of another kind holds itself, such as a router's weight.
    kind: Literal["linear", "embedding", "conv", "experts", "parameter"] = "linear"
    parameter: str = "weight"  # its name in the module
    experts: int = 1  # the matrices that the tensor holds, (experts, …)

    @property
    def row(self) -> Row | None:
        """Its row of the grid; None outside the layers."""
        return row_of(self)

    def expert(self, number: int) -> Site:
        """Return the place of one of its experts: "….down_proj[3]", as "experts.3.down_proj"."""
        before, _, leaf = self.role.rpartition(".")
        role = f"{before}.{number}.{leaf}".strip(".")
        return replace(self, name=f"{self.name}[{number}]", role=role, experts=1)

    @property
    def each(self) -> tuple[Site, ...]:
        """Its experts' places; of any other site itself."""
        return tuple(map(self.expert, range(self.experts))) if self.experts > 1 else (self,)

    @property
    def number(self) -> int | None:
        """Which of its tensor's experts it is; None for any other site."""
        own = self.kind == "experts" and self.experts == 1
        return int(self.name.rpartition("[")[2].rstrip("]")) if own else None


@dataclass(frozen=True)
class Weight:
    """One parameter tensor of the model itself, matrix or vector; a tied one appears once.

    Attributes:
        name: as in the state dict.
        shape: of the tensor as stored.
        layer: index within its stack; None outside the layers.
        stack: as in `Site`.
        head: outside of the backbone: a classifier, a language model's own output.
        dtype: of the tensor, such as "float32".
        kept_in: the half types that a model may be loaded in without it: it stays float32.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None = None
    stack: str = ""
    head: bool = False
    dtype: str = ""
    kept_in: frozenset[str] = frozenset()

    @property
    def row(self) -> Row | None:
        """The row of its layer, which the grid lacks where that holds no matrix."""
        return None if self.layer is None else Row(self.stack, self.layer)

    @property
    def size(self) -> int:
        """The number of its entries."""
        return math.prod(self.shape)

    @property
    def is_bias(self) -> bool:
        """Whether it is a bias vector: what BitFit trains."""
        return len(self.shape) == 1 and self.name.endswith("bias")  # also q_bias, in_proj_bias


@dataclass(frozen=True)
class BlockFacts:
    """How a model's blocks are built.

    Attributes:
        activation: the MLP's function by its config name, None where the config has none.
        attention_dropout: probability, in training.
        hidden_dropout: probability on the branches' outputs, in training.
        eager_attention: scores are computed as tensors, not inside one SDPA kernel.
        norms: norms on the residual stream in one block.
        head_norms: whether q and k are normalised by head (Qwen3).
        rms_norm: RMSNorm as transformers writes it, not LayerNorm.
        final_norm: whether a norm follows the last block.
        lm_head: whether the model ends in logits over its vocabulary.
        recomputes_mlp: whether its MLPs can make act(gate) again; see `gated_mlp`.
    """

    activation: str | None = None
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    eager_attention: bool = False
    norms: int = 2
    head_norms: bool = False
    rms_norm: bool = False
    final_norm: bool = True
    lm_head: bool = False
    recomputes_mlp: bool = False


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model; None where neither its modules nor its config tell.

    Attributes:
        model_type: the config's, or the class name of a model without one.
        num_layers: blocks that run in one forward pass; of all stacks where there are several.
        intermediate_size: width of the MLP between up and down.
        head_dim: of one query head; not always hidden_size / num_heads (Gemma, T5, Qwen3).
        max_positions: tokens that a sequence may have; None without a fixed limit (T5, BLOOM).
            RoBERTa's are fewer than its config names.
        position_limit: the same where the model itself fails beyond them (GPT-2, BERT); None where
            it was only trained with so many (Llama).
        tied_embeddings: the output matrix is the input embedding itself.
        gated_mlp: the MLP has a gate beside up.
        dtype_bytes: of one stored weight of this type.
        dtype: the type of most weights, "bfloat16".
        block: how the blocks are built, as far as their activations depend on it.
        experts_per_token: routed experts that each token goes through.
    """

    model_type: str
    hidden_size: int | None
    num_layers: int | None
    intermediate_size: int | None
    num_heads: int | None
    num_kv_heads: int | None
    head_dim: int | None
    vocab_size: int | None
    max_positions: int | None
    tied_embeddings: bool
    gated_mlp: bool
    dtype_bytes: int | None
    block: BlockFacts = field(default_factory=BlockFacts)
    experts_per_token: int | None = None
    position_limit: int | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Anatomy:
    """A model's matrices as a grid.

    Attributes:
        sites: row by row, in the order of `roles`; those outside the layers come last.
        roles: the grid's columns.
        blocks: one a row of the grid.
        shape: the sizes that the memory of a training step depends on.
        parameters: all of the model's numbers, tied ones once, adapters not counted; those of
            packed weights as they are unpacked.
        weights: the tensors that hold them, in the model's order.
        others: embeddings, convolutions and an output layer with a weight of its own; a target
            finds them by their module's name only.
        heads: a classifier's modules outside of the model that reads the text; see `heads`.
        left_out: {path of a matrix that is no site: why}.
        tied: {path of an output layer: path of the embedding that has its weight}.
        packed: {path of a layer whose weight is packed: its shape unpacked, (out, in)}.
        packed_bytes: what these weights take, with the scales that they are read by.
    """

    sites: tuple[Site, ...]
    roles: tuple[str, ...]
    blocks: tuple[Block, ...]
    shape: ModelShape
    parameters: int
    weights: tuple[Weight, ...] = field(default=(), repr=False)
    others: tuple[Site, ...] = ()
    heads: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict, hash=False)
    tied: Mapping[str, str] = field(default_factory=dict, hash=False)
    packed: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    packed_bytes: int = 0

    def dtype_of(self, weight: Weight, dtype: str) -> str:
        """Return a weight's type where the model is of this one; its own where it is already."""
        if dtype == self.shape.dtype and weight.dtype in MODEL_DTYPES:
            return weight.dtype
        return "float32" if dtype in weight.kept_in else dtype

    def sizes(self, dtype: str) -> dict[str, int]:
        """Return {weight that is not packed: bytes of its numbers} in a model of this type."""
        return {w.name: DTYPES[self.dtype_of(w, dtype)].size for w in self._unpacked}

    def weight_bytes(self, dtype: str) -> int:
        """Return the bytes of all weights; `dtype` is what the model is loaded in."""
        sizes = self.sizes(dtype)
        return sum(w.size * sizes[w.name] for w in self._unpacked) + self.packed_bytes

    def unpacked(self, dtype: str) -> list[tuple[tuple[int, ...], int]]:
        """Return (shape, bytes of a number) of all weights, as they are where none is packed."""
        sizes = self.sizes(dtype)
        packed = [(shape, DTYPES[dtype].size) for shape in self.packed.values()]
        return [(w.shape, sizes[w.name]) for w in self._unpacked] + packed

    @cached_property
    def _unpacked(self) -> list[Weight]:
        """The weights that are not packed, the packed ones' biases last."""
        own = (w for w in self.weights if w.name.rpartition(".")[0] not in self.packed)
        biases = (w for w in self.weights if w.name.removesuffix(".bias") in self.packed)
        return [*own, *biases]

    def first_end(self, target: str) -> str:
        """Return the path of the embedding whose weight an output layer of this name has, or it."""
        ends = (table for head, table in self.tied.items() if f".{head}".endswith(f".{target}"))
        return next(ends, target)

    @cached_property
    def by_name(self) -> dict[str, Site]:
        """Every site under its name, the others too."""
        return {site.name: site for site in (*self.sites, *self.others)}

    @cached_property
    def by_module(self) -> dict[str, list[Site]]:
        """The sites of every matrix: one, or the slices of a fused one; without tables, kernels."""
        modules: dict[str, list[Site]] = {}
        for site in (*self.sites, *self.outputs):
            if site.kind != "linear":
                continue
            modules.setdefault(site.module, []).append(site)
        return modules

    @cached_property
    def outputs(self) -> tuple[Site, ...]:
        """Output layers with a weight of their own."""
        return tuple(site for site in self.others if site.kind == "linear")

    @cached_property
    def parameters_by_name(self) -> dict[str, Site]:
        """The sites that `target_parameters` finds: experts, and other modules' own matrices."""
        kinds = ("experts", "parameter")
        return {s.name: s for s in (*self.sites, *self.others) if s.kind in kinds}

    @cached_property
    def grid_sites(self) -> tuple[Site, ...]:
        """The sites that belong to a layer."""
        return tuple(site for site in self.sites if site.layer is not None)

    @cached_property
    def linear_sites(self) -> tuple[Site, ...]:
        """Those of `grid_sites` that are linear layers."""
        return tuple(site for site in self.grid_sites if site.kind == "linear")

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The grid's rows."""
        return tuple(block.row for block in self.blocks)

    @cached_property
    def row_index(self) -> dict[Row, int]:
        """The number of every row; what lies outside the layers has the one after the last."""
        return {row: number for number, row in enumerate(self.rows)}

    def cell(self, row: Row, role: str) -> Site | None:
        """Return the site of one cell, or None where that layer has no such matrix."""
        number = self.row_index.get(row)
        return None if number is None else self.blocks[number].roles.get(role)

    def __str__(self) -> str:
        return table.as_text(self)

    def _repr_html_(self) -> str:
        return table.as_html(self)
