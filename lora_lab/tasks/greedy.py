"""Greedy means greedy: what a model's generation config asks for otherwise does not count.

transformers fills in from the model's own generation config whatever it is not told: beams,
penalties, suppressed tokens, several answers, stop strings. So the model has ours in the block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.tasks.decoding import GREEDY, Decoding
from lora_lab.tasks.encoding import pad_id
from lora_lab.tasks.seq2seq_encoding import frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def greedy_settings(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    ends: Collection[int] = (),
    decoding: Decoding = GREEDY,
) -> dict[str, Any]:
    """Return what answers are decoded with: fields of transformers' GenerationConfig.

    Of the model's own only the special tokens stay: those that end an answer, and the ones that an
    encoder-decoder model's answer begins with. A language that it is forced to begin with is the
    one that the tokenizer puts before what is learned.

    Args:
        model: one that writes text.
        tokenizer: the model's.
        max_new_tokens: where an answer that does not end is broken off.
        ends: tokens that end an answer besides.
        decoding: what a task asks for in place of it.
    """
    own = getattr(unwrapped(model), "generation_config", None)
    end = getattr(own, "eos_token_id", None)
    stops = {*(end if isinstance(end, (list, tuple)) else [end]), tokenizer.eos_token_id, *ends}
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "pad_token_id": pad_id(tokenizer),
        "eos_token_id": sorted(stop for stop in stops if stop is not None) or None,
    }
    if model.config.is_encoder_decoder:
        begins = frame(tokenizer, "text_target")[0]
        forced = getattr(own, "forced_bos_token_id", None) is not None and begins
        settings |= {
            "decoder_start_token_id": _start(own, model.config),
            "bos_token_id": getattr(own, "bos_token_id", None),
            "forced_bos_token_id": begins[0] if forced else None,
        }
    settings |= decoding.settings()
    return {name: value for name, value in settings.items() if value is not None}


def _start(own: Any, config: Any) -> int | None:
    start: int | None = getattr(own, "decoder_start_token_id", None)
    return config.decoder_start_token_id if start is None else start


@contextlib.contextmanager
def decoding_by(model: Any, settings: dict[str, Any]) -> Iterator[Any]:
    """Give a model a generation config of these settings alone in the block, and yield it."""
    from transformers import GenerationConfig

    own = unwrapped(model)
    before, config = own.generation_config, GenerationConfig(**settings, use_cache=True)
    own.generation_config = config
    try:
        yield config
    finally:
        own.generation_config = before
