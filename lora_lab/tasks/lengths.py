"""The longest example of a task, as forecasts want it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lora_lab.tasks.base import Task
from lora_lab.tasks.class_encoding import class_numbers, encode_texts
from lora_lab.tasks.classification import ClassificationTask
from lora_lab.tasks.encoding import longest
from lora_lab.tasks.seq2seq_encoding import encode_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Lengths(NamedTuple):
    """Tokens of the longest examples: what `budget` calls sequence_length and target_length."""

    read: int  # of a model with one sequence, all of it
    written: int | None = None  # by the decoder of an encoder-decoder model


def longest_example(
    task: Task | ClassificationTask,
    model_config: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
) -> Lengths:
    """Return what a batch is padded to at most; an encoder-decoder model's two sides apart.

    Args:
        task: whose training examples are encoded.
        model_config: the model's config: it tells an encoder-decoder model.
        tokenizer: the model's.
        max_length: tokens an example; of an encoder-decoder model, of either side.

    Raises:
        TaskError: an example cannot be encoded.
    """
    if isinstance(task, ClassificationTask):
        numbers = class_numbers(model_config, task.labels)
        texts, _ = encode_texts(task.train, numbers, tokenizer, max_length)
        return Lengths(max(len(item["input_ids"]) for item in texts))
    if not getattr(model_config, "is_encoder_decoder", False):
        return Lengths(longest(task, tokenizer, max_length))
    pairs, _ = encode_pairs(task.train, task, tokenizer, max_length)
    return Lengths(
        read=max(len(item["input_ids"]) for item in pairs),
        written=max(len(item["labels"]) for item in pairs),
    )
