"""The table of prices: all that is needed to price a plan on one model, as plain JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lora_lab.budget import activations as act
from lora_lab.budget.full import full_memory
from lora_lab.budget.optimizers import OPTIMIZERS, state_rule
from lora_lab.budget.part import MASTER, PLAIN, lora_options
from lora_lab.configs.base import need_count
from lora_lab.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from lora_lab.anatomy import Anatomy, Site
    from lora_lab.configs import LoraConfig

_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


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
) -> dict[str, Any]:
    """Return all that is needed to price a plan, as plain JSON; the arguments are `budget`'s.

    Keys: `sites` hold sizes and places, `lora` the options that all of them have, `groups` the
    inputs that their first reader makes live, `rows` what each block keeps once something before it
    is trained (`pieces` of [order, bytes]), `head` and `loss` what follows the blocks, `adapter`
    the bytes that a number of A or B and its gradient take, `optimizer` the rule for their state,
    `full` the finished numbers of full fine-tuning.

    Args:
        anatomy: the model's sites and sizes.
        lora: whose dropout, DoRA, LoRA-FA and start from W₀ count where ranks are priced alone;
            its ranks and targets do not.
        learned_tokens: that a prefix method adds to every sequence; full fine-tuning has none.

    Raises:
        ConfigError: for a setting that cannot be.
    """
    need_count("batch_size", batch_size, least=1)
    need_count("sequence_length", sequence_length, least=1)
    rule = state_rule(optimizer, MASTER)
    dtype_name, element = _dtype(dtype, anatomy.shape.dtype_bytes)
    plain = act.Batch(batch_size, sequence_length, element, padding_mask)
    price: dict[str, Any] = {
        "parameters": anatomy.parameters,
        "weights": anatomy.parameters * element,
        "element": element,
        "adapter": {"weights": MASTER, "gradients": MASTER},
        "optimizer": {"name": optimizer, **asdict(rule)},
        "gradient_checkpointing": gradient_checkpointing,
        "approximate": act.is_approximate(anatomy.shape),
        "lora": dict(PLAIN) if lora is None else lora_options(lora),
    }
    blocks, head = _blocks(anatomy, plain), act.head(anatomy.shape, plain)
    price |= _sites(anatomy, plain) | _rows(blocks, head)
    price["full"] = asdict(full_memory(anatomy, price, blocks, head, element))
    batch = plain
    if learned_tokens:
        batch = act.Batch(batch_size, sequence_length + learned_tokens, element, padding_mask)
        blocks, head = _blocks(anatomy, batch), act.head(anatomy.shape, batch)
        price |= _sites(anatomy, batch) | _rows(blocks, head)
    for key, others in _others(anatomy, batch).items():
        price[key] = price[key] | others
    tokens = f"{sequence_length} tokens"
    tokens += f" and {learned_tokens} learned ones" if learned_tokens else ""
    settings = [f"batch {batch_size} × {tokens}", OPTIMIZERS[optimizer], dtype_name]
    settings += ["gradient checkpointing"] if gradient_checkpointing else []
    settings += ["padding mask"] if padding_mask else []
    price["settings"] = ", ".join(settings)
    price["tokens"] = batch_size * (sequence_length + learned_tokens)
    return price


def row_index(anatomy: Anatomy) -> dict[tuple[str, int], int]:
    """Return {(stack, layer): row}; what lies outside the layers has the row after the last."""
    return {(row.stack, row.layer): number for number, row in enumerate(anatomy.rows)}


def _blocks(anatomy: Anatomy, batch: act.Batch) -> list[act.Block]:
    index = row_index(anatomy)
    members: list[list[Site]] = [[] for _ in index]
    for site in anatomy.grid_sites:
        members[index[site.stack, site.layer or 0]].append(site)
    return [act.block(anatomy.shape, n, inside, batch) for n, inside in enumerate(members)]


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


def _sites(anatomy: Anatomy, batch: act.Batch) -> dict[str, Any]:
    index = row_index(anatomy)
    sites: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for at, site in enumerate(anatomy.sites):
        # What lies outside the layers (pooler, classifier) is read last.
        row = len(index) if site.layer is None else index[site.stack, site.layer]
        width = site.in_features + site.out_features
        kept = batch.tokens * batch.element  # Ax
        if batch.element != MASTER:
            kept += width * batch.element  # A and B cast down
        fused = site.rows.groups * site.rows.group_size if site.rows else site.out_features
        group = act.group(anatomy.shape, site, batch)
        key = site.reads or site.name
        groups[key] = {"row": row, "bytes": group.size, "spent": group.spent}
        sites[site.name] = {
            "kind": "linear",
            "at": at,
            "row": row,
            "order": act.order_of(row, site.role),
            "group": key,
            "module": site.module,
            "module_out": fused,
            "last": site.role == "down",
            "in": site.in_features,
            "out": site.out_features,
            # PEFT's format keeps a fused matrix's B block-diagonal, zeros and all.
            "checkpoint": MASTER * (site.in_features + fused),
            "activations": kept,
        }
    return {"sites": sites, "groups": groups}


def _others(anatomy: Anatomy, batch: act.Batch) -> dict[str, Any]:
    """Return the embeddings and convolutions: what stands before the blocks."""
    N, e = batch.tokens, batch.element
    cast_down = e != MASTER
    sites: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for site in anatomy.others:
        k, d = site.in_features, site.out_features
        row, size = 0, 0
        if site.kind == "conv":
            size = N * k * e  # exact where patches do not overlap
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
            "checkpoint": MASTER * (k + d),
            "activations": kept,
        }
    return {"sites": sites, "groups": groups}


def _dtype(dtype: torch.dtype | str | None, own: int | None) -> tuple[str, int]:
    """Return (name, bytes of an element)."""
    if dtype is None:
        element = own or 4
        return {4: "float32", 2: "16 bits"}.get(element, f"{8 * element} bits"), element
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        known = ", ".join(sorted(_DTYPES))
        raise ConfigError(f"dtype {name!r} is not modelled; use one of {known}")
    return name, _DTYPES[name]
