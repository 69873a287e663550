"""A file's modules and a model's: names and shapes are compared before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from torch import Tensor, nn

from lora_lab._util.format import a_kind
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.types import Anatomy, Site
from lora_lab.checkpoint.adapter_file import AdapterFile, check_shape, rows_of, sites_of, split
from lora_lab.checkpoint.experts import match_experts, refuse_interleaved
from lora_lab.checkpoint.files import quoted
from lora_lab.checkpoint.full_modules import match_full_modules, taken_whole
from lora_lab.checkpoint.single_experts import together
from lora_lab.checkpoint.tied_weights import without_tied
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import original_weight
from lora_lab.methods.lora.dora import row_norms
from lora_lab.methods.lora.own_forward import base_tensor
from lora_lab.methods.own_tensors import own_modules
from lora_lab.spectra.update import LowRankUpdate


@dataclass(frozen=True)
class Matched:
    """An adapter as a model's sites take it.

    Attributes:
        updates: {site name: its update}.
        experts: {site name: the updates of its experts, all of one rank}.
        magnitudes: {site name: DoRA's m (out,)}.
        saved: {path of a module trained whole: {name in the model's state dict: tensor}}.
    """

    updates: dict[str, LowRankUpdate] = field(default_factory=dict)
    experts: dict[str, list[LowRankUpdate]] = field(default_factory=dict)
    magnitudes: dict[str, np.ndarray] = field(default_factory=dict)
    saved: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def match(file: AdapterFile, model: nn.Module) -> Matched:
    """Return what of a file belongs to which site of a model.

    Raises:
        AdapterError: the adapter is for another base, or is something that cannot be attached; the
            line names the first difference.
    """
    map_ = anatomy(model)
    matched = Matched()
    by_path = dict(own_modules(model, every_name=True))
    file = without_tied(file, by_path, taken_whole(file, by_path))
    matched.saved.update(match_full_modules(file, model, by_path))
    for path in (*file.modules, *file.embeddings, *file.kernels):
        if any(f"{path}.".startswith(f"{own}.") for own in matched.saved):
            raise AdapterError(
                f"{quoted(path)} has factors and is trained whole too; fetch the adapter again"
            )
    held = map_.parameters_by_name
    matched.experts.update(match_experts(file.experts, held, by_path))
    file, single = together(file, held)
    for name, experts in single.items():
        refuse_interleaved(name, by_path[held[name].module])
        matched.experts[name] = experts
    for path, module in file.modules.items():
        own = _sites(path, map_.by_module, by_path, map_.tied)
        check_shape(path, module, own[0])
        parts = split(module, own, file.slices.get(path, ()))
        if (magnitude := file.magnitudes.get(path)) is not None:
            layer = by_path[path]
            W = original_weight(model, cast(nn.Parameter, base_tensor(layer)))
            W = W.T if own[0].transposed else W
            parts = _dora_parts(path, parts, split(module, own), map_, magnitude, W)
            for name in parts:
                matched.magnitudes[name] = magnitude[rows_of(map_.by_name[name].rows)]
        matched.updates.update(parts)
    others = {site.module: [site] for site in map_.others}
    for path, module in file.embeddings.items():
        own = _sites(path, others, by_path, map_.tied)
        _check_kind(path, own[0], "embedding")
        check_shape(path, module, own[0])
        matched.updates[path] = module
    for path, module in file.kernels.items():
        own = _sites(path, others, by_path, map_.tied)
        _check_kind(path, own[0], "conv")
        matched.updates[path] = _flat(path, module, cast(nn.Conv2d, by_path[path]))
    for path in (*file.embeddings, *file.kernels):
        if path in file.magnitudes:
            matched.magnitudes[path] = file.magnitudes[path]
    for name, update in matched.updates.items():
        matched.updates[name] = _within_bounds(update)
    for name, experts in matched.experts.items():
        matched.experts[name] = [_within_bounds(update) for update in experts]
    return matched


def _sites(
    path: str,
    by_module: Mapping[str, list[Site]],
    by_path: Mapping[str, nn.Module],
    tied: Mapping[str, str],
) -> list[Site]:
    """Return the sites of a file's module; say why a module that is here has none."""
    layer = by_path.get(path)
    if path in by_module or layer is None:
        return sites_of(path, by_module)
    if table := tied.get(path):
        raise AdapterError(
            f"the adapter changes {path} and not {table}, which here share one weight; give {path} "
            "a weight of its own before loading"
        )
    raise AdapterError(
        f"{path} is {a_kind(layer)} here, which the file's factors are not for; fetch "
        "the adapter of this base"
    )


def _check_kind(path: str, site: Site, kind: str) -> None:
    if site.kind != kind:
        name = {"conv": "a convolution", "embedding": "an embedding", "linear": "a matrix"}
        raise AdapterError(
            f"the adapter is for another base: {path} is {name[site.kind]} here, {name[kind]} in "
            "the file"
        )


def _dora_parts(
    path: str,
    parts: dict[str, LowRankUpdate],
    every: dict[str, LowRankUpdate],
    map_: Anatomy,
    magnitude: np.ndarray,
    W: Tensor,
) -> dict[str, LowRankUpdate]:
    """Return the sites that take up all of a DoRA module: rows that none owns must stay W₀'s."""
    if len(magnitude) != W.shape[0]:
        raise AdapterError(
            f"the adapter is for another base: {path} has {W.shape[0]} rows here, "
            f"{len(magnitude)} in the file"
        )
    lengths = row_norms(W).cpu().numpy().astype(magnitude.dtype)
    for chosen in (parts, every):
        free = np.ones(len(magnitude), bool)
        for name in chosen:
            free[rows_of(map_.by_name[name].rows)] = False
        if np.allclose(magnitude[free], lengths[free], rtol=1e-5, atol=0):
            return chosen
    raise AdapterError(
        f"{path} has DoRA magnitudes on rows of no matrix here, which cannot be held; merge "
        "this adapter where it was made"
    )


def _flat(path: str, module: LowRankUpdate, conv: nn.Conv2d) -> LowRankUpdate:
    """Return a convolution's update as matrices, (r, in / groups · kernel size) and (out, r).

    PEFT's A reads all channels, also those of other groups, which no grouped kernel can hold.
    """
    A, B = module.A, module.B
    groups, own = conv.groups, conv.in_channels // conv.groups
    q, rest = divmod(A.shape[0], groups)
    ones = (1,) * len(conv.kernel_size)
    wanted = (conv.in_channels, *conv.kernel_size), (conv.out_channels, q, *ones)
    if rest or (A.shape[1:], B.shape) != wanted:
        raise AdapterError(
            f"the adapter is for another base: {path} is a convolution of {conv.in_channels} to "
            f"{conv.out_channels} channels, kernel {conv.kernel_size}, {groups} groups here; A is "
            f"{tuple(A.shape)} and B {tuple(B.shape)} in the file"
        )
    B = B.reshape(len(B), -1)
    if groups == 1:
        return module._replace(A=A.reshape(len(A), -1), B=B)
    blocks = A.reshape(groups, q, groups, own, *conv.kernel_size)
    each = [blocks[group, :, group].reshape(q, -1) for group in range(groups)]
    if sum(map(np.count_nonzero, each)) != np.count_nonzero(A):
        raise AdapterError(
            f"{path} is a grouped convolution, and the file's A reads the channels of other "
            "groups too, which its kernel cannot hold; leave it out of target_modules"
        )
    if all(np.array_equal(block, each[0]) for block in each):
        return module._replace(A=each[0], B=B)
    width = conv.out_channels // groups
    spread = np.zeros((conv.out_channels, groups * q), B.dtype)
    for group in range(groups):
        rows = slice(group * width, (group + 1) * width)
        spread[rows, group * q : (group + 1) * q] = B[rows]
    return module._replace(A=np.concatenate(each), B=spread)


def _within_bounds(update: LowRankUpdate) -> LowRankUpdate:
    """Return the same update with a rank that is not above min(out, in)."""
    out, in_ = update.shape
    if update.r <= min(out, in_):
        return update
    product = update.B.astype(np.float64) @ update.A.astype(np.float64)
    factors = (product, np.eye(out)) if out <= in_ else (np.eye(in_), product)
    A, B = (factor.astype(update.A.dtype) for factor in factors)
    return update._replace(A=A, B=B)
