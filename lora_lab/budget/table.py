"""The table of prices: all that is needed to price a plan on one model, as plain JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_lab._util.dtypes import DTYPES, model_dtype
from lora_lab.budget import activations as act
from lora_lab.budget.full import full_memory
from lora_lab.budget.gpu import Gpu, gpu_of
from lora_lab.budget.mixed_dtypes import Elements, mixture
from lora_lab.budget.optimizers import OPTIMIZERS, state_rule
from lora_lab.errors import ConfigError
from lora_lab.methods.config import MethodConfig, need_count
from lora_lab.methods.cost import MASTER, MethodCost, train_whole_modules
from lora_lab.methods.lora.cost import PLAIN, lora_options

if TYPE_CHECKING:
    import torch

    from lora_lab.anatomy.types import Anatomy, ModelShape, Site
    from lora_lab.methods.lora.config import LoraConfig


def price_table(
    anatomy: Anatomy,
    *,
    batch_size: int = 8,
    sequence_length: int = 128,
    dtype: torch.dtype | str | None = None,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    padding_mask: bool = False,
    lora: LoraConfig | None = None,
    learned_tokens: int = 0,
    target_length: int | None = None,
    device: torch.device | str | None = None,
    recompute_mlp: bool | None = None,
    label_length: int | None = None,
) -> dict[str, Any]:
    """Return all that is needed to price a plan, as plain JSON; the arguments are `budget`'s.

    Keys: `sites` hold sizes and places, `lora` the options that all of them have, `groups` the
    inputs that their first reader makes live (made again where a lesser order than `unless` is
    trained), `rows` what each block keeps once something before it is trained (`pieces` of [order,
    bytes]), `head` and `loss` what follows the blocks, `adapter` the bytes that a number of A or B
    and its gradient take, `optimizer` the rule for their state, `full` the finished numbers of full
    fine-tuning.

    Args:
        anatomy: the model's sites and sizes.
        lora: whose dropout, DoRA, LoRA-FA and start from W₀ count where ranks are priced alone.
        learned_tokens: that a prefix method adds to every sequence that is read.
        device: None: the CPU.

    Raises:
        ConfigError: for a setting that cannot be.
    """
    need_sizes(batch_size, sequence_length, label_length)
    name, element, dtype_text = _dtype(dtype, anatomy.shape)
    gpu = gpu_of(device)
    elements = Elements(anatomy, name)
    sizes = batch_size, sequence_length, element, elements.stream, padding_mask, name, gpu
    again = recompute_mlp is not False and not gradient_checkpointing
    read = act.Batch(*sizes, label_length, again)
    batches = _read_and_written(anatomy, read, target_length, elements)
    price = _model(anatomy, name) | {
        "optimizer": {"name": optimizer, **asdict(state_rule(optimizer))},
        "gradient_checkpointing": gradient_checkpointing,
        "lora": dict(PLAIN) if lora is None else lora_options(lora),
    }
    blocks, head = _kept(anatomy, batches)
    price |= _sites(anatomy, batches) | _rows(blocks, head)
    price["full"] = asdict(full_memory(anatomy, price, blocks, head, name))
    if learned_tokens:
        batches = batches.longer(learned_tokens)
        price |= _sites(anatomy, batches) | _rows(*_kept(anatomy, batches))
    _add_others(price, anatomy, batches)
    tokens = tokens_text(sequence_length, target_length, learned_tokens)
    step = f"batch {batch_size} × {tokens}", OPTIMIZERS[optimizer], dtype_text
    settings = settings_text(step, gradient_checkpointing, padding_mask, gpu)
    notes = [*mixture(anatomy, name).notes, *act.notes(anatomy.shape, batches.last)]
    return price | {"settings": settings, "notes": notes}


def beside_head(price: Mapping[str, Any], anatomy: Anatomy) -> dict[str, Any]:
    """Return a table for a task of classes or of a number: the head is trained beside any ranks.

    Args:
        price: what `price_table` returns.
        anatomy: that it is of.

    Returns:
        The table with the shapes of the head's tensors as "whole", and a note.
    """
    cost = MethodCost()
    train_whole_modules(cost, anatomy, anatomy.heads)
    shapes = [list(shape) for shape in cost.shapes]
    return {**price, "whole": shapes, "notes": [*price["notes"], *cost.notes]}


def need_sizes(batch_size: int, sequence_length: int, label_length: int | None) -> tuple[int, int]:
    """Return the first two of a step's sizes, where all are whole numbers of at least 1.

    Raises:
        ConfigError: which of them.
    """
    need_count("batch_size", batch_size, least=1)
    need_count("sequence_length", sequence_length, least=1)
    if label_length is not None:
        need_count("label_length", label_length, least=1)
    return batch_size, sequence_length


def settings_text(
    step: Iterable[str], gradient_checkpointing: bool, padding_mask: bool, gpu: Gpu | None
) -> str:
    """Return "batch 8 × 128 tokens, AdamW, float32" with what is switched on, and where."""
    more = ["gradient checkpointing"] if gradient_checkpointing else []
    more += ["padding mask"] if padding_mask else []
    more += [f"on {gpu.name}"] if gpu else []
    return ", ".join([*step, *more])


def tokens_text(sequence_length: int, target_length: int | None, learned_tokens: int = 0) -> str:
    """Return "128 tokens", or of an encoder-decoder model "128 tokens read, 32 written"."""
    more = f" and {learned_tokens} learned ones" if learned_tokens else ""
    if target_length is None:
        return f"{sequence_length} tokens{more}"
    return f"{sequence_length} tokens read, {target_length} written{more}"


def need_target(target_length: int, has_decoder: bool) -> None:
    """Refuse a length of what is written that cannot be.

    Args:
        target_length: tokens.
        has_decoder: the model is an encoder-decoder model.

    Raises:
        ConfigError: it is no whole number of at least 1, or the model has one sequence only.
    """
    need_count("target_length", target_length, least=1)
    if not has_decoder:
        raise ConfigError(
            "target_length is for encoder-decoder models, and this one reads and writes one "
            "sequence; leave it out"
        )


def fitting_tokens(anatomy: Anatomy, config: MethodConfig, sequence_length: int) -> int:
    """Return how many learned tokens a config puts into every sequence.

    Raises:
        ConfigError: where they and the sequence do not fit the model's positions.
    """
    need_count("sequence_length", sequence_length, least=1)
    tokens, most = config.tokens, anatomy.shape.max_positions
    if tokens and most is not None and tokens + sequence_length > most:
        left = most - tokens
        fix = f"use a sequence_length of at most {left}" if left > 0 else "use fewer of them"
        raise ConfigError(
            f"{tokens} learned tokens (prefix_length + infix_length) and {sequence_length} others "
            f"do not fit the model's {most} positions; {fix}"
        )
    return tokens


@dataclass(frozen=True)
class _Batches:
    """What the first stack reads and what the last one does: of most models the same."""

    first: act.Batch
    last: act.Batch
    decoder: str  # the last stack of an encoder-decoder model, else ""
    elements: Elements

    def longer(self, tokens: int) -> _Batches:
        """With so many more tokens read."""
        first = replace(self.first, sequence_length=self.first.sequence_length + tokens)
        return replace(self, first=first, last=self.last if self.decoder else first)

    def of(self, stack: str) -> act.Batch:
        return self.last if self.decoder and stack == self.decoder else self.first

    def read_by(self, site: Site) -> act.Batch:
        """The decoder's attention makes its keys and values of what the encoder has read."""
        crossing = site.role in ("cross.k", "cross.v")
        batch = self.first if crossing or site.layer is None else self.of(site.stack)
        return self.like(batch, site)

    def like(self, batch: act.Batch, site: Site) -> act.Batch:
        """A batch as a matrix reads it: in its own type."""
        return replace(batch, element=self.elements.of(site))


def _read_and_written(
    anatomy: Anatomy, read: act.Batch, target_length: int | None, elements: Elements
) -> _Batches:
    decoder = _decoder(anatomy)
    if target_length is not None:
        need_target(target_length, bool(decoder))
    written = replace(read, sequence_length=target_length or read.sequence_length)
    return _Batches(read, written if decoder else read, decoder, elements)


def _model(anatomy: Anatomy, dtype: str) -> dict[str, Any]:
    return {
        "parameters": anatomy.parameters,
        "weights": anatomy.weight_bytes(dtype),
        "dtype": dtype,
        "element": DTYPES[dtype].size,
        "adapter": {"weights": MASTER, "gradients": MASTER},
        "approximate": act.is_approximate(anatomy.shape),
    }


def _kept(anatomy: Anatomy, batches: _Batches) -> tuple[list[act.Block], act.Head]:
    """Return what each row keeps, and what follows them."""
    return _blocks(anatomy, batches), act.head(anatomy.shape, batches.last)


def _decoder(anatomy: Anatomy) -> str:
    stacks = {row.stack for row in anatomy.rows}
    return "decoder" if {"encoder", "decoder"} <= stacks else ""


def _blocks(anatomy: Anatomy, batches: _Batches) -> list[act.Block]:
    return [
        act.block(anatomy.shape, n, list(block.roles.values()), batches.of(block.row.stack))
        for n, block in enumerate(anatomy.blocks)
    ]


def _rows(blocks: list[act.Block], head: act.Head) -> dict[str, Any]:
    rows = [
        {
            "input": b.input,
            "work": b.work,
            "pieces": [list(piece) for piece in b.pieces],
            "normed": b.normed,
        }
        for b in blocks
    ]
    rows.append({"input": 0, "work": 0, "pieces": [], "normed": 0})  # outside the layers
    return {"rows": rows, "head": head.kept, "loss": head.loss}


def _sites(anatomy: Anatomy, batches: _Batches) -> dict[str, Any]:
    index = anatomy.row_index
    sites: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for at, site in enumerate((*anatomy.sites, *anatomy.outputs)):
        # What lies outside the layers (pooler, classifier) is read last.
        row = len(index) if site.row is None else index[site.row]
        width = site.in_features + site.out_features
        output = site in anatomy.outputs
        batch = batches.like(batches.last, site) if output else batches.read_by(site)
        kept = batch.tokens * batch.element  # Ax
        if batch.element != MASTER:
            kept += width * batch.element  # A and B cast down
        fused = site.rows.groups * site.rows.group_size if site.rows else site.out_features
        if site.kind == "experts":
            sites[site.name], groups[site.input_group] = _experts(anatomy, site, row, batch)
            continue
        group = act.group(anatomy.shape, site, batch)
        key = site.input_group or site.name
        unless = act.order_of(row, "up") + 1 if group.again else None
        groups[key] = {"row": row, "bytes": group.size, "spent": group.spent, "unless": unless}
        sites[site.name] = {
            "kind": "linear",
            "at": at,
            "row": row,
            "order": act.order_of(row, site.role),
            "group": key,
            "module": site.module,
            "module_out": fused,
            "last": site.role == "down",
            "again": 2 * group.again,
            "in": site.in_features,
            "out": site.out_features,
            "tokens": batch.tokens,
            "element": batch.element,
            # PEFT's format keeps a fused matrix's B block-diagonal, zeros and all.
            "checkpoint": MASTER * (site.in_features + fused),
            "activations": kept,
        }
    return {"sites": sites, "groups": groups}


def _experts(
    anatomy: Anatomy, site: Site, row: int, batch: act.Batch
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the prices of the experts in one tensor, and of what they read.

    Their factors count as one A (r, experts · in) and one B (experts · out, r).
    """
    k, d, e = site.in_features, site.out_features, batch.element
    rows = batch.tokens * (anatomy.shape.experts_per_token or 1)  # every token goes through several
    every = site.experts * (k + d)
    price = {
        "kind": site.kind,
        "row": row,
        "order": act.order_of(row, "down" if site.role.endswith("down_proj") else "up"),
        "group": site.input_group,
        "in": site.experts * k,
        "out": site.experts * d,
        "checkpoint": MASTER * every,
        "element": e,
        "activations": (rows + (every if e != MASTER else 0)) * e,
    }
    return price, {"row": row, "bytes": rows * k * e, "spent": False}


def _add_others(price: dict[str, Any], anatomy: Anatomy, batches: _Batches) -> None:
    """Add the embeddings and convolutions: what stands before the blocks."""
    N = batches.first.tokens
    sites: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for site in anatomy.others:
        if site.kind == "linear":
            continue
        k, d, e = site.in_features, site.out_features, batches.elements.of(site)
        cast_down = e != MASTER
        row, size = 0, 0
        if site.kind in ("conv", "parameter"):
            size = N * k * e  # of a convolution exact where patches do not overlap
            kept = (N + k + (d if cast_down else 0)) * e
        else:
            kept = (N + (d if cast_down else 0)) * e
            if anatomy.shape.tied_embeddings and k == anatomy.shape.vocab_size:
                # Adapted at the output layer too, which is walked back first.
                row, size = len(anatomy.rows), N * d * e
                kept += (N + (d + k if cast_down else 0)) * e
        groups[site.name] = {"row": row, "bytes": size, "spent": False}
        sites[site.name] = {
            "kind": site.kind,
            "row": row,
            "order": -1,
            "group": site.name,
            "in": k,
            "out": d,
            "tokens": N,
            "checkpoint": MASTER * (k + d),
            "element": e,
            "activations": kept,
        }
    price["sites"] |= sites
    price["groups"] |= groups


def _dtype(dtype: torch.dtype | str | None, shape: ModelShape) -> tuple[str, int, str]:
    """Return (name, bytes of an element, what people read)."""
    if dtype is None:
        element = shape.dtype_bytes or 4
        text = {4: "float32", 2: "16 bits"}.get(element, f"{8 * element} bits")
        return shape.dtype or "float32", element, text
    name = model_dtype(dtype)
    return name, DTYPES[name].size, name
