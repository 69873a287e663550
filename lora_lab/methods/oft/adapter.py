"""OFT on a model: a layer reads xR in the place of x, so that W₀Rᵀ acts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.anatomy.types import Anatomy
from lora_lab.errors import AdapterError
from lora_lab.methods.layer_update import LayerAdapter, LayerUpdate, master, note
from lora_lab.methods.oft.config import OF_THE_MODEL, OFTConfig
from lora_lab.methods.oft.targets import Rotation, resolve_rotations
from lora_lab.methods.own_modes import is_anothers

_PEFT = "0.18.0"  # the first version with this form


class OFTUpdate(LayerUpdate):
    """The rotation of what one layer reads.

    Attributes:
        entries: (learned blocks, size·(size − 1)/2), above the diagonals of the skew-symmetric Q.
    """

    def __init__(self, layer: nn.Module, rotation: Rotation, config: OFTConfig) -> None:
        super().__init__(rotation.site)
        self.config, self.blocks, self.size = config, rotation.blocks, rotation.size
        start = torch.zeros if config.init_weights else functools.partial(torch.normal, 0.0, 0.1)
        self.entries = master(layer, start(rotation.shape))

    def skew(self) -> Tensor:
        """Return Q, (learned blocks, size, size); with `coft` no longer than it may be."""
        entries = self.entries
        if self.config.coft:
            with torch.no_grad():
                norms = _skew(entries, self.size).norm(dim=(1, 2))[:, None]
                short = (self.config.eps / math.sqrt(len(entries)) / norms).clamp(max=1)
            trains = entries.requires_grad and torch.is_grad_enabled()
            if trains and not is_anothers(self):
                with torch.no_grad():  # as in PEFT the step that comes starts from there
                    entries.mul_(short)
            else:
                entries = entries * short
        return _skew(entries, self.size)

    def rotation(self) -> Tensor:
        """Return R's blocks, (blocks, size, size)."""
        Q, config = self.skew(), self.config
        one = torch.eye(self.size, dtype=Q.dtype, device=Q.device)
        if config.use_cayley_neumann:
            R = _series(Q, one, config.num_cayley_neumann_terms)
        else:
            R = torch.linalg.solve(one + Q, one - Q, left=False)
        R = R.expand(self.blocks, -1, -1)
        dropped = int(config.module_dropout * self.blocks) if self.training else 0
        if dropped and not config.block_share:
            order = torch.randperm(self.blocks, device=R.device)
            R = torch.where((order < dropped)[:, None, None], one, R)
        return R

    def before(self, x: Tensor) -> Tensor:
        """Return xR, computed in R's dtype as in PEFT."""
        R = self.rotation()
        parts = x.to(R).unflatten(-1, (self.blocks, self.size))
        return torch.einsum("...bk,bkc->...bc", parts, R).flatten(-2).to(x.dtype)

    def merge_matrix(self, W: Tensor) -> None:
        """Make W₀Rᵀ of W₀."""
        R = self.rotation().to(W.dtype)
        parts = W.unflatten(-1, (self.blocks, self.size))
        W.copy_(torch.einsum("obc,bkc->obk", parts, R).flatten(-2))


class OFTAdapter(LayerAdapter):
    """OFT's rotations on a model under one name."""

    key = "oft_R.weight"
    config: OFTConfig
    layers: dict[str, tuple[nn.Module, OFTUpdate]]  # type: ignore[assignment]

    def updates(
        self, found: Anatomy, by_path: Mapping[str, nn.Module]
    ) -> dict[str, Callable[[], LayerUpdate]]:
        """Return what makes the rotation of every target layer."""
        rotations = resolve_rotations(found, self.config)
        note("OFT", [rotation.note for rotation in rotations if rotation.note])
        return {
            rotation.site.module: functools.partial(
                OFTUpdate, by_path[rotation.site.module], rotation, self.config
            )
            for rotation in rotations
        }

    def learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (layer, the entries of its blocks)."""
        for path, (_, update) in self.layers.items():
            yield path, update.entries

    def peft_form(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return PEFT's settings and {module path: entries}; None with a Conv1D: PEFT has none."""
        if any(update.site.transposed for _, update in self.layers.values()):
            return None
        own = (f.name for f in fields(self.config) if f.name not in OF_THE_MODEL)
        settings = {name: getattr(self.config, name) for name in own}
        settings |= {"init_weights": True, "fan_in_fan_out": False, "peft_version": _PEFT}
        return settings, dict(self.learned())

    def fill_from_peft(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy {module path: entries} of PEFT's file into the adapter.

        Raises:
            AdapterError: it is for another base.
        """
        for path, entries in self.learned():
            if tensors[path].shape != entries.shape:
                raise AdapterError(
                    f"the adapter is for another base: {path} has blocks of "
                    f"{tuple(entries.shape)} entries here, {tuple(tensors[path].shape)} in the file"
                )
        with torch.no_grad():
            for path, entries in self.learned():
                entries.copy_(tensors[path])


def _skew(entries: Tensor, size: int) -> Tensor:
    rows, columns = torch.triu_indices(size, size, 1, device=entries.device)
    Q = entries.new_zeros(len(entries), size, size)
    Q[:, rows, columns] = entries
    return Q - Q.mT


def _series(Q: Tensor, one: Tensor, terms: int) -> Tensor:
    """Return I + 2Q + 2Q² + … + Qⁿ, near to (I + Q)(I − Q)⁻¹; n and the last factor are PEFT's."""
    R = one + 2 * Q
    if terms == 2:
        return R
    power = Q @ Q
    R = R + 2 * power
    for _ in range(3, terms - 1):
        power = power @ Q
        R = R + 2 * power
    return R + power @ Q
