"""A vocabulary that changes its size while adapters stand on the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from lora_lab.anatomy.api import output_embedding
from lora_lab.anatomy.model_config import embedding
from lora_lab.anatomy.wrappers import modules_within
from lora_lab.errors import AdapterError

if TYPE_CHECKING:
    from lora_lab.methods.attached import AttachedAdapters

_NAME = "resize_token_embeddings"


def watch_resizing(model: nn.Module, known: AttachedAdapters) -> None:
    """Have the model's `resize_token_embeddings` ask its adapters first, where it has one."""
    if hasattr(model, _NAME):
        vars(model)[_NAME] = functools.partial(_resize, model, known, getattr(model, _NAME))


def unwatch_resizing(model: nn.Module) -> None:
    """Give the model its own again."""
    found = vars(model).get(_NAME)
    if isinstance(found, functools.partial) and found.func is _resize:
        del vars(model)[_NAME]
        own = found.args[2]
        if getattr(own, "__func__", None) is not getattr(type(model), _NAME, None):
            vars(model)[_NAME] = own  # somebody else's was there before


def _resize(
    model: nn.Module,
    known: AttachedAdapters,
    own: Callable[..., Any],
    new_num_tokens: int | None = None,
    pad_to_multiple_of: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Resize, unless an adapter learns one of the matrices that have a row for every token.

    Raises:
        AdapterError: names adapter and matrix, or the run that trains on them; nothing has changed.
            PEFT has a TypeError there.
    """
    ends = dict(_ends(model))
    rows = {module.weight.shape[0] for module in ends.values()}
    stays = pad_to_multiple_of is None and (new_num_tokens is None or rows == {new_num_tokens})
    if not stays:
        known.refuse_training()
    if not stays and not (known.merged and known.originals is None):
        for name, adapter in known.adapters.items():
            claims = set(adapter.conflicts())
            for path in ends:
                if claims & {path, f"{path}.weight", f"{path}.bias"}:
                    raise AdapterError(
                        f"{path} has a row for every token, and adapter {name!r} learns it at its "
                        "present size; resize_token_embeddings before attach, or call "
                        "merge_and_unload(model) first"
                    )
    required = {id(p): flag for p, flag in known.required_grad}
    before = {path: required.get(id(module.weight)) for path, module in ends.items()}
    found = own(new_num_tokens, pad_to_multiple_of, *args, **kwargs)
    for path, module in _ends(model):
        if id(module.weight) not in required and before.get(path) is not None:
            known.required_grad.append((module.weight, bool(before[path])))
    return found


def _ends(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (path, module) of the word embeddings and the output layer, under all their names."""
    ends = [embedding(model, "get_input_embeddings"), output_embedding(model)]
    weights = [weight for end in ends if (weight := getattr(end, "weight", None)) is not None]
    for path, module in modules_within(model, every_name=True):
        if any(getattr(module, "weight", None) is weight for weight in weights):
            yield path, module
