"""A few tokens whose vectors are learned whole beside LoRA: PEFT's trainable_token_indices.

For tokens that were added to a vocabulary, or shall mean something new. The adapter holds their
rows of the embedding, not a difference to it: a new token's row in the base is random, and another
one wherever the vocabulary was resized again. An output layer that has the embedding's weight gets
the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab.anatomy.api import input_embedding
from lora_lab.errors import ConfigError
from lora_lab.methods.base import Active
from lora_lab.methods.forward_switch import ForwardSwitch, switch_of
from lora_lab.methods.lora.own_forward import base_tensor, hold_weight
from lora_lab.methods.offload import weight_keys
from lora_lab.methods.own_tensors import own_modules

KEY = "token_adapter.trainable_tokens_delta"  # of PEFT's files

Indices = Sequence[int] | Mapping[str, Sequence[int]]


class TokenRows(nn.Module):
    """The learned rows of one embedding, n of them, beside the embedding itself.

    Attributes:
        weight: (n, width), named as the embedding's, in float32 or better.
        slots: (vocabulary,): which row is a token's; -1 where the base's is.
    """

    slots: Tensor

    def __init__(self, table: nn.Module, tokens: Sequence[int]) -> None:
        super().__init__()
        self._table = (table,)  # in a tuple: it is no part of this
        W = base_tensor(table).detach()
        self.tokens = tuple(tokens)
        index = torch.tensor(self.tokens, device=W.device)
        rows = W[index].to(torch.promote_types(W.dtype, torch.float32))
        self.weight = nn.Parameter(rows.clone())
        slots = torch.full((len(W),), -1, device=W.device)
        slots[index] = torch.arange(len(self.tokens), device=W.device)
        self.register_buffer("slots", slots, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors of token ids x (…,): (…, width)."""
        (table,) = self._table
        y = cast(ForwardSwitch, switch_of(table)).bare(x)
        slots = self.slots[x]
        rows = nn.functional.embedding(slots.clamp(min=0), self.weight).to(y.dtype)
        # Gemma's embedding multiplies by √width after the lookup.
        rows = rows * getattr(table, "embed_scale", 1.0)
        return torch.where((slots >= 0)[..., None], rows, y)


class TokenLogits(nn.Module):
    """The same rows at the output layer that has the embedding's weight."""

    def __init__(self, head: nn.Module, rows: TokenRows) -> None:
        super().__init__()
        self._head = (head,)
        self.weight = rows.weight
        self.register_buffer("index", torch.tensor(rows.tokens, device=rows.slots.device), False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of x (…, width): (…, vocabulary)."""
        (head,) = self._head
        index = cast(Tensor, self.index)
        y: Tensor = cast(ForwardSwitch, switch_of(head)).bare(x)
        bias: Any = getattr(head, "bias", None)
        own = nn.functional.linear(x, self.weight, None if bias is None else bias[index])
        return y.index_copy(-1, index, own.to(y.dtype))


class TrainedTokens:
    """One adapter's learned rows, by the path of their embedding."""

    def __init__(self, model: nn.Module, indices: Indices | None) -> None:
        by_path = dict(own_modules(model))
        key = weight_keys(by_path)
        self.rows: dict[str, TokenRows] = {}
        self._ends: list[tuple[str, nn.Module, nn.Module]] = []
        for path, tokens in _located(model, by_path, indices or {}).items():
            table = by_path[path]
            rows = self.rows[path] = TokenRows(table, tokens)
            self._ends.append((path, table, rows))
            for other, module in by_path.items():
                if module is table or key(other) != key(path):
                    continue
                if isinstance(module, nn.Embedding):
                    twin = TokenRows(module, tokens)
                    twin.weight = rows.weight
                    self._ends.append((other, module, twin))
                else:
                    self._ends.append((other, module, TokenLogits(module, rows)))

    def covers(self, path: str) -> bool:
        """Whether a module is one of the embeddings, or has the weight of one."""
        return any(path == own for own, _, _ in self._ends)

    def insert(self, name: str, active: Active) -> None:
        """Let the rows answer while the adapter `name` is active."""
        for path, module, own in self._ends:
            ForwardSwitch.of(module, path, active).add(name, own)

    def remove(self, name: str) -> None:
        """Take the rows away again."""
        for _, module, _ in self._ends:
            if (switch := switch_of(module)) is not None:
                switch.pop(name)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what is trained."""
        yield from (rows.weight for rows in self.rows.values())

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (PEFT's name, learned rows)."""
        for path, rows in self.rows.items():
            yield f"{path}.{KEY}", rows.weight

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into what `state` names."""
        with torch.no_grad():
            for key, rows in self.state():
                rows.copy_(values[key])

    def merged_weights(self, dtype: torch.dtype | None) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (embedding's weight, the same with the learned rows)."""
        for rows in self.rows.values():
            (table,) = rows._table
            weight = cast(nn.Parameter, hold_weight(table))
            merged = weight.detach().to(dtype or weight.dtype, copy=True)
            merged[list(rows.tokens)] = rows.weight.detach().to(merged)
            yield weight, merged


def _located(
    model: nn.Module, by_path: Mapping[str, nn.Module], indices: Indices
) -> dict[str, Sequence[int]]:
    """Return {path of an embedding: tokens}; a list is the input embedding's.

    Raises:
        ConfigError: no such embedding, or a token that it does not have.
    """
    if not isinstance(indices, Mapping):
        table = input_embedding(model)
        path = next((p for p, module in by_path.items() if module is table and table), None)
        if path is None:
            raise ConfigError(
                "trainable_token_indices is a list, and the model does not say which embedding "
                "reads its tokens; use {path: list}"
            )
        indices = {path: indices}
    found: dict[str, Sequence[int]] = {}
    for name, tokens in indices.items():
        paths = [p for p in by_path if p == name or p.endswith(f".{name}")]
        tables = [p for p in paths if isinstance(by_path[p], nn.Embedding)]
        if not tables:
            raise ConfigError(f"trainable_token_indices names {name!r}, which is no embedding here")
        for path in tables:
            size = len(cast(Tensor, hold_weight(by_path[path])))
            if max(tokens) >= size:
                raise ConfigError(
                    f"trainable_token_indices has {max(tokens)}, and {path} has {size} rows; call "
                    "model.resize_token_embeddings(...) first"
                )
            found[path] = tokens
    return found
