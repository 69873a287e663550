"""From texts, or pairs of them, to tensors: padded token ids, and what is learned of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch
from torch import Tensor

from lora_lab.errors import TaskError
from lora_lab.tasks.base import shown
from lora_lab.tasks.encoding import need_tokenizer, pad_id, padded, tokenized
from lora_lab.tasks.seq2seq_encoding import frame
from lora_lab.tasks.sequence_ends import without_begin, without_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodedText(TypedDict):
    """One text as tokens, with the tokenizer's special ones.

    Attributes:
        input_ids: the text; of a pair both.
        token_type_ids: as long; 1 on the second text and its end. Not of every tokenizer.
        labels: the number of the class, or the number that is learned.
    """

    input_ids: list[int]
    token_type_ids: NotRequired[list[int]]
    labels: int | float


def encode_texts(
    examples: Sequence[Any],
    targets: Sequence[int] | Sequence[float],
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
) -> tuple[list[EncodedText], int]:
    """Tokenize texts the way that the model's tokenizer puts them into its frame.

    What does not fit is cut from the end; of a pair, from the end of the longer one.

    Args:
        examples: each with `text` and `pair`; all with a pair, or none.
        targets: what is learned of each.
        tokenizer: the model's.
        max_length: tokens at most, special ones included.

    Returns:
        The encoded texts, and how many of them were cut.

    Raises:
        TaskError: special tokens leave no room for text, or a text has no token.
    """
    tokenizer = need_tokenizer(tokenizer)
    if not examples:
        return [], 0
    pairs = [example.pair for example in examples if example.pair is not None]
    frame = tokenizer.num_special_tokens_to_add(pair=bool(pairs))
    if max_length < frame + (2 if pairs else 1):
        raise TaskError(
            f"max_length={max_length} has no room for text beside {frame} special tokens; raise it"
        )
    whole = _tokens(examples, tokenizer, None)
    long = [i for i, item in enumerate(whole) if len(item["input_ids"]) > max_length]
    cut = _tokens([examples[i] for i in long], tokenizer, max_length) if long else []
    for i, item in zip(long, cut, strict=True):
        whole[i] = item
    for example, target, item in zip(examples, targets, whole, strict=True):
        if not item["input_ids"]:
            raise TaskError(f"{shown(example)[:40]!r} has no token; leave it out")
        item["labels"] = target
    return whole, len(long)


def collate_texts(batch: Sequence[EncodedText], pad: int) -> dict[str, Tensor]:
    """Pad on the right to the longest.

    Returns:
        input_ids, attention_mask (1 on tokens) and, where the texts have them, token_type_ids,
        each int64 of shape (batch, longest); labels, int64 or float32, of shape (batch,).
    """
    labels = [item["labels"] for item in batch]
    kind = torch.int64 if isinstance(labels[0], int) else torch.float32  # whatever the default is
    tensors = {
        "input_ids": padded((item["input_ids"] for item in batch), pad),
        "attention_mask": padded(([1] * len(item["input_ids"]) for item in batch), 0),
        "labels": torch.tensor(labels, dtype=kind),
    }
    if "token_type_ids" in batch[0]:
        tensors["token_type_ids"] = padded((item["token_type_ids"] for item in batch), 0)
    return tensors


def text_pad_id(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that the model takes for padding; the tokenizer's where it names none."""
    own = getattr(config, "pad_token_id", None)
    return pad_id(tokenizer) if own is None else own


def without_unknown_types(encoded: list[EncodedText], config: Any) -> list[EncodedText]:
    """Return encoded texts as the model takes them.

    Only some models tell two texts apart; GPT-2 would embed these numbers as words.
    """
    if (getattr(config, "type_vocab_size", None) or 0) < 2:
        for item in encoded:
            item.pop("token_type_ids", None)
    return encoded


def _tokens(
    examples: Sequence[Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[EncodedText]:
    begins, ends = (tokenizer.convert_ids_to_tokens(ids) for ids in frame(tokenizer, "text"))

    def bare(text: str) -> str:  # "[CLS] … [SEP]", as people have written it themselves
        return without_end(without_begin(text, *begins), *ends)

    pairs = [bare(example.pair) for example in examples if example.pair is not None]
    texts = [bare(example.text) for example in examples]
    found = tokenized(
        tokenizer,
        [*texts, *pairs],
        text=texts,
        text_pair=pairs or None,
        truncation="longest_first" if max_length is not None else False,
        max_length=max_length,
        verbose=False,  # a long text is cut below; that is noted, once
    )
    encoded: list[EncodedText] = [{"input_ids": row, "labels": 0} for row in found["input_ids"]]
    if "token_type_ids" in found:
        for item, types in zip(encoded, found["token_type_ids"], strict=True):
            item["token_type_ids"] = types
    return encoded
