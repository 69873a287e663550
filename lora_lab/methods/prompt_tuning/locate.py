"""Where a model reads its prompt: the module that word embeddings enter, and its blocks."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.model_config import embedding as find_embedding
from lora_lab.anatomy.model_config import positions_behind
from lora_lab.anatomy.types import Anatomy
from lora_lab.anatomy.wrappers import module_at, modules_within, unwrapped
from lora_lab.errors import ConfigError


@dataclass(frozen=True)
class Body:
    """The part of a model that reads a prompt.

    Attributes:
        model: the whole.
        module: takes `inputs_embeds` and `attention_mask`, and gives the last hidden state.
        blocks: {path: block}, from the bottom up.
        exits: modules whose outputs are to have as many places as `input_ids` has.
        decoder: of an encoder-decoder model, what attends to `module`'s output; else None.
        causal: a place sees those before it only.
        writes: the model goes on with text, so that its labels tell where a completion begins.
        most: positions of the model; None where it has no limit.
        bounded: more of them than `most` cannot be computed; rotary models only get worse.
        counted_from: the pad token of models that count positions from it on, RoBERTa's kind.
    """

    model: nn.Module
    module: nn.Module
    blocks: dict[str, nn.Module]
    exits: tuple[nn.Module, ...]
    decoder: nn.Module | None
    causal: bool
    writes: bool
    most: int | None
    bounded: bool
    counted_from: int | None

    @property
    def embedding(self) -> nn.Module:
        """The word embeddings that the body has now."""
        return cast(nn.Module, _embedding(self.model, self.module))


def find_body(model: Any, method: str) -> Body:
    """Return where a model reads its prompt.

    Raises:
        ConfigError: it has no word embeddings, or is no transformers model.
    """
    module, words = _reader(model)
    if module is None or words is None:
        raise ConfigError(f"{method} needs word embeddings and this model has none; use a LoRA")
    path = next(path for path, part in modules_within(model) if part is module)
    read = anatomy(model)
    blocks = _blocks(model, read, path)
    if not blocks:
        raise ConfigError(f"{method} needs a model of blocks and this one has none; use a LoRA")
    rotary = any("rotary" in type(part).__name__.lower() for part in module.modules())
    decoder = model.get_decoder() if model.config.is_encoder_decoder else None
    causal = decoder is None and _is_causal(model.config)
    return Body(
        model=model,
        module=module,
        blocks=blocks,
        exits=() if decoder is not None else _exits(module, path, next(iter(blocks))),
        decoder=decoder,
        causal=causal,
        writes=causal and model.can_generate(),
        most=read.shape.max_positions,
        bounded=not rotary,
        counted_from=positions_behind(module),
    )


def _reader(model: Any) -> tuple[nn.Module | None, nn.Module | None]:
    """Return the module that takes word embeddings, and those embeddings."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "is_encoder_decoder"):
        return None, None
    # The decoder first: of a model that reads images too, it is what word embeddings enter.
    getters = ["get_encoder"] if config.is_encoder_decoder else ["get_decoder"]
    for found in [*(getattr(model, name)() for name in getters), model.base_model]:
        part = unwrapped(found)
        if {"inputs_embeds", "attention_mask"} <= set(inspect.signature(part.forward).parameters):
            words = _embedding(model, part)
            return part, words if isinstance(words, nn.Embedding) else None
    return None, None


def _embedding(model: nn.Module, body: nn.Module) -> nn.Module | None:
    getter = "get_input_embeddings"
    return find_embedding(body, getter) or find_embedding(model, getter)


def _blocks(model: nn.Module, read: Anatomy, path: str) -> dict[str, nn.Module]:
    """Return the blocks below a path."""
    below = f"{path}." if path else ""
    paths = (block.path for block in read.blocks if block.path.startswith(below))
    return {path: module_at(model, path) for path in paths}


def _exits(module: nn.Module, path: str, block: str) -> tuple[nn.Module, ...]:
    """Return the body and, inside it, the stack of blocks, whose output a pooler may read."""
    inner = block.removeprefix(f"{path}." if path else "").split(".")[0]
    stack = module_at(module, inner)
    return (module,) if isinstance(stack, nn.ModuleList) else (stack, module)


def _is_causal(config: Any) -> bool:
    """Tell whether a place sees those before it only; transformers' own tables know."""
    from transformers.models.auto import modeling_auto as auto

    config = config.get_text_config()
    if getattr(config, "use_bidirectional_attention", False):
        return False
    kind = type(config)
    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING:  # an encoder, unless it is told to be a decoder
        return bool(getattr(config, "is_decoder", False))
    return kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING
