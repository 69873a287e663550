"""Whether a model embeds the tokens that its tokenizer makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.anatomy.model_config import embedding
from lora_lab.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FEATURES = "image_token", "video_token", "audio_token"  # places of what no text makes


def embedded_rows(model: Any) -> int | None:
    """Return how many tokens a model embeds; None of one that embeds none."""
    return _size(embedding(model, "get_input_embeddings"), "num_embeddings")


def scored_rows(model: Any) -> int | None:
    """Return how many tokens a model can write; None of one that writes none."""
    return _size(embedding(model, "get_output_embeddings"), "out_features")


def tokens_beyond(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, int]:
    """Return {token: its id} of those that have no row among so many."""
    return {token: id_ for token, id_ in tokenizer.get_vocab().items() if id_ >= rows}


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer some of whose tokens the model does not embed.

    Gemma's token for an image, which stands beyond the rows of its models of text, is left out.

    Raises:
        ModelError: how many there are, and what to do.
    """
    rows = embedded_rows(model)
    if rows is None:
        return
    beyond = tokens_beyond(tokenizer, rows)
    for name in _FEATURES:
        beyond.pop(getattr(tokenizer, name, None) or "", None)
    if beyond:
        raise ModelError(vocabulary_line(tokenizer, rows))


def vocabulary_line(tokenizer: PreTrainedTokenizerBase, rows: int) -> str:
    """Return the line on tokens that have no row among so many."""
    beyond = tokens_beyond(tokenizer, rows)
    highest, count = max(beyond.values()), len(tokenizer)
    last = max(beyond, key=lambda token: beyond[token])
    ids = f" with ids up to {highest} ({last!r})" if highest >= count or len(beyond) == 1 else ""
    foreign = len(beyond) > max(64, rows // 20)
    own = "load the model's own tokenizer, or " if foreign else ""
    return (
        f"the tokenizer has {count} tokens{ids} and the model embeds {rows}; {own}call "
        f"model.resize_token_embeddings({highest + 1}) first"
    )


def _size(module: Any, name: str) -> int | None:
    """Return a module's size; packed weights have another shape, and its attribute the true one."""
    found = getattr(module, name, None)
    if found is None and (weight := getattr(module, "weight", None)) is not None:
        found = weight.shape[0]
    return found
