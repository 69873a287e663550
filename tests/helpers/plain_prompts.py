"""Learned tokens put around prompts by hand, one row at a time, on a bare model: the oracle.

There are no pads, masks or position ids: the words' embeddings and the learned ones are
concatenated, and the model counts for itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PREFIX, INFIX = 3, 2
ROWS = [([5, 9, 7, 11, 20], [30, 31, 32]), ([8, 4], [40, 41]), ([6, 6, 50], [51, 52, 53, 54, 55])]
PROMPTS = [prompt for prompt, _ in ROWS]


def padded(rows: Sequence[Sequence[int]], fill: int, left: bool = False) -> Tensor:
    """Return rows of different lengths as one tensor."""
    longest = max(map(len, rows))
    pads = [[fill] * (longest - len(row)) for row in rows]
    return torch.tensor(
        [[*p, *row] if left else [*row, *p] for row, p in zip(rows, pads, strict=True)]
    )


def batch(left: bool = False) -> dict[str, Tensor]:
    """Return `ROWS` as a model takes them in training."""
    return {
        "input_ids": padded([[*prompt, *answer] for prompt, answer in ROWS], 0, left),
        "attention_mask": padded([[1] * len([*row[0], *row[1]]) for row in ROWS], 0, left),
        "labels": padded([[-100] * len(prompt) + answer for prompt, answer in ROWS], -100, left),
    }


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the blocks that read the prompt; an encoder's come before a decoder's."""
    return next(part for part in model.modules() if isinstance(part, nn.ModuleList))


def slots(prompt: int, prefix: int, infix: int) -> list[int]:
    """Return the learned tokens' places around a prompt of so many tokens."""
    return [*range(prefix), *range(prefix + prompt, prefix + prompt + infix)]


@contextlib.contextmanager
def writing(model: nn.Module, learned: Sequence[Tensor], places: list[int]) -> Iterator[None]:
    """Have the blocks read the learned vectors at some places of a single row."""

    def writer(vectors: Tensor) -> Any:
        def write(_block: nn.Module, args: Any, kwargs: Any) -> Any:
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            hidden[0, places] = vectors
            return (
                ((hidden, *args[1:]), kwargs)
                if args
                else (args, {**kwargs, "hidden_states": hidden})
            )

        return write

    handles = [
        block.register_forward_pre_hook(writer(vectors), with_kwargs=True)
        for vectors, block in zip(learned, blocks_of(model), strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(
    model: Any,
    learned: Sequence[Tensor],
    prompt: Sequence[int],
    answer: Sequence[int] = (),
    infix: int = INFIX,
    **inputs: Any,
) -> Any:
    """Run a bare model on one row; its output has the learned places in it.

    Args:
        model: any.
        learned: one tensor for PreEmbed, or one a block for PreLayer.
        prompt, answer: token ids.
        infix: l_i; the rest of the learned tokens is the prefix.
        inputs: what else the model is given.
    """
    embed = model.get_input_embeddings()
    device = learned[0].device
    before, words, behind = (
        embed(torch.tensor([ids], dtype=torch.int64, device=device))
        for ids in ([1], prompt, answer)
    )
    by_layer = len(learned) > 1
    count = len(learned[0])
    own = before.expand(-1, count, -1) if by_layer else learned[0][None]
    prefix = count - infix
    x = torch.cat([own[:, :prefix], words, own[:, prefix:], behind], 1)
    places = slots(len(prompt), prefix, infix)
    with writing(model, learned, places) if by_layer else contextlib.nullcontext():
        return model(inputs_embeds=x, **inputs)


def read_at(prompt: int, answer: int, prefix: int = PREFIX, infix: int = INFIX) -> list[int]:
    """Return the places whose logits stand for the row's own tokens; the last infix predicts."""
    end = prefix + prompt + infix
    return [*range(prefix, prefix + prompt - 1), end - 1, *range(end, end + answer)]


def greedy(model: Any, learned: Sequence[Tensor], prompt: Sequence[int], steps: int) -> list[int]:
    """Return the likeliest tokens, each from all that stands before it, without a cache."""
    answer: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            logits = run(model, learned, prompt, answer, use_cache=False).logits
        answer.append(int(logits[0, -1].argmax()))
    return answer
