"""From examples to tensors for encoder-decoder models: the prompt is read, the completion learned.

Both sides are framed as the model's tokenizer does it: T5 ends them with </s>, BART has <s> in
front as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from lora_lab.errors import TaskError
from lora_lab.tasks.encoding import (
    IGNORED,
    framed_prompt,
    need_end,
    need_tokenizer,
    padded,
    texts_ids,
)
from lora_lab.tasks.prompts import Example, GenerationTask
from lora_lab.tasks.sequence_ends import without_begin, without_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodedPair(TypedDict):
    """One example as tokens.

    Attributes:
        input_ids: the prompt, for the encoder.
        labels: the completion with its end of sequence; of a length of their own, all learned.
        cut: how many of the prompt's tokens did not fit.
    """

    input_ids: list[int]
    labels: list[int]
    cut: int


def encode_pairs(
    examples: Iterable[Example],
    task: GenerationTask,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
) -> tuple[list[EncodedPair], int]:
    """Tokenize examples for an encoder-decoder model.

    What does not fit is cut from the start of the prompt; the special tokens around it stay.

    Args:
        examples: what to encode.
        task: its `prompt_text` frames the prompt.
        tokenizer: the model's.
        max_length: tokens of a prompt at most, and of a completion, special ones included.

    Returns:
        The encoded examples, and how many of them had their prompt cut.

    Raises:
        TaskError: a completion is longer, special tokens leave no room for a prompt, or the
            tokenizer has no end-of-sequence token.
    """
    tokenizer = need_tokenizer(tokenizer)
    end = need_end(tokenizer)
    examples = list(examples)
    prompts = prompts_ids(
        [framed_prompt(task, e.prompt, tokenizer) for e in examples], tokenizer, max_length
    )
    before, behind = frame(tokenizer, "text_target")
    if end not in behind:
        behind = [*behind, end]
    texts = [_bare(example.completion, tokenizer) for example in examples]
    written = _plain_ids(tokenizer, "text_target", texts)
    encoded: list[EncodedPair] = []
    for example, prompt, plain in zip(examples, prompts, written, strict=True):
        labels = [*before, *_unframed(plain, before, behind), *behind]
        if len(labels) > max_length:
            raise TaskError(
                f"a completion has {len(labels)} tokens and max_length={max_length}; raise "
                f"max_length, or shorten {example.completion[:40]!r}…"
            )
        encoded.append({"input_ids": prompt.ids, "labels": labels, "cut": prompt.cut})
    return encoded, sum(item["cut"] > 0 for item in encoded)


def cut_pair(
    item: EncodedPair, before: list[int], behind: list[int], max_length: int
) -> EncodedPair | None:
    """Return a whole example without the start of its prompt; None where `encode_pairs` raises.

    Args:
        item: encoded without a limit.
        before, behind: the prompt's `frame`.
        max_length: of either side.
    """
    room, ids = max_length - len(before) - len(behind), item["input_ids"]
    if len(item["labels"]) > max_length or room < 1:
        return None
    plain = ids[len(before) : len(ids) - len(behind)]
    cut = max(0, len(plain) - room)
    return {**item, "input_ids": [*before, *plain[-room:], *behind], "cut": cut}


class Prompt(NamedTuple):
    """What the encoder reads, and how many tokens of it did not fit."""

    ids: list[int]
    cut: int


def prompts_ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Prompt]:
    """Tokenize what the encoder reads, the same way for training and generation.

    Returns:
        One a text: at most `max_length` token ids, the start of the text cut off first.

    Raises:
        TaskError: special tokens leave no room for the text.
    """
    before, behind = frame(tokenizer, "text")
    room = max_length - len(before) - len(behind)
    if room < 1:
        raise TaskError(
            f"{max_length} tokens have no room for a prompt beside "
            f"{len(before) + len(behind)} special ones; raise max_length"
        )
    found = []
    for ids in _plain_ids(tokenizer, "text", [_bare(text, tokenizer) for text in texts]):
        plain = _unframed(ids, before, behind)
        found.append(Prompt([*before, *plain[-room:], *behind], max(0, len(plain) - room)))
    return found


def collate_pairs(
    batch: Sequence[EncodedPair], pad_id: int, shift: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Pad both sides on the right, each to its longest.

    Args:
        batch: encoded examples.
        pad_id: the encoder's padding.
        shift: makes the decoder's input of the labels; see `decoder_inputs`.

    Returns:
        input_ids and attention_mask (1 on tokens), int64 of shape (batch, longest prompt);
        labels (-100 on padding) and decoder_input_ids, int64 of shape (batch, longest completion).
    """
    labels = padded((item["labels"] for item in batch), IGNORED)
    return {
        "input_ids": padded((item["input_ids"] for item in batch), pad_id),
        "attention_mask": padded(([1] * len(item["input_ids"]) for item in batch), 0),
        "labels": labels,
        "decoder_input_ids": shift(labels),
    }


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """Return what the decoder reads while it learns `labels`, as the model itself makes it.

    Args:
        model: an encoder-decoder model.
        labels: int64, (batch, length), -100 on padding.

    Raises:
        ValueError: the model's config does not name the token to start with, or to pad with.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own(labels=labels)
    # M2M100, Blenderbot: what they do with labels themselves, under no name of their own.
    start, pad = model.config.decoder_start_token_id, model.config.pad_token_id
    if start is None or pad is None:
        raise ValueError("decoder_start_token_id or pad_token_id is not set")
    first = labels.new_full((labels.shape[0], 1), start)
    shifted = torch.cat([first, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, pad)


def frame(
    tokenizer: PreTrainedTokenizerBase, side: Literal["text", "text_target"]
) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts in front of a text, and behind it."""
    whole = list(tokenizer(**{side: "a"})["input_ids"])
    (plain,) = _plain_ids(tokenizer, side, ["a"])
    more = len(whole) - len(plain)
    at = next((i for i in range(more + 1) if whole[i : i + len(plain)] == plain), more)
    return whole[:at], whole[at + len(plain) :]


def _bare(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text without the ends that it brings: each side is framed."""
    return without_end(without_begin(text, tokenizer.bos_token), tokenizer.eos_token)


def _unframed(ids: list[int], before: list[int], behind: list[int]) -> list[int]:
    """Return a text's tokens without the special ones that it begins or ends with by itself."""
    while ids and ids[0] in before:
        ids = ids[1:]
    while ids and ids[-1] in behind:
        ids = ids[:-1]
    return ids


def _plain_ids(
    tokenizer: PreTrainedTokenizerBase, side: Literal["text", "text_target"], texts: Sequence[str]
) -> list[list[int]]:
    # Marian and its like have other words on the side that is written.
    return texts_ids(texts, tokenizer, side)
