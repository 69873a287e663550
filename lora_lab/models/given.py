"""A model as people give it: by name, loaded, or one of their own with its tokenizer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from lora_lab._util.format import a_kind
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.errors import ConfigError
from lora_lab.models.load import LoadedModel, load_model


def as_loaded(
    model: Any,
    tokenizer: Any,
    head: Mapping[str, Any],
    call: str,
    load: Callable[..., LoadedModel] = load_model,
) -> LoadedModel:
    """Return a model with its tokenizer.

    Args:
        model: what `load_model` takes or returns, or a transformers model.
        tokenizer: of a model of the user's own; of a loaded one, in place of its own.
        head: that its task needs, `Task.head`; for a model that is loaded here.
        call: how the caller is given a tokenizer, for messages.
        load: what loads a model by its name, with a head.

    Raises:
        ConfigError: a model of the user's own without its tokenizer, or what is no model.
        ModelError: as `load_model`.
    """
    if isinstance(tokenizer, (str, os.PathLike)):
        raise ConfigError(
            f"tokenizer is {str(tokenizer)!r}; load it, transformers.AutoTokenizer.from_pretrained("
            f"{str(tokenizer)!r})"
        )
    if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
        swapped = callable(getattr(model, "decode", None))
        fix = "they stand the other way round" if swapped else "give the model's own"
        raise ConfigError(f"{a_kind(tokenizer)} is no tokenizer; {fix}: {call}")
    if isinstance(model, (str, os.PathLike)):
        model = load(os.fspath(model), **head)
    if isinstance(model, LoadedModel):
        return model if tokenizer is None else dataclasses.replace(model, tokenizer=tokenizer)
    if not hasattr(unwrapped(model), "config"):
        raise ConfigError(
            f"{a_kind(model)} is no model; give a transformers model with its tokenizer, "
            "a model's name, or what load_model returns"
        )
    if tokenizer is None:
        raise ConfigError(f"a model of your own needs its tokenizer: {call}")
    return LoadedModel.given(model, tokenizer)
