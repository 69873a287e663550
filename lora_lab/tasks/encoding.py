"""From examples to tensors for causal models: loss on the completion and its end only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
from torch import Tensor

from lora_lab.errors import TaskError, as_cause
from lora_lab.tasks.chat_template import Chat, chat_of, chat_tokens, prompt_text
from lora_lab.tasks.framing import CHAT
from lora_lab.tasks.prompts import Example, GenerationTask
from lora_lab.tasks.sequence_ends import end_once, without_begin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that cross-entropy leaves out


class Encoded(TypedDict):
    """One example as tokens.

    Attributes:
        input_ids: prompt, completion, end of sequence.
        labels: as long; -100 on the prompt.
        cut: how many of the prompt's tokens did not fit.
    """

    input_ids: list[int]
    labels: list[int]
    cut: int


def encode(
    example: Example,
    task: GenerationTask,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
) -> Encoded:
    """Tokenize one example.

    Prompt and completion are tokenized apart, so that training meets the very tokens that
    generation starts from. The end-of-sequence token is learned, once, also where the completion
    ends with its text; the begin-of-sequence token stands once too, and first. What does not fit
    is cut from the start of the prompt; a leading begin-of-sequence token stays.

    Args:
        example: what to encode.
        task: its `prompt_text` frames the prompt.
        tokenizer: the model's.
        max_length: tokens at most.

    Raises:
        TaskError: the completion alone is longer, or the tokenizer has no end-of-sequence token;
            of a task framed as chats, as `encode_chat`.
    """
    return encode_all([example], task, tokenizer, max_length)[0][0]


def encode_chat(chat: Chat, tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> Encoded:
    """Tokenize a conversation in the model's chat template; only the assistant's turns are learned.

    What does not fit is cut from its end, as TRL does.

    Raises:
        TaskError: as `chat_tokens`; or none of the assistant's turns begins within `max_length`.
    """
    ids, learned = chat_tokens(chat, need_tokenizer(tokenizer))
    labels = [token if own else IGNORED for token, own in zip(ids, learned, strict=True)]
    item = cut_end({"input_ids": ids, "labels": labels, "cut": 0}, max_length)
    if item is None:
        raise TaskError(
            f"{chat.where}: the first turn to learn begins at token {learned.index(True) + 1} of "
            f"{len(ids)}, and max_length={max_length}; raise max_length, or shorten the chat"
        )
    return item


def cut_end(item: Encoded, max_length: int) -> Encoded | None:
    """Return a whole example without what is behind `max_length`; None: nothing would be learned.

    Nothing predicts the first token.
    """
    ids, labels = item["input_ids"], item["labels"]
    if all(label == IGNORED for label in labels[1:max_length]):
        return None
    cut = max(0, len(ids) - max_length)
    return {"input_ids": ids[:max_length], "labels": labels[:max_length], "cut": cut}


def cut_start(item: Encoded, bos: int | None, max_length: int) -> Encoded | None:
    """Return a whole example without the start of its prompt; None: nothing of it would be left.

    A leading begin-of-sequence token stays.
    """
    asked = item["labels"].count(IGNORED)
    completion = item["input_ids"][asked:]
    room = max_length - len(completion)
    prompt, cut = _begun(item["input_ids"][:asked], bos, False, room)
    if not prompt:
        return None
    labels = [IGNORED] * len(prompt) + completion
    return {"input_ids": prompt + completion, "labels": labels, "cut": cut}


def encode_all(
    examples: Iterable[Example],
    task: GenerationTask,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
) -> tuple[list[Encoded], int]:
    """Encode many examples.

    Returns:
        The encoded examples, and how many of them had their prompt cut.
    """
    tokenizer, examples = need_tokenizer(tokenizer), list(examples)
    if task.template == CHAT:
        chats = [chat_of(example.prompt, example.completion) for example in examples]
        encoded = [encode_chat(chat, tokenizer, max_length) for chat in chats]
    else:
        encoded = _encode_plain(examples, task, tokenizer, max_length)
    return encoded, sum(item["cut"] > 0 for item in encoded)


def _encode_plain(
    examples: Sequence[Example],
    task: GenerationTask,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> list[Encoded]:
    end, bos, adds_bos = need_end(tokenizer), tokenizer.bos_token_id, _adds_bos(tokenizer)
    prompts = texts_ids([framed_prompt(task, e.prompt, tokenizer) for e in examples], tokenizer)
    texts = [completion_text(example.completion, tokenizer) for example in examples]
    completions = texts_ids(texts, tokenizer)
    encoded: list[Encoded] = []
    for example, asked, text, ids in zip(examples, prompts, texts, completions, strict=True):
        completion = _ended(text, ids, tokenizer, end)
        prompt, cut = _begun(asked, bos, adds_bos, max_length - len(completion))
        if not prompt:
            raise TaskError(
                f"a completion has {len(completion)} tokens and leaves no room for its prompt in "
                f"max_length={max_length}; raise max_length, or shorten "
                f"{example.completion[:40]!r}…"
            )
        labels = [IGNORED] * len(prompt) + completion
        encoded.append({"input_ids": prompt + completion, "labels": labels, "cut": cut})
    return encoded


def collate(batch: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Pad on the right to the longest.

    Returns:
        input_ids, attention_mask (1 on tokens) and labels (-100 on padding), each int64 of shape
        (batch, longest).
    """
    return {
        "input_ids": padded((item["input_ids"] for item in batch), pad_id),
        # Not read off input_ids: the pad token may be the end-of-sequence token that is learned.
        "attention_mask": padded(([1] * len(item["input_ids"]) for item in batch), 0),
        "labels": padded((item["labels"] for item in batch), IGNORED),
    }


def padded(rows: Iterable[list[int]], fill: int) -> Tensor:
    """Return rows as one int64 tensor, (rows, longest), filled up on the right."""
    rows = list(rows)
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def task_prompt(
    task: GenerationTask, prompt: str, tokenizer: PreTrainedTokenizerBase
) -> str | list[int]:
    """Return what `generate` takes to answer a task's prompt."""
    if task.template == CHAT:
        return chat_prompt_ids(chat_of(prompt), 1, tokenizer)
    return framed_prompt(task, prompt, tokenizer)


def framed_prompt(task: GenerationTask, prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a prompt in its frame; a begin-of-sequence token that it brings stands before that."""
    bos = tokenizer.bos_token
    own = without_begin(prompt, bos)
    text = task.prompt_text(own)
    return text if bos is None or own == prompt or text.startswith(bos) else bos + text


def completion_text(completion: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a completion as it is tokenized: in the midst of a sequence, with one end at most."""
    return end_once(without_begin(completion, tokenizer.bos_token), str(tokenizer.eos_token))


def chat_prompt_ids(chat: Chat, count: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenize what an answer to a chat's first messages is generated from."""
    return _plain_ids(prompt_text(chat, count, tokenizer), tokenizer)


def _ended(text: str, ids: list[int], tokenizer: PreTrainedTokenizerBase, end: int) -> list[int]:
    stripped = text.rstrip()
    # Formatting functions write "…</s>", and chat templates "…<|im_end|>\n".
    last = ids if stripped == text else _plain_ids(stripped, tokenizer)
    return ids if last[-1:] == [end] else [*ids, end]


def prompt_ids(
    text: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[int], int]:
    """Tokenize what stands before the completion, the same way for training and generation.

    Returns:
        At most `max_length` token ids, the start cut off first (none where only the leading
        begin-of-sequence token would be left), and how many were cut.
    """
    ids, bos = _plain_ids(text, tokenizer), tokenizer.bos_token_id
    return _begun(ids, bos, _adds_bos(tokenizer), max_length)


def _begun(
    ids: list[int], bos: int | None, adds_bos: bool, max_length: int
) -> tuple[list[int], int]:
    start = [bos] if bos is not None and (ids[:1] == [bos] or adds_bos) else []
    while start and ids[:1] == start:  # the text begins with it, as a chat template's does
        ids = ids[1:]
    room = max_length - len(start)
    if room < 1:
        return [], len(ids)
    return start + ids[-room:], max(0, len(ids) - room)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token to pad with: the tokenizer's own, else its end of sequence, else 0."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return candidate
    return 0


def no_tokenizer(name: str) -> str:
    """Return the line on a model of text that came without its tokenizer."""
    return (
        f"{name} has no tokenizer; save one in its folder (tokenizer.save_pretrained), or load one "
        "and use LoadedModel.given(model, tokenizer)"
    )


def need_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """Return the tokenizer.

    Raises:
        TaskError: there is none.
    """
    if tokenizer is None:
        raise TaskError(no_tokenizer("the model"))
    return tokenizer


def need_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a completion.

    Raises:
        TaskError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise TaskError(
            "the tokenizer has no end-of-sequence token; set tokenizer.eos_token, or take a model "
            "that writes text"
        )
    return tokenizer.eos_token_id


def texts_ids(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    side: Literal["text", "text_target"] = "text",
) -> list[list[int]]:
    """Tokenize texts together, which is many times as fast, without special tokens.

    Args:
        texts: any number.
        tokenizer: the model's.
        side: "text_target" for what an encoder-decoder model writes.

    Raises:
        TaskError: a text that no tokenizer reads.
    """
    if not texts:
        return []
    found = tokenized(
        tokenizer, texts, **{side: list(texts)}, add_special_tokens=False, verbose=False
    )
    return list(found["input_ids"])


def tokenized(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], **options: Any) -> Any:
    """Call a tokenizer.

    Args:
        tokenizer: what is called.
        texts: all that it gets, to name the one that it cannot read.
        **options: what it is called with.

    Raises:
        TaskError: half of a character, which no tokenizer reads.
    """
    try:
        return tokenizer(return_attention_mask=False, **options)
    except (TypeError, UnicodeError) as error:
        for text in texts:
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise TaskError(
                    f"{text[:40]!r} has half of a character (a lone surrogate), which no tokenizer "
                    "reads; fix the text, or leave the row out"
                ) from as_cause(error)
        raise


def _plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return texts_ids([text], tokenizer)[0]


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    # Llama's puts one in front, GPT-2's does not; asking is surer than its attributes.
    ids = tokenizer("a")["input_ids"]
    return list(ids[:1]) == [tokenizer.bos_token_id]
