"""An adapter as its file has it: one update a module, and which slices a fused one was made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lora_lab._util.json_files import parse_json
from lora_lab.anatomy.types import Anatomy, Rows, Site
from lora_lab.checkpoint.files import StoredTensor, quoted
from lora_lab.errors import AdapterError
from lora_lab.spectra.update import LowRankUpdate

SLICES_KEY = "lora_lab_slices"  # safetensors metadata: the sites that a fused module was made of


@dataclass(frozen=True)
class Slice:
    """One site of a fused module: it owns `r` rows of A, and the same columns of B.

    `rows` is None in files that only name the sites: the base tells whose rows they are.
    """

    site: str
    r: int
    rows: Rows | None


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter's file holds.

    Attributes:
        settings: its adapter_config.json, checked; empty for a format without one.
        modules: {module path in the base: its update}.
        slices: {path of a fused module: its sites in the order of A's rows}.
        left_out: {kind: names} of what the file holds besides low-rank factors of matrices.
        embeddings: {module path: its update}, A (r, vocabulary), B (width, r).
        kernels: {path of a convolution: its update}, A (r, in channels, *kernel) and
            B (out channels, r / groups, 1, …).
        magnitudes: {module path: DoRA's m (out,)}.
        weights: {name as in the model's state dict: tensor} of modules trained whole.
        experts: {parameter's name: every expert's update} of routed experts in one tensor.
        assumptions: what the file does not tell and was assumed, one line each.
    """

    settings: Mapping[str, Any]
    modules: Mapping[str, LowRankUpdate]
    slices: Mapping[str, Sequence[Slice]] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    embeddings: Mapping[str, LowRankUpdate] = field(default_factory=dict)
    kernels: Mapping[str, LowRankUpdate] = field(default_factory=dict)
    magnitudes: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: Mapping[str, StoredTensor] = field(default_factory=dict)
    assumptions: Sequence[str] = ()
    experts: Mapping[str, Sequence[LowRankUpdate]] = field(default_factory=dict)


def check_factor(key: str, factor: np.ndarray, dimensions: int = 2) -> np.ndarray:
    """Return a factor in float32 or float64, if it is finite and has so many dimensions.

    Raises:
        AdapterError: it is not.
    """
    if np.issubdtype(factor.dtype, np.floating) and factor.ndim == dimensions and factor.size:
        if factor.dtype != np.float64:
            factor = factor.astype(np.float32, copy=False)
        # Not isfinite: what float32 cannot hold becomes infinite in the model.
        if np.abs(factor).max() <= np.finfo(np.float32).max:
            return factor
    kind = {1: "vector", 2: "matrix"}.get(dimensions, "kernel")
    raise AdapterError(f"tensor {quoted(key)} is not a finite {kind}; fetch the adapter again")


def encode_slices(slices: Mapping[str, Iterable[Slice]]) -> str:
    """Return the text that `decode_slices` reads."""
    return json.dumps(
        {
            path: [[s.site, s.r, s.rows and _numbers(s.rows)] for s in parts]
            for path, parts in slices.items()
        }
    )


def decode_slices(text: str, modules: Mapping[str, LowRankUpdate]) -> dict[str, tuple[Slice, ...]]:
    """Return {path of a fused module: its slices}.

    Raises:
        AdapterError: the text does not fit the modules.
    """
    try:
        return {
            path: _slices(parts, modules[path])
            for path, parts in parse_json(text.encode() or b"{}").items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AdapterError(
            "the file's list of fused slices does not fit its tensors; save the adapter again"
        ) from None


def _slices(parts: Any, module: LowRankUpdate) -> tuple[Slice, ...]:
    slices = []
    for name, r, *more in parts:
        rows = Rows(*more[0]) if more and more[0] else None
        if not isinstance(name, str) or type(r) is not int or r < 1:
            raise ValueError
        if rows is not None:
            if any(type(n) is not int or n < 0 for n in _numbers(rows)) or not rows.width:
                raise ValueError
            if rows.groups * rows.group_size != module.shape[0]:
                raise ValueError
            if rows.offset + rows.width > rows.group_size:
                raise ValueError
        slices.append(Slice(name, r, rows))
    if sum(s.r for s in slices) != module.r or len({s.site for s in slices}) < len(slices):
        raise ValueError
    return tuple(slices)


def _numbers(rows: Rows) -> list[int]:
    return [rows.groups, rows.group_size, rows.offset, rows.width]


def rows_of(rows: Rows | None) -> np.ndarray | slice:
    """Return what indexes a site's rows in a fused (out, …) matrix."""
    if rows is None:
        return slice(None)
    index = np.arange(rows.groups * rows.group_size).reshape(rows.groups, rows.group_size)
    return index[:, rows.offset : rows.offset + rows.width].ravel()


def check_shape(path: str, module: LowRankUpdate, site: Site) -> None:
    """Raise unless a module's update has the shape of the base's module.

    Args:
        path: the module's path.
        module: its update.
        site: the module's site in the base, or one of them.
    """
    out = site.rows.groups * site.rows.group_size if site.rows else site.out_features
    if module.shape != (out, site.in_features):
        raise AdapterError(
            f"the adapter is for another base: {path} is {out} × {site.in_features} here, "
            f"{module.shape[0]} × {module.shape[1]} in the file"
        )


def match_sites(file: AdapterFile, anatomy: Anatomy) -> dict[str, LowRankUpdate]:
    """Return {site name: its update} of a file's matrices, in the file's order.

    Raises:
        AdapterError: the adapter is for another base; the line names the first difference.
    """
    updates: dict[str, LowRankUpdate] = {}
    for path, module in file.modules.items():
        sites = sites_of(path, anatomy.by_module)
        check_shape(path, module, sites[0])
        updates |= split(module, sites, file.slices.get(path, ()))
    return updates


def sites_of(path: str, by_module: Mapping[str, list[Site]]) -> list[Site]:
    """Return the sites of a file's module in a base.

    Raises:
        AdapterError: there are none.
    """
    if path not in by_module:
        raise AdapterError(
            f"the adapter is for another base: this model has no adaptable module {quoted(path)} "
            f"(it has {next(iter(by_module), 'none')!r}, …)"
        )
    return by_module[path]


def split(
    module: LowRankUpdate, sites: Sequence[Site], slices: Sequence[Slice] = ()
) -> dict[str, LowRankUpdate]:
    """Return {site name: its update} of one module.

    Args:
        module: the whole module's update.
        sites: the module's sites, as the base has them.
        slices: whose rows of A are whose. Without them, or where they are not the base's, every
            site has the whole of A and its own rows of B, which is as exact.
    """
    by_name = {site.name: site for site in sites}
    by_rows = {site.name: _own_rows(module, site.rows) for site in sites}
    if not slices or not all(_fits(part, by_name.get(part.site)) for part in slices):
        return by_rows
    updates, at, unowned = {}, 0, module.B.copy()
    for part in slices:
        ranks, rows = slice(at, at + part.r), by_name[part.site].rows
        own = module._replace(A=module.A[ranks], B=module.B[:, ranks])
        updates[part.site] = _own_rows(own, rows)
        unowned[rows_of(rows), ranks] = 0
        at += part.r
    # What no slice owns would be lost.
    return by_rows if unowned.any() else updates


def _own_rows(module: LowRankUpdate, rows: Rows | None) -> LowRankUpdate:
    return module._replace(B=module.B[rows_of(rows)], rows=rows)


def _fits(part: Slice, site: Site | None) -> bool:
    return site is not None and part.rows in (None, site.rows)
