"""`anatomy`: reads a model's weight matrices as a grid, from the model or from its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from lora_lab.anatomy import from_config, model_config, reader
from lora_lab.anatomy.types import Anatomy
from lora_lab.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def anatomy(model: nn.Module | PretrainedConfig) -> Anatomy:
    """Read a model's weight matrices as a grid.

    Every Linear and every transformers Conv1D is a site, but for the output embedding, which stands
    among the `others` where its weight is its own. A matrix whose role is not known stands under
    its own module name; a fused one whose row order is not known stays whole. No weight is looked
    at, so a model on the meta device will do.

    Args:
        model: a model, adapted or not; or a transformers config, from which the model is built on
            the meta device (the class in `config.architectures`, else its language model).

    Raises:
        ModelError: where `model` is neither.
    """
    if isinstance(model, nn.Module):
        return reader.read(model)
    if _is_config(model):
        return from_config.read_config(model)
    raise ModelError(
        f"anatomy() needs a torch model or a transformers config, not {type(model).__name__}; "
        "ll.load_model(name).model is one"
    )


def output_embedding(model: nn.Module) -> nn.Module | None:
    """Return the layer that makes logits, where the model names one; it is no site."""
    return model_config.embedding(model, "get_output_embeddings")


def input_embedding(model: nn.Module) -> nn.Module | None:
    """Return the embedding that reads the tokens, where the model names one."""
    return model_config.embedding(model, "get_input_embeddings")


def _is_config(thing: Any) -> bool:
    return hasattr(thing, "model_type") and hasattr(thing, "to_dict")
