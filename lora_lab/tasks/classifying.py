"""The class that a model gives a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from lora_lab.tasks.class_encoding import (
    class_numbers,
    collate_texts,
    encode_texts,
    text_pad_id,
    without_unknown_types,
)
from lora_lab.tasks.classification import ClassificationTask, LabelledText
from lora_lab.tasks.encoding import need_tokenizer
from lora_lab.tasks.generation import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Verdict(NamedTuple):
    """A class and its probability."""

    label: str
    probability: float


def classify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    task: ClassificationTask,
    text: str,
    max_length: int,
) -> Verdict:
    """Return the likeliest class of one text, with the adapter that is active.

    Raises:
        TaskError: the model has no tokenizer, or the text no token.
    """
    tokenizer = need_tokenizer(tokenizer)
    numbers = class_numbers(model.config, task.labels)
    # Some class has to stand there; it is taken off again.
    encoded, _ = encode_texts([LabelledText(text, task.labels[0])], numbers, tokenizer, max_length)
    batch = collate_texts(
        without_unknown_types(encoded, model.config), text_pad_id(model.config, tokenizer)
    )
    batch.pop("labels")
    with evaluating(model), torch.no_grad():
        logits = model(**{name: t.to(model.device) for name, t in batch.items()}).logits
    chances = logits[0].float().softmax(-1)
    label = next(name for name, number in numbers.items() if number == int(chances.argmax()))
    return Verdict(label, float(chances.max()))
