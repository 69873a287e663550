"""Greedy answers to prompts, in batches, that can be stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_lab._util.devices import on_device_of
from lora_lab._util.quiet import quiet_thread
from lora_lab.anatomy.model_config import max_positions
from lora_lab.errors import TaskError
from lora_lab.methods.prompt_tuning.adapter import learned_tokens
from lora_lab.methods.steady_weights import steady_weights
from lora_lab.tasks.chat_template import turn_end
from lora_lab.tasks.decoding import GREEDY, Decoding
from lora_lab.tasks.encoding import need_tokenizer, pad_id, padded, prompt_ids, task_prompt
from lora_lab.tasks.framing import CHAT
from lora_lab.tasks.greedy import decoding_by, greedy_settings
from lora_lab.tasks.prompts import GenerationTask
from lora_lab.tasks.seq2seq_encoding import prompts_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


BATCH = 16  # prompts a forward pass


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: GenerationTask | Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = BATCH,
    ends: Collection[int] = (),
    should_stop: Callable[[], bool] | None = None,
    decoding: Decoding = GREEDY,
) -> list[str]:
    """Complete prompts, greedily by default.

    The model may be in training: its mode is put back, no gradient is recorded, nothing is
    printed. Prompts of like length go together, the longest first, so that little is padded; equal
    ones are answered once. Answers are those of each prompt alone, to the token, unless two tokens
    are as likely as each other to the last digits of the model's dtype.

    Args:
        model: one that writes text; an encoder-decoder model reads the prompt with its encoder.
        tokenizer: the model's.
        prompts: texts exactly as the model is to see them (`task.prompt_text(…)`), or their tokens
            with all special ones; or a task: the prompts of its validation examples.
        max_new_tokens: where an answer that does not end is broken off. Prompts are cut at their
            start to what fits the model's positions beside it.
        batch_size: prompts a forward pass.
        ends: tokens that end an answer, besides those of tokenizer and generation config.
        should_stop: asked before every batch and after every token.
        decoding: beams and their like.

    Returns:
        The completions, stripped, in the prompts' order; after a stop, those of whole batches.

    Raises:
        TaskError: the model does not write text, or there is no room for an answer.
    """
    tokenizer = need_tokenizer(tokenizer)
    if isinstance(prompts, str):
        raise TaskError("prompts is one string; give a list of them")
    if isinstance(prompts, GenerationTask):
        task = prompts
        prompts = [task_prompt(task, example.prompt, tokenizer) for example in task.validation]
        ends = [*ends, *task_ends(task, tokenizer)]
    if not model.can_generate():
        name = type(model).__name__
        raise TaskError(f"{name} does not write text; take a language model, such as smollm2-135m")
    settings = greedy_settings(model, tokenizer, max_new_tokens, ends, decoding)
    room = prompt_room(model, max_new_tokens)
    rows = list(map(tuple, _tokens(model, tokenizer, prompts, room)))
    answers: dict[tuple[int, ...], str] = {}
    with evaluating(model), steady_weights(), torch.no_grad(), quiet_thread():
        for batch in batches_by_length(rows, batch_size):
            if should_stop is not None and should_stop():
                break
            completed = _complete(model, tokenizer, batch, settings, should_stop)
            if completed is None:
                break
            answers |= zip(batch, completed, strict=True)
    return [answers[row] for row in rows if row in answers]


def batches_by_length(rows: Sequence[tuple[int, ...]], size: int) -> list[list[tuple[int, ...]]]:
    """Return the different ones of rows of tokens in batches, the longest first."""
    unlike = sorted(dict.fromkeys(rows), key=len, reverse=True)
    return [unlike[start : start + size] for start in range(0, len(unlike), size)]


def _complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    settings: dict[str, Any],
    should_stop: Callable[[], bool] | None,
) -> list[str] | None:
    """Complete one batch; None where it was stopped."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stop(StoppingCriteria):
        stopped = False

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
            self.stopped = self.stopped or (should_stop is not None and should_stop())
            return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device)

    pad, batch = pad_id(tokenizer), list(map(list, prompts))
    masks = [[1] * len(row) for row in batch]
    if model.config.is_encoder_decoder:
        ids, mask = padded(batch, pad), padded(masks, 0)
        written_from = 1  # the decoder starts with a token of its own
    else:
        # On the left: every row must end with its prompt's last token, for the first new to follow.
        ids, mask = _padded_on_the_left(batch, pad), _padded_on_the_left(masks, 0)
        written_from = ids.shape[1]
    stop = Stop()
    with decoding_by(model, settings) as config:
        output = model.generate(
            **on_device_of(model, {"input_ids": ids, "attention_mask": mask}),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([stop]),
            **_cache(model),
        )
    if stop.stopped:
        return None
    texts = tokenizer.batch_decode(output[:, written_from:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _cache(model: Any) -> dict[str, Any]:
    """Return {"past_key_values": a cache} for a T5 whose decoder is the deeper of its stacks.

    transformers 5.23 makes it one for as many layers as the encoder has, and runs out of them.
    """
    from transformers import DynamicCache, EncoderDecoderCache

    layers = getattr(model.config, "num_hidden_layers", None)
    if (getattr(model.config, "num_decoder_layers", None) or 0) <= (layers or 0):
        return {}
    return {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}


def _padded_on_the_left(rows: Sequence[list[int]], fill: int) -> Tensor:
    return padded((row[::-1] for row in rows), fill).flip(1)


def _tokens(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    room: int,
) -> list[list[int]]:
    """Return prompts as at most so many tokens, cut at their start."""
    if model.config.is_encoder_decoder and all(isinstance(prompt, str) for prompt in prompts):
        return [prompt.ids for prompt in prompts_ids(list(map(str, prompts)), tokenizer, room)]
    return [_cut(prompt, tokenizer, room) for prompt in prompts]


def _cut(prompt: str | Sequence[int], tokenizer: PreTrainedTokenizerBase, room: int) -> list[int]:
    if isinstance(prompt, str):
        return prompt_ids(prompt, tokenizer, room)[0]
    start = list(prompt[:1]) if prompt[0] == tokenizer.bos_token_id else []
    return [*start, *prompt[max(len(start), len(prompt) - room + len(start)) :]]


def task_ends(task: GenerationTask, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer to a task besides the tokenizer's own."""
    end = turn_end(tokenizer) if task.template == CHAT else None
    return [] if end is None else [end]


def positions(model: PreTrainedModel) -> int:
    """Return how many tokens a model's sequence may have, learned ones included."""
    # Models without a limit (relative positions) get one far above any prompt of ours.
    return max_positions(model) or 1 << 20


def answer_room(model: PreTrainedModel) -> int:
    """Return how many tokens prompt and answer may have together; of two sides, either."""
    if model.config.is_encoder_decoder:
        return positions(model) + 1
    return positions(model) - learned_tokens(model)


def prompt_room(model: PreTrainedModel, max_new_tokens: int) -> int:
    """Return how many tokens a prompt may have."""
    context = positions(model) - learned_tokens(model)
    if model.config.is_encoder_decoder:  # its two sides have positions of their own
        room = context if max_new_tokens <= positions(model) else 0
    else:
        room = context - max_new_tokens
    if room < 1:
        raise TaskError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's "
            f"{context} positions; lower it"
        )
    return room


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode inside the block, and every module back in its own afterwards."""
    # Module by module: a user may have frozen some of them in eval mode.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
