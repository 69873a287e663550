"""Text that a language model writes of itself: what it would say if nobody asked.

Tokens are drawn from the model's own distribution, so that on average no other model has a lower
loss on them (Gibbs' inequality): how far a model that was trained further lies above the one that
wrote is what it has lost of it, in nats per token, without any data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from lora_lab._util.devices import device_of
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.errors import TaskError
from lora_lab.tasks.encoding import IGNORED, Encoded
from lora_lab.tasks.generation import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEED = 0  # one for all runs, so that they are measured on the same text


def writes_text(model: Any) -> bool:
    """Return whether a model reads and writes text from left to right, and nothing beside it."""
    reads = getattr(model, "main_input_name", "input_ids") == "input_ids"
    writes = getattr(model, "can_generate", lambda: False)()
    return bool(reads and writes and not model.config.is_encoder_decoder)


def why_no_text(model: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return why a model writes no text by itself; "": it does."""
    if not writes_text(model):
        return f"{type(model).__name__} writes no text from left to right"
    return "the tokenizer has no token that begins a text" * (_start(tokenizer) is None)


def write_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    tokens: int,
    should_stop: Callable[[], bool],
) -> list[Encoded]:
    """Let a model write, as it stands: tokens drawn from its own distribution.

    The same model writes the same text each time. Nothing is drawn from torch's own random
    numbers, and modules are in the modes that they were in.

    Args:
        model: a causal language model.
        tokenizer: the model's.
        count: of texts, written side by side.
        tokens: of each, besides the one that begins it; an end-of-sequence token ends it before.
        should_stop: asked before every token.

    Returns:
        The texts as tokens, all of them labels but the first; nothing after a stop.

    Raises:
        TaskError: the tokenizer has no token to begin with, or the model's logits are no numbers.
    """
    start, end = _start(tokenizer), tokenizer.eos_token_id
    if start is None:
        raise TaskError(
            "the tokenizer has no token that begins a text; give base_texts, or set "
            "tokenizer.bos_token"
        )
    # Its own generator: another thread may be drawing from torch's.
    generator = torch.Generator().manual_seed(_SEED)
    written: list[list[int]] = [[start] for _ in range(count)]
    ids = torch.full((count, 1), start, device="cpu")
    inputs, cache, device, caches = ids, None, device_of(model), _takes_cache(model)
    with evaluating(model), torch.no_grad():
        for _ in range(tokens):
            if should_stop():
                return []
            more = {"past_key_values": cache, "use_cache": True} if caches else {}
            output = model(input_ids=inputs.to(device), **more)
            odds = torch.softmax(output.logits[:, -1].float().cpu(), dim=-1)
            if not odds.isfinite().all():
                raise TaskError("the model's logits are NaN or infinite where it writes text")
            drawn = torch.multinomial(odds, 1, generator=generator)
            for row, token in zip(written, drawn.flatten().tolist(), strict=True):
                if len(row) == 1 or row[-1] != end:
                    row.append(token)
            ids = torch.cat([ids, drawn], dim=1)
            cache = getattr(output, "past_key_values", None) if caches else None
            inputs = ids if cache is None else drawn
    return [as_text(row) for row in written]


def as_text(ids: list[int]) -> Encoded:
    """Return tokens that are all labels but the first."""
    return {"input_ids": ids, "labels": [IGNORED, *ids[1:]], "cut": 0}


def _takes_cache(model: Any) -> bool:
    """Whether a model's forward takes what it has computed before; a user's own may not."""
    parameters = inspect.signature(unwrapped(model).forward).parameters.values()
    return any(p.name == "past_key_values" or p.kind is p.VAR_KEYWORD for p in parameters)


def _start(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that texts begin with: the end of another one, where there is none."""
    begin = tokenizer.bos_token_id
    return tokenizer.eos_token_id if begin is None else begin
