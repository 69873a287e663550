"""LoRA's share of a training step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lora_lab.methods.cost import (
    BEFORE_THE_BLOCKS,
    MASTER,
    MethodCost,
    train_biases,
    train_whole_modules,
    whole_modules,
)
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.targets import all_linear_notes, ranks

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy, Weight


def lora_cost(anatomy: Anatomy, config: LoraConfig, price: dict[str, Any]) -> MethodCost:
    """Return what LoRA of this config adds."""
    cost = rank_cost(price, ranks(anatomy, config), lora_options(config))
    cost.notes += all_linear_notes(anatomy, config)
    for rows, width in _token_rows(anatomy, config):
        cost.train(0, (rows, width))
        cost.first = BEFORE_THE_BLOCKS
        cost.estimated = True
    for site in (price["sites"][name] for name in ranks(anatomy, config) if config.lora_bias):
        cost.train(site["row"], (site["out"],))
        cost.estimated = True
    train_whole_modules(cost, anatomy, whole_modules(anatomy, config))
    if biases := _own_biases(anatomy, config):
        train_biases(cost, anatomy, biases, price)
    if config.init.ranks and dict(config.eva_config or {}).get("rho", 1) != 1:
        cost.notes += ("EVA moves ranks once it has seen the data; these are the config's",)
    return cost


def _own_biases(anatomy: Anatomy, config: LoraConfig) -> list[Weight]:
    """Return the base's biases that are trained; see `LoraConfig.bias`."""
    every = [weight for weight in anatomy.weights if f".{weight.name}".endswith(".bias")]
    if config.bias == "lora_only":
        sites = {**anatomy.parameters_by_name, **anatomy.by_name}
        adapted = {f"{sites[name].module}.bias" for name in ranks(anatomy, config)}
        return [weight for weight in every if weight.name in adapted]
    whole = tuple(f".{name}." for name in config.modules_to_save or ())
    kept = [w for w in every if not any(name in f".{w.name}" for name in whole)]
    return kept if config.bias == "all" else []


def _token_rows(anatomy: Anatomy, config: LoraConfig) -> Iterator[tuple[int, int]]:
    """Yield (tokens, width) of every embedding that learns some."""
    tables = [site for site in anatomy.others if site.kind == "embedding"]
    given = config.trainable_token_indices or {}
    if not isinstance(given, Mapping):
        words = anatomy.shape.vocab_size
        read = [site for site in tables if site.in_features == words] or tables
        given = {site.module: given for site in read[:1]}
    for name, tokens in given.items():
        for site in tables:
            if f".{site.module}".endswith(f".{name}"):
                yield len(tokens), site.out_features


def lora_options(config: LoraConfig) -> dict[str, Any]:
    """Return what of a config changes the price, as the price table's "lora" has it."""
    return {
        "dropout": config.lora_dropout > 0,
        "learns_A": not config.use_lorafa,
        "lengths": config.use_dora,
        # PiSSA and OLoRA: beside A and B stand the frozen A₀ and B₀ that they started from.
        "copies": 2 if config.init.from_base else 1,
    }


PLAIN = {"dropout": False, "learns_A": True, "lengths": False, "copies": 1}


def rank_cost(
    price: Mapping[str, Any], ranks: Mapping[str, int], options: Mapping[str, Any] | None = None
) -> MethodCost:
    """Return LoRA of these ranks: A (r, in) and B (out, r) at every painted site.

    Args:
        price: the table.
        ranks: {site name: rank}.
        options: what `lora_options` returns; by default the table's own.
    """
    options = options or price["lora"]
    cost = MethodCost()
    together: defaultdict[tuple[str, int], list[tuple[dict[str, Any], int]]] = defaultdict(list)
    for name, r in ranks.items():
        site = price["sites"][name]
        cost.first = min(cost.first, site["order"])
        cost.conflicts.add(name)
        if site["kind"] == "linear":
            together[site["group"], site["row"]].append((site, r))
        else:
            _other(cost, site, r, options["lengths"] and site["kind"] == "conv")
    for sites in together.values():
        _readers(cost, sites, options)
    return cost


def _other(cost: MethodCost, site: Mapping[str, Any], r: int, lengths: bool) -> None:
    """An embedding, a convolution, a parameter or experts: of the options they have few."""
    cost.train(site["row"], (r, site["in"]), (site["out"], r))
    if lengths:
        cost.train(site["row"], (site["out"],))
        cost.kept[site["row"]] += site["out"] * (2 * MASTER + site["tokens"] * site["element"])
    cost.kept[site["row"]] += r * site["activations"]
    cost.live_inputs.add(site["group"])
    cost.estimated |= site["kind"] != "embedding"


def _readers(
    cost: MethodCost, sites: list[tuple[dict[str, Any], int]], options: Mapping[str, Any]
) -> None:
    """Linear sites of one block that read one input, and share a pass through their A's."""
    first, _ = min(sites, key=lambda pair: pair[0]["at"])  # keeps what all of them share
    tokens, element = first["tokens"], first["element"]
    copies, cast_down = options["copies"], element != MASTER
    row, down, width = first["row"], first["last"], first["in"]
    stacked = cast_down or len(sites) * copies > 1
    for site, r in sites:
        shapes: list[tuple[int, ...]] = [(site["out"], r)]
        if options["learns_A"]:
            shapes.insert(0, (r, width))
        frozen = (copies * r * (width + site["out"])) - sum(map(math.prod, shapes))
        if options["lengths"]:
            shapes.append((site["out"],))
        cost.train(row, *shapes)
        cost.weights += MASTER * frozen
        cost.checkpoint += copies * r * site["checkpoint"] - MASTER * sum(map(math.prod, shapes))
        if site["again"]:  # by the time that the product is walked back, its gradients are there
            cost.freed[row] -= MASTER * sum(map(math.prod, shapes))
        thin = copies * r * tokens * element  # H = Ax
        cost.kept[row] += thin if site["module"] == first["module"] else 2 * thin
        cost.kept[row] += copies * r * width * element if stacked else 0
        cost.kept[row] += copies * r * site["out"] * element if cast_down else 0
        if options["lengths"]:  # the norm, the gain and its cast
            cost.kept[row] += site["out"] * (2 * MASTER + (element if cast_down else 0))
            cost.forward = max(cost.forward, MASTER * width * site["out"] if cast_down else 0)
    if options["learns_A"]:
        cost.live_inputs.add(first["group"])
    if options["dropout"]:
        cost.kept[row] += tokens * width  # the mask, one byte an entry
        cost.freed[row] += tokens * width if down else 0
        if down:  # its output's gradient, its input's, and that on its way through the mask
            several = 4 + first["again"] if options["learns_A"] else 3
            widths = first["module_out"] + several * width
            cost.temporaries[row] = max(cost.temporaries[row], tokens * widths * element)
    if options["lengths"]:
        for module_out in {site["module"]: site["module_out"] for site, _ in sites}.values():
            cost.checkpoint += MASTER * module_out
            cost.kept[row] += tokens * module_out * element  # what the gain is applied to
            cost.freed[row] += tokens * module_out * element if down else 0
