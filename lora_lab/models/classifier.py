"""A pre-trained model with a new head that puts texts into classes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lora_lab.anatomy.heads import head_modules
from lora_lab.errors import ModelError
from lora_lab.tasks.encoding import pad_id

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def class_names(labels: Sequence[str] | None, num_labels: int | None) -> tuple[str, ...]:
    """Return the names of the classes asked for; () where none are, one for a head of one number.

    Raises:
        ModelError: fewer than two, two of one name, or not as many as `num_labels`.
    """
    if labels is None and num_labels is None:
        return ()
    if isinstance(labels, str):
        raise ModelError(f"labels is {labels!r}; it must be a list of names")
    names = tuple(labels) if labels is not None else ()
    if num_labels is not None and names and len(names) != num_labels:
        raise ModelError(f"num_labels is {num_labels} and labels names {len(names)}; give one")
    count = len(names) if num_labels is None else num_labels
    least = 2 if names else 1
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise ModelError(
            f"a classifier of {count} classes has nothing to tell apart; give two (a head that "
            "learns a number has num_labels=1)"
        )
    if not names:
        return tuple(f"LABEL_{number}" for number in range(count))  # as transformers calls them
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ModelError(f"labels are {list(names)}; they must be names, each another one")
    return names


def classifier_class(name: str, config: PretrainedConfig) -> Any:
    """Return the class that loads a model with a classification head.

    Raises:
        ModelError: transformers has none for this kind of model.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise ModelError(
            f"{name} is a {config.model_type}, for which transformers has no classification head; "
            "load it without labels, or take another model, such as minilm-l6"
        )
    return AutoModelForSequenceClassification


def name_classes(config: Any, names: Sequence[str]) -> None:
    """Write the classes into a config that is not in use yet."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = "single_label_classification" if len(names) > 1 else "regression"


@contextlib.contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Draw what starts random in the block from `seed`, and leave the caller's sequence alone.

    transformers builds heads with torch's global generator of the CPU and takes no other.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the GPUs' too
    try:
        yield
    finally:
        torch.set_rng_state(before)


def without_head(name: str, model: PreTrainedModel, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a loading report without the head's own weights, which start random by intention.

    A file that has a head for other classes gets a warning: that head is not used.
    """
    heads = tuple(f"{head}." for head in head_modules(model))
    mismatched = [entry for entry in report["mismatched_keys"] if entry[0].startswith(heads)]
    if mismatched:
        key, in_file, in_model = mismatched[0]
        warnings.warn(
            f"{name}: the head in the file is for {in_file[0]} classes; one of {in_model[0]} that "
            f"starts random takes its place ({key})",
            stacklevel=3,
        )
    return {
        **report,
        "missing_keys": {key for key in report["missing_keys"] if not key.startswith(heads)},
        "mismatched_keys": set(report["mismatched_keys"]) - set(mismatched),
    }


def finish(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write into a classifier's config what it is, and by which token it knows padding."""
    model.config.architectures = [type(model).__name__]
    if model.config.pad_token_id is None and tokenizer is not None:
        # A decoder reads a text at its last token that is no padding.
        model.config.pad_token_id = pad_id(tokenizer)
