"""Many adapters in one batch: every sample is answered by its own (section 6's open problem).

Where all of a layer's sites are plain products, the samples' factors are stacked and the update of
the whole batch is two batched products; elsewhere each adapter's samples are computed apart.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lora_lab._util.torch_private import children_of
from lora_lab.anatomy.types import Rows
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import require_adapters
from lora_lab.methods.base import AdapterNames
from lora_lab.methods.lora.operator import owned_columns
from lora_lab.methods.lora.own_forward import base_forward
from lora_lab.spectra.update import LowRankUpdate

if TYPE_CHECKING:
    from lora_lab.methods.lora.layers import AdaptedLayer, LayerSites


@contextlib.contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str | None]) -> Iterator[None]:
    """Answer each sample of a batch with its own adapter while the block runs.

    Forward passes, `generate` (beams included) and training work as ever; every adapter learns
    from its own samples.

    >>> with ll.mixed_batch(model, ["summaries", "sql", None]):
    ...     model.generate(**three_prompts)

    Args:
        model: a model with those adapters.
        adapter_names: one a sample; None: the bare base model.

    Raises:
        AdapterError: a name that is not attached, or an adapter that is merged.
    """
    known = require_adapters(model)
    known.refuse_merged()
    unknown = [n for n in adapter_names if n is not None and n not in known.adapters]
    if unknown or not adapter_names:
        what = f"no adapter is called {unknown[0]!r}" if unknown else "adapter_names is empty"
        raise AdapterError(f"{what}; attached are {known.names}")
    for name in adapter_names:
        if name is not None and not (adapter := known.adapters[name]).per_sample:
            raise AdapterError(
                f"{name!r} is {adapter.method}, which answers whole batches only; "
                "run its samples apart, or use LoRA adapters"
            )
        if name is not None and known.statistics.learned(name):
            raise AdapterError(
                f"{name!r} has running statistics of its own (BatchNorm's and the like), which "
                "are one for a whole batch; run its samples apart"
            )
    before = known.active.samples
    with known.base_in_place():
        known.active.samples = tuple(adapter_names)
        try:
            yield
        finally:
            known.active.samples = before


def mixed_output(x: Tensor, layer: AdaptedLayer, samples: AdapterNames) -> Tensor:
    """Return a layer's output where row i of the batch has the update of adapter samples[i].

    Args:
        x: (batch, …, in).
        layer: the adapted layer.
        samples: adapter names; one a row, or one for equally many neighboring rows (beams).
    """
    names = _for_rows(x, samples, layer)
    found = {name: _sites(layer, name) for name in dict.fromkeys(names)}
    plain = layer.plain_product and all(s is None or s.plain for s in found.values())
    if not plain:
        return _apart(x, layer, names, found)
    y = base_forward(layer, x)
    updates = {name: _updates(sites) for name, sites in found.items()}
    dropout = max(sites.active_dropout for sites in found.values() if sites is not None)
    for rows in dict.fromkeys(rows for update in updates.values() for rows in update):
        y = _add(y, x, rows, [updates[name].get(rows) for name in names], dropout)
    return y


def _updates(sites: LayerSites | None) -> dict[Rows | None, LowRankUpdate]:
    """Return one adapter's update for each of the rows that it owns, the scale in B."""
    terms: defaultdict[Rows | None, list[LowRankUpdate]] = defaultdict(list)
    for term in sites.terms() if sites is not None else ():
        terms[term.rows].append(term)
    return {
        rows: LowRankUpdate(
            torch.cat([t.A for t in together]),
            torch.cat([t.B * t.scale for t in together], dim=1),
            rows=rows,
        )
        for rows, together in terms.items()
    }


def _sites(layer: AdaptedLayer, name: str | None) -> LayerSites | None:
    return cast("LayerSites | None", children_of(layer.lora).get(name)) if name else None


def _for_rows(x: Tensor, samples: AdapterNames, layer: AdaptedLayer) -> list[str | None]:
    rows, count = x.shape[0], len(samples)
    if rows == count:
        return list(samples)
    # Beams of a prompt stand beside each other, and so do a sample's tokens where a model flattens
    # its batch (OPT). A mixture's expert gets tokens that a router picked: nobody knows whose.
    path = cast("LayerSites", next(iter(layer.lora.values()))).path
    if rows % count == 0 and "expert" not in path:
        return [name for name in samples for _ in range(rows // count)]
    raise AdapterError(
        f"adapter_names has {count} entries, but {path} got an input of shape {tuple(x.shape)}; "
        "give one name for each sample of the batch, and leave experts out of target_modules"
    )


def _add(
    y: Tensor,
    x: Tensor,
    rows: Rows | None,
    updates: Sequence[LowRankUpdate | None],
    dropout: float,
) -> Tensor:
    """Return y (batch, …, out) with s·B(Ax) of every row's own update added."""
    present = [update for update in updates if update is not None]
    r = max(update.r for update in present)
    in_shape, out_shape = (r, x.shape[-1]), (present[0].B.shape[0], r)
    A = torch.stack([_padded(u and u.A, in_shape, x) for u in updates])  # (batch, r, in)
    B = torch.stack([_padded(u and u.B, out_shape, x) for u in updates])  # (batch, out, r)
    inputs = x.reshape(x.shape[0], -1, x.shape[-1])  # (batch, tokens, in)
    if dropout:
        inputs = nn.functional.dropout(inputs, dropout)
    hidden = inputs @ A.mT  # (batch, tokens, r)
    if rows is None:
        flat = y.reshape(x.shape[0], -1, y.shape[-1])
        return torch.baddbmm(flat, hidden, B.mT).view(y.shape)
    y = y.clone()
    own = owned_columns(y, rows)
    own.add_((hidden @ B.mT).view(own.shape))
    return y


def _padded(factor: Tensor | None, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Return a factor in x's dtype with zeros up to `shape`; zeros alone for the bare model."""
    if factor is None:
        return like.new_zeros(shape)
    more = (0, shape[1] - factor.shape[1], 0, shape[0] - factor.shape[0])
    return nn.functional.pad(factor.to(like.dtype), more) if any(more) else factor.to(like.dtype)


def _apart(
    x: Tensor,
    layer: AdaptedLayer,
    names: Sequence[str | None],
    found: dict[str | None, LayerSites | None],
) -> Tensor:
    y = None
    for name, sites in found.items():
        index = torch.tensor([i for i, n in enumerate(names) if n == name], device=x.device)
        part = x.index_select(0, index)
        out = base_forward(layer, part) if sites is None else sites.output(part, layer)
        if y is None:
            y = out.new_zeros(len(names), *out.shape[1:])
        y = y.index_copy(0, index, out)
    assert y is not None
    return y
