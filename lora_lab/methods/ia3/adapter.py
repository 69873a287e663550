"""(IA)³ on a model: y ⊙ l in the place of a layer's output y, or x ⊙ l in that of its input x."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab._util.format import a_kind
from lora_lab.anatomy.types import Anatomy
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.ia3.config import IA3Config
from lora_lab.methods.ia3.targets import Vector, resolve_vectors
from lora_lab.methods.layer_update import LayerAdapter, LayerUpdate, master
from lora_lab.methods.lora.operator import owned_columns


class IA3Update(LayerUpdate):
    """The vectors of one layer: one for its input, or one for each of its target sites.

    Attributes:
        vectors: (in,), or (out,) each, float32 or better.
        places, rows: of each: its name, and which rows of a fused matrix it scales.
    """

    def __init__(self, layer: nn.Module, vectors: Sequence[Vector], ones: bool) -> None:
        super().__init__(vectors[0].site)
        self.places = [vector.place for vector in vectors]
        self.feedforward = vectors[0].feedforward
        self.rows = [None if self.feedforward else vector.site.rows for vector in vectors]
        # On the CPU, so that a seed gives the same numbers on every device.
        make = torch.ones if ones else torch.randn
        starts = [make(v.size, dtype=torch.float32) for v in vectors]
        self.vectors = nn.ParameterList([master(layer, start) for start in starts])

    def whole(self) -> Tensor:
        """Return what scales the layer's whole input (in,) or output (out,); 1 is no change."""
        first, rows = self.vectors[0], self.rows[0]
        if rows is None:
            return first
        whole = torch.ones(rows.groups * rows.group_size, dtype=first.dtype, device=first.device)
        for vector, own_rows in zip(self.vectors, self.rows, strict=True):
            assert own_rows is not None
            own = owned_columns(whole, own_rows)
            own.copy_(vector.view_as(own))
        return whole

    def before(self, x: Tensor) -> Tensor:
        """Return x ⊙ l where the input is scaled; rounded once, to x's dtype."""
        if not self.feedforward:
            return x
        scale = self.whole()
        return (x.to(scale.device) * scale).to(x.dtype)

    def after(self, y: Tensor) -> Tensor:
        """Return y ⊙ l where the output is scaled; of a convolution channel by channel."""
        if self.feedforward:
            return y
        scale = self.whole()
        scale = scale[:, None, None] if self.site.kind == "conv" else scale
        return (y * scale.to(y.device)).to(y.dtype)

    def merge_matrix(self, W: Tensor) -> None:
        """Scale the columns of W₀, or its rows."""
        W.mul_(self.whole() if self.feedforward else self.whole()[:, None])

    def merge_bias(self, bias: Tensor) -> None:
        """Scale the bias, which is a part of the output."""
        if not self.feedforward:
            bias.mul_(self.whole())

    def peft_shape(self) -> tuple[int, ...]:
        """Return the shape that PEFT gives the vector."""
        if self.site.kind == "conv":
            return (1, -1, 1, 1)
        return (1, -1) if self.feedforward else (-1, 1)


class IA3Adapter(LayerAdapter):
    """IA3's vectors on a model under one name.

    A fused matrix has a vector for each of its target slices, the rest of its output stays.
    """

    key = "ia3_l"
    config: IA3Config
    layers: dict[str, tuple[nn.Module, IA3Update]]  # type: ignore[assignment]

    def updates(
        self, found: Anatomy, by_path: Mapping[str, nn.Module]
    ) -> dict[str, Callable[[], LayerUpdate]]:
        """Return what makes the vectors of every target layer."""
        vectors: dict[str, list[Vector]] = {}
        for vector in resolve_vectors(found, self.config):
            vectors.setdefault(vector.site.module, []).append(vector)
        for path, own in vectors.items():
            if own[0].site.kind == "conv" and not isinstance(by_path[path], nn.Conv2d):
                raise ConfigError(
                    f"IA3 is for linear layers and Conv2d, and {path} is {a_kind(by_path[path])}; "
                    "leave it out of target_modules"
                )
        ones = self.config.init_ia3_weights
        return {
            path: functools.partial(IA3Update, by_path[path], own, ones)
            for path, own in vectors.items()
        }

    def learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (site, or module whose input is scaled; its vector)."""
        for _, update in self.layers.values():
            yield from zip(update.places, update.vectors, strict=True)

    def peft_form(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's settings, and {module path: one vector}, 1 where no slice is a target."""
        scaled = [path for path, (_, update) in self.layers.items() if update.feedforward]
        settings = {"feedforward_modules": scaled, "init_ia3_weights": True}
        settings["fan_in_fan_out"] = any(own.site.transposed for _, own in self.layers.values())
        tensors = {p: u.whole().detach().view(u.peft_shape()) for p, (_, u) in self.layers.items()}
        return settings, tensors

    def fill_from_peft(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy {module path: vector} of PEFT's file into the adapter.

        Raises:
            AdapterError: it is for another base, or scales rows that are no site here.
        """
        for path, (_, update) in self.layers.items():
            now = update.whole()
            if tensors[path].shape != now.view(update.peft_shape()).shape:
                raise AdapterError(
                    f"the adapter is for another base: {path} has {len(now)} numbers here, "
                    f"{tuple(tensors[path].shape)} in the file"
                )
        with torch.no_grad():
            for path, (_, update) in self.layers.items():
                vector = tensors[path].flatten()
                for own, rows in zip(update.vectors, update.rows, strict=True):
                    part = vector if rows is None else owned_columns(vector, rows)
                    own.copy_(part.reshape(-1))
                if not torch.equal(update.whole().to(vector), vector):
                    raise AdapterError(
                        f"{path} is scaled on rows of no matrix here; merge this adapter where "
                        "it was made"
                    )
