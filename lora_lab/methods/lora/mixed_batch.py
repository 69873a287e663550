"""Many adapters in one batch: every sample is answered by its own (section 6's open problem).

Where all of a layer's sites are plain products, the samples' factors are stacked and the update of
the whole batch is two batched products; elsewhere each adapter's samples are computed apart.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.torch_private import children_of
from lora_lab.anatomy.types import Rows
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import require_adapters
from lora_lab.methods.base import Active, AdapterNames
from lora_lab.methods.generate_calls import unwatch, watch
from lora_lab.methods.lora.operator import owned_columns
from lora_lab.methods.lora.own_forward import base_forward
from lora_lab.spectra.update import LowRankUpdate

if TYPE_CHECKING:
    from lora_lab.methods.lora.layers import AdaptedLayer, LayerSites


@contextlib.contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str | None]) -> Iterator[None]:
    """Answer each sample of a batch with its own adapter while the block runs, on this thread.

    Forward passes, `generate` and training work as ever; every adapter learns from its own
    samples. Every row of a batch has its name: of chosen and rejected answers to two prompts, say,
    `[*names, *names]`. The rows that `generate` makes of a prompt (`num_beams`,
    `num_return_sequences`) are the prompt's.

    >>> with ll.mixed_batch(model, ["summaries", "sql", None]):
    ...     model.generate(**three_prompts)

    Args:
        model: a model with those adapters.
        adapter_names: one a row of the batch; None: the bare base model.

    Raises:
        AdapterError: a name that is not attached, or an adapter that is merged. Within the block a
            batch of another number of rows, or a module with other rows than the batch's.
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
        if name is not None and adapter.modifies_base:
            raise AdapterError(
                f"{name!r} trains biases of the base (bias={adapter.config.bias!r}), which are one "
                "for a whole batch; run its samples apart"
            )
        if name is not None and known.statistics.learned(name):
            raise AdapterError(
                f"{name!r} has running statistics of its own (BatchNorm's and the like), which "
                "are one for a whole batch; run its samples apart"
            )
    rows = _Rows(tuple(adapter_names), known.active)
    with known.base_in_place(), rows.told_by(unwrapped(model)):
        yield


class _Rows:
    """Notes whose rows are whose as a forward pass begins."""

    def __init__(self, names: AdapterNames, active: Active) -> None:
        self._names, self._active = names, active
        self._batch = active.batch.here()
        self._thread = threading.get_ident()
        self._generating = False

    @contextlib.contextmanager
    def told_by(self, model: nn.Module) -> Iterator[None]:
        """Hear of this thread's forward passes and of its `generate` meanwhile."""
        handle = model.register_forward_pre_hook(self._enter, with_kwargs=True)
        generates = hasattr(model, "generate")
        try:
            with self._active.apart(self._names):
                if generates:
                    watch(model, self)
                yield
        finally:
            handle.remove()
            if generates:
                unwatch(model, self)

    def _reset(self) -> None:
        self._batch.samples, self._batch.tokens = self._names, 0

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read = _batch(args, kwargs)
        if read is None or threading.get_ident() != self._thread:
            return
        copies = self._need_rows(len(read), several=self._generating)
        self._batch.samples = tuple(name for name in self._names for _ in range(copies))
        inputs = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() > 1)
        # Where something is read that has other rows, such as patches of images, a number of rows
        # tells nothing.
        alike = all(len(v) == len(read) for v in inputs if v.is_floating_point())
        self._batch.tokens = read.shape[1] if alike and read.dim() > 1 else 0

    def begin_generating(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Hear that `generate` begins.

        Raises:
            AdapterError: the prompts are not as many as the names.
        """
        if threading.get_ident() != self._thread:
            return
        read = _batch(args, kwargs)
        if read is not None:
            self._need_rows(len(read))
        self._generating = True
        self._reset()

    def end_generating(self) -> None:
        """Hear that it has ended."""
        if threading.get_ident() == self._thread:
            self._generating = False
            self._reset()

    def _need_rows(self, rows: int, *, several: bool = False) -> int:
        """Return how many neighboring rows each name has: one, or in `generate` its prompt's."""
        copies, rest = divmod(rows, len(self._names))
        if rest or (copies != 1 and not (several and copies)):
            raise AdapterError(
                f"adapter_names has {len(self._names)} entries, and the batch {rows} rows; give "
                "one name for every row"
            )
        return copies


_TEXTS = ("input_ids", "inputs_embeds", "inputs", "decoder_input_ids", "decoder_inputs_embeds")


def _batch(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the tensor whose rows are a call's samples: the tokens, else the first of all."""
    named = (kwargs.get(name) for name in _TEXTS)
    found = (v for v in (*named, *args, *kwargs.values()) if isinstance(v, Tensor) and v.dim())
    return next(found, None)


def mixed_output(x: Tensor, layer: AdaptedLayer, active: Active) -> Tensor:
    """Return a layer's output where every row of the batch has the update of its own adapter.

    Args:
        x: (batch, …, in).
        layer: the adapted layer.
        active: knows the names of the rows.
    """
    path = cast("LayerSites", next(iter(layer.lora.values()))).path
    names = active.names_of(x, path)
    found = {name: _sites(layer, name) for name in dict.fromkeys(names)}
    plain = layer.plain_product and all(s is None or s.plain for s in found.values())
    if not plain:
        return _apart(x, layer, active.places_of(names, x.device), found)
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
    places: Mapping[str | None, Tensor],
    found: dict[str | None, LayerSites | None],
) -> Tensor:
    y = None
    for name, sites in found.items():
        part = x.index_select(0, places[name])
        out = base_forward(layer, part) if sites is None else sites.output(part, layer)
        if y is None:
            y = out.new_zeros(len(x), *out.shape[1:])
        y = y.index_copy(0, places[name].to(out.device), out)
    assert y is not None
    return y
