"""LoRA on embeddings: the vector of token t gets s·B·A[:, t] on top (loralib's `Embedding`).

A is kept as its transpose, one contiguous row of r numbers a token, so that a lookup reads what it
needs and a sparse gradient is possible. A model that ties its output layer to the embedding is
adapted at both ends by the same two factors, else merging would change what was never trained.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab._util.format import a_kind
from lora_lab.errors import AdapterError
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.lora.layers import AdaptedLayer, LayerSites, base_class
from lora_lab.methods.own_generator import generator
from lora_lab.spectra.update import LowRankUpdate


class EmbeddingSite(LoraSite):
    """A and B of an embedding, (r, vocabulary) and (width, r)."""

    token_rows: nn.Parameter  # Aᵀ, (vocabulary, r)

    def start(
        self, config: LoraConfig, W: Tensor, r: int, _activations: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return A zero and B ~ N(0, 1), as loralib does; with False both N(0, 1)."""
        width, words = W.shape
        B = torch.empty(width, r, device="cpu", dtype=torch.float32).normal_(generator=generator())
        A = torch.zeros(r, words, device="cpu", dtype=torch.float32)
        return A.normal_(generator=generator()) if config.init_lora_weights is False else A, B

    def keep(self, A: Tensor, B: Tensor, learn_A: bool) -> None:
        """Make the parameters."""
        self.token_rows = nn.Parameter(A.T.contiguous(), requires_grad=learn_A)
        self.B = nn.Parameter(B)

    @property
    def A(self) -> Tensor:  # type: ignore[override]  # noqa: N802
        """A, (r, vocabulary): a view of `token_rows`."""
        return self.token_rows.T


class EmbeddingSites(LayerSites):
    """One adapter's site on an embedding."""

    plain = False

    def added(self, y: Tensor, x: Tensor, layer: AdaptedLayer) -> Tensor:
        """Return the vectors y of token ids x (…,), each with its update: (…, width)."""
        table: Any = layer
        for site in self.sites:
            rows = cast(EmbeddingSite, site).token_rows
            found = F.embedding(
                x.to(rows.device), rows, table.padding_idx, sparse=table.sparse
            )  # (…, r)
            update = F.linear(found.to(y.dtype), site.B.to(y.dtype)) * site.scale
            # Gemma's embedding multiplies by √width after the lookup.
            y = y + update.to(y.device) * getattr(layer, "embed_scale", 1.0)
        return y


class TiedHeadSites(LayerSites):
    """The embedding's site at the output layer that shares its weight: logits += s·(Aᵀ(Bᵀx))."""

    plain = True
    active_dropout = 0.0

    def terms(self) -> list[LowRankUpdate]:
        """Return the update with the factors' parts exchanged: "A" (r, width), "B" (V, r)."""
        return [
            LowRankUpdate(site.B.T, cast(EmbeddingSite, site).token_rows, site.scale)
            for site in self.sites
        ]


def check_embedding(path: str, module: nn.Module) -> None:
    """Refuse an embedding whose lookup is not the plain one.

    Raises:
        AdapterError: names the module.
    """
    kind = base_class(module)
    plain = kind.forward is nn.Embedding.forward or hasattr(module, "embed_scale")
    if not plain or cast(Any, module).max_norm is not None:
        raise AdapterError(
            f"{path} is {a_kind(kind)}, which does more than look vectors up; leave it out of "
            "target_modules"
        )
