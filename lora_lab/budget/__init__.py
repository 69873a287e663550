"""What a plan will cost: exact counts, and memory in closed form, against full fine-tuning.

Everything goes through one table of prices (`price_table`), linear in the ranks but for inputs that
become live when the first site reads them. `evaluate_price` turns {site: rank} into a `Budget`;
`static/savings.js` does the same in the browser while ranks are painted.

Memory is the peak of one training step as live tensor bytes: AdamW fused, gradients freed before
each forward pass, SDPA attention, sequences without padding. What an allocator or a CUDA library
adds on top is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.budget import activations as act
from lora_lab.budget.costs import Budget, Memory
from lora_lab.errors import ConfigError
from lora_lab.plan import ranks as ranks_of

if TYPE_CHECKING:
    import torch

    from lora_lab.anatomy import Anatomy, Site
    from lora_lab.configs import LoraConfig

# Bytes a trainable parameter: A and B, their gradients and Adam's two moments are float32 whatever
# the model's dtype.
ADAPTER = {"weights": 4, "gradients": 4, "optimizer": 8}
_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


def budget(
    model: Any,
    config: LoraConfig,
    *,
    batch_size: int = 8,
    sequence_length: int = 128,
    dtype: torch.dtype | str | None = None,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
) -> Budget:
    """Forecast what training this config will cost, against full fine-tuning.

    Args:
        model: a model, its `Anatomy`, a catalogue name, or a folder with a config.json.
        config: which sites get what rank.
        batch_size: sequences a step.
        sequence_length: tokens a sequence, all of them used.
        dtype: of the base model; None takes the model's own. A and B are always float32.
        optimizer: "adamw", the only one whose state is modelled.
        gradient_checkpointing: whether blocks are recomputed in the backward pass.

    Raises:
        ConfigError: for a setting that cannot be, or a target that matches nothing.
        ModelError: for a model that cannot be read.
    """
    anatomy = _anatomy_of(model)
    price = price_table(
        anatomy,
        batch_size=batch_size,
        sequence_length=sequence_length,
        dtype=dtype,
        optimizer=optimizer,
        gradient_checkpointing=gradient_checkpointing,
        lora_dropout=config.lora_dropout,
    )
    return evaluate_price(price, ranks_of(anatomy, config))


def price_table(
    anatomy: Anatomy,
    *,
    batch_size: int = 8,
    sequence_length: int = 128,
    dtype: torch.dtype | str | None = None,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    lora_dropout: float = 0.0,
) -> dict[str, Any]:
    """Return all that is needed to price any {site: rank}, as plain JSON.

    Keys: `sites` hold numbers per rank, `groups` the inputs that their first reader makes live,
    `rows` what each block keeps once something before it is trained (`pieces` of [order, bytes]),
    `head` and `loss` what follows the blocks, `adapter` the bytes a trainable parameter takes,
    `full` the finished numbers of full fine-tuning.
    """
    for name, value in (("batch_size", batch_size), ("sequence_length", sequence_length)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")
    if optimizer != "adamw":
        raise ConfigError(f"optimizer {optimizer!r} is not modelled; use 'adamw'")
    shape = anatomy.shape
    dtype_name, element = _dtype(dtype, shape.dtype_bytes)
    batch = act.Batch(batch_size, sequence_length, element)
    index = {(row.stack, row.layer): number for number, row in enumerate(anatomy.rows)}
    members: list[list[Site]] = [[] for _ in index]
    for site in anatomy.grid_sites:
        members[index[site.stack, site.layer or 0]].append(site)
    blocks = [act.block(shape, n, inside, batch) for n, inside in enumerate(members)]
    head = act.head(shape, batch)

    sites: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for site in anatomy.sites:
        # What lies outside the layers (pooler, classifier) is read last.
        row = len(blocks) if site.layer is None else index[site.stack, site.layer]
        width = site.in_features + site.out_features
        kept = batch.tokens * element  # Ax
        if element != ADAPTER["weights"]:
            kept += width * element  # A and B cast down
        fused = site.rows.groups * site.rows.group_size if site.rows else site.out_features
        group = act.group(shape, site, batch)
        key = site.reads or site.name
        if lora_dropout:  # each site keeps its own dropped input and the mask instead
            key = site.name
            group = act.Group(2 * batch.tokens * site.in_features * element, spent=False)
        groups[key] = {"row": row, "bytes": group.size, "spent": group.spent}
        sites[site.name] = {
            "row": row,
            "order": act.order_of(row, site.role),
            "group": key,
            "parameters": width,
            # PEFT's format keeps a fused matrix's B block-diagonal, zeros and all.
            "checkpoint": ADAPTER["weights"] * (site.in_features + fused),
            "activations": kept,
        }
    rows = [
        {"input": b.input, "work": b.work, "pieces": [list(piece) for piece in b.pieces]}
        for b in blocks
    ]
    rows.append({"input": 0, "work": 0, "pieces": []})  # outside the layers
    price = {
        "parameters": anatomy.parameters,
        "weights": anatomy.parameters * element,
        "adapter": ADAPTER,
        "sites": sites,
        "groups": groups,
        "rows": rows,
        "head": head.kept,
        "loss": head.loss,
        "gradient_checkpointing": gradient_checkpointing,
        "approximate": act.is_approximate(shape),
        "settings": _settings(batch, dtype_name, gradient_checkpointing),
    }
    price["full"] = _full(anatomy, price, blocks, head, element)
    return price


def evaluate_price(price: Mapping[str, Any], ranks: Mapping[str, int]) -> Budget:
    """Price {site name: rank}; a rank of 0 leaves the site out.

    Raises:
        ConfigError: for a site that the table does not have.
    """
    sites, groups, adapter = price["sites"], price["groups"], price["adapter"]
    if unknown := ranks.keys() - sites.keys():
        raise ConfigError(f"no site is called {min(unknown)!r}; see anatomy(model).sites")
    painted = {name: r for name, r in ranks.items() if r > 0}
    first = min((sites[name]["order"] for name in painted), default=float("inf"))
    kept = [sum(size for order, size in row["pieces"] if order > first) for row in price["rows"]]
    spent = [0] * len(kept)
    gradients = [0] * len(kept)
    for key in {sites[name]["group"] for name in painted}:
        group = groups[key]
        kept[group["row"]] += group["bytes"]
        spent[group["row"]] += group["bytes"] if group["spent"] else 0
    trainable = checkpoint = 0
    for name, r in painted.items():
        site = sites[name]
        kept[site["row"]] += r * site["activations"]
        gradients[site["row"]] += r * site["parameters"] * adapter["gradients"]
        trainable += r * site["parameters"]
        checkpoint += r * site["checkpoint"]
    peak = _peak(price, kept, spent, gradients) if painted else 0
    full = dict(price["full"])
    return Budget(
        parameters_total=price["parameters"],
        parameters_trainable=trainable,
        checkpoint_bytes=checkpoint,
        full_checkpoint_bytes=price["weights"],
        full=Memory(**full),
        adapted=Memory(
            weights=price["weights"] + trainable * adapter["weights"],
            gradients=trainable * adapter["gradients"],
            optimizer=trainable * adapter["optimizer"],
            activations=peak - sum(gradients),
        ),
        approximate=price["approximate"],
        settings=price["settings"],
    )


def _peak(
    price: Mapping[str, Any],
    kept: list[int],
    spent: list[int],
    gradients: list[int],
    *,
    head: int = 0,
    head_gradient: int = 0,
) -> int:
    """Return the most bytes of activations and gradients that live at once.

    The candidates: the loss, when all is kept; each block's backward pass, when what lies behind it
    is freed and its gradients have come; the end, when only gradients are left.
    """
    checkpointing = price["gradient_checkpointing"]
    stored = [
        min(k, row["input"]) if checkpointing else k
        for k, row in zip(kept, price["rows"], strict=True)
    ]
    alive = sum(stored)
    peak = alive + price["head"] + head + price["loss"]
    alive += head_gradient
    for number in reversed(range(len(kept))):
        if kept[number]:
            again = kept[number] if checkpointing else 0
            here = alive + again - spent[number] + price["rows"][number]["work"]
            peak = max(peak, here)
        alive += gradients[number] - stored[number]
    return max(peak, alive)


def _full(
    anatomy: Anatomy,
    price: Mapping[str, Any],
    blocks: list[act.Block],
    head: act.Head,
    element: int,
) -> dict[str, int]:
    """Return the parts of full fine-tuning's memory: everything learns, in the model's dtype."""
    shape = anatomy.shape
    weights = anatomy.parameters * element
    kept = [sum(piece.size for piece in b.pieces) + b.normed for b in blocks] + [0]
    spent = [0] * len(kept)
    gradients = [0] * len(kept)
    for group in price["groups"].values():
        kept[group["row"]] += group["bytes"]
        spent[group["row"]] += group["bytes"] if group["spent"] else 0
    for site in anatomy.sites:
        row = price["sites"][site.name]["row"]
        gradients[row] += site.in_features * site.out_features * element
    outputs = 0
    if shape.block.lm_head:
        outputs = (shape.vocab_size or 0) * (shape.hidden_size or 0) * element
    peak = _peak(price, kept, spent, gradients, head=head.normed, head_gradient=outputs)
    # At the end all gradients are there, and a tied embedding's two halves are being added.
    tied = 2 * outputs if shape.tied_embeddings else 0
    peak = max(peak, weights + tied)
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": 2 * weights,
        "activations": peak - weights,
    }


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


def _settings(batch: act.Batch, dtype: str, checkpointing: bool) -> str:
    text = f"batch {batch.batch_size} × {batch.sequence_length} tokens, AdamW, {dtype}"
    return text + (", gradient checkpointing" if checkpointing else "")


def _anatomy_of(model: Any) -> Anatomy:
    from lora_lab.anatomy import Anatomy, anatomy
    from lora_lab.models import model_config

    if isinstance(model, Anatomy):
        return model
    if isinstance(model, (str, Path)):
        return anatomy(model_config(str(model)))
    return anatomy(model)
