"""A pre-trained model with a new head that puts texts into classes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_lab._util.format import a_kind
from lora_lab._util.own_random import seeded
from lora_lab._util.transformers_private import draw_again
from lora_lab.anatomy.heads import class_names as own_names
from lora_lab.anatomy.heads import class_numbers, head_modules
from lora_lab.errors import ModelError
from lora_lab.models.fresh_head import remember_fresh
from lora_lab.tasks.base import some
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
        return _numbered(count)
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
            f"{name} is {a_kind(config.model_type)}, for which transformers has no "
            "classification head; load it without labels, or take another model, such as minilm-l6"
        )
    return AutoModelForSequenceClassification


class Head(NamedTuple):
    """The head that a model is to be loaded with.

    Attributes:
        names: of its classes, by their numbers.
        fresh: it starts random, though the file may have one of that size.
        said: what to tell where the file has a head; "" where there is nothing to tell.
    """

    names: tuple[str, ...]
    fresh: bool = False
    said: str = ""


def planned_head(config: PretrainedConfig, names: Sequence[str], given: bool) -> Head:
    """Return the head for classes: one that was trained for them keeps its own order.

    Args:
        config: as the model's files have it.
        names: the classes asked for.
        given: these names were asked for; False: only so many.
    """
    own, asked = own_names(config), tuple(names)
    if config.num_labels != len(asked):
        return Head(asked)
    if own and (not given or set(own) == set(asked)):
        return Head(own)
    numbers = class_numbers(own, asked)
    if numbers is None and own:
        return Head(
            asked,
            fresh=True,
            said=f"the head in the file is for other classes ({some(own)}); one for {some(asked)} "
            "that starts random takes its place",
        )
    if numbers is None:
        order = [f"{number} is {name}" for number, name in enumerate(asked)]
        return Head(
            asked,
            said=f"the head in the file names no classes; by the order of labels {some(order)}",
        )
    if not own:
        return Head(tuple(sorted(asked, key=numbers.__getitem__)))
    taken = [f"{label} for {own[number]}" for label, number in numbers.items()]
    return Head(own, said=f"the head in the file is kept; {some(taken)} is taken")


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{number}" for number in range(count))  # as transformers calls them


def name_classes(config: Any, names: Sequence[str]) -> None:
    """Write the classes into a config that is not in use yet."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = "single_label_classification" if len(names) > 1 else "regression"


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
            stacklevel=5,
        )
    return {
        **report,
        "missing_keys": {key for key in report["missing_keys"] if not key.startswith(heads)},
        "mismatched_keys": set(report["mismatched_keys"]) - set(mismatched),
    }


def settle_head(
    name: str, model: PreTrainedModel, report: Mapping[str, Any], head: Head, seed: int
) -> None:
    """Draw a fresh head, and tell what `planned_head` has to say, if the file has a head."""
    outputs = {
        f"{path}.{below}".rstrip("."): module
        for path in head_modules(model)
        for below, module in model.get_submodule(path).named_modules()
        if len(head.names) in [tensor.shape[0] for tensor in module.parameters(recurse=False)]
    }
    absent = {*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])}
    remember_fresh(model, absent)
    keys = {f"{path}.{key}" for path, own in outputs.items() for key, _ in own.named_parameters()}
    if not head.said or keys <= absent:
        return
    if head.fresh:
        with seeded(seed):
            for module in outputs.values():
                draw_again(model, module)
        remember_fresh(model, absent | keys)
    warnings.warn(f"{name}: {head.said}", stacklevel=5)


def finish(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write into a classifier's config what it is, and by which token it knows padding."""
    model.config.architectures = [type(model).__name__]
    if model.config.pad_token_id is None and tokenizer is not None:
        # A decoder reads a text at its last token that is no padding.
        model.config.pad_token_id = pad_id(tokenizer)


def with_head_for(name: str, config: PretrainedConfig, head: Mapping[str, Any]) -> PretrainedConfig:
    """Return a config of the class that has a head for a task; no weight is made.

    Args:
        name: the model's, for what is said.
        config: changed in place.
        head: the task's: {"labels": the classes}, or {"num_labels": 1} for a number.

    Raises:
        ModelError: transformers has no such class for this kind of model.
    """
    from transformers.models.auto import modeling_auto

    classifier_class(name, config)  # says where there is none
    kinds = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    config.architectures = [kinds[config.model_type]]
    config.num_labels = head.get("num_labels") or len(head["labels"])
    return config
