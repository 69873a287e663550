"""Conversations in a tokenizer's chat template: their tokens, and which the assistant wrote."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_lab._util.json_files import parse_text
from lora_lab._util.quiet import first_line
from lora_lab._util.transformers_private import render_chat
from lora_lab.errors import TaskError, as_cause
from lora_lab.tasks.sequence_ends import without_begin, without_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Span = tuple[int, int]  # of letters in the text

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_WANTS_DICTS = re.compile(r"arguments\s*\|\s*tojson")
_THINK, _THOUGHT = "<think>", "</think>"


@dataclass(frozen=True)
class Chat:
    """One conversation.

    Attributes:
        messages: {"role", "content", …}, as OpenAI and transformers have them.
        tools: the JSON schemas of what the assistant may call.
        prompt: how many of the messages are a prompt: no turn of them is learned.
        references: what counts as a right last answer; by default the one that is there.
        template_kwargs: what the template is given besides, such as {"enable_thinking": False}.
        where: the row that it came from, for errors.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    prompt: int = 0
    references: tuple[str, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="a chat", repr=False, compare=False)

    @property
    def last_answer(self) -> int:
        """The number of the assistant's last turn; -1 where there is none."""
        turns = _turns(self)
        return turns[-1] if turns else -1


class ChatTokens(NamedTuple):
    """A conversation's tokens, and which of them are learned."""

    ids: list[int]
    learned: list[bool]


def chat_of(prompt: str, completion: str | None = None) -> Chat:
    """Return a prompt as the user's turn, and a completion as the assistant's."""
    user = {"role": "user", "content": prompt}
    if completion is None:
        return Chat((user,))
    return Chat((user, {"role": "assistant", "content": completion}))


def chat_tokens(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> ChatTokens:
    """Tokenize a conversation; what the assistant wrote is learned, with the end of its turn.

    Which that is the template says by its {% generation %} marks, as for TRL's
    `assistant_only_loss`. Without marks it is what a turn adds to the text that the answer is
    generated from; that text must be the beginning of the conversation's. Not learned are turns
    with "weight": 0 (OpenAI's) and those of the prompt.

    Raises:
        TaskError: no chat template, or one that refuses the conversation, or writes its beginning
            otherwise than without its later turns; or nothing is learned.
    """
    need_chat_template(tokenizer, to_learn=True)
    chat = _bare(chat, tokenizer)
    text, spans = _marked(chat, tokenizer)
    for number in _turns(chat):
        for said in _said(chat.messages[number]):
            if said not in text:
                raise TaskError(
                    f"{chat.where}, turn {number + 1}: the chat template of {_name(tokenizer)} "
                    f"does not write what the assistant says ({said[:40]!r}); set another "
                    "tokenizer.chat_template, or leave the row out"
                )
    if spans is None:
        spans = [_turn(chat, number, text, tokenizer) for number in _turns(chat)]
    if chat.prompt:
        asked = prompt_text(chat, chat.prompt, tokenizer)
        pairs = enumerate(zip(text, asked, strict=False))
        start = next((i for i, (one, other) in pairs if one != other), len(asked))
        spans = [(max(start, begin), end) for begin, end in spans if end > start]
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learned = _inside(found["offset_mapping"], spans)
    for number in _turns(chat):
        if str(chat.messages[number].get("weight")) in ("0", "0.0"):
            unlearned = _inside(found["offset_mapping"], [_turn(chat, number, text, tokenizer)])
            learned = [a and not b for a, b in zip(learned, unlearned, strict=True)]
    if not any(learned):
        raise TaskError(
            f"{chat.where}: the chat template of {_name(tokenizer)} leaves nothing of the "
            "assistant's turns to learn; leave the row out"
        )
    return ChatTokens(list(found["input_ids"]), learned)


def prompt_text(chat: Chat, count: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what an answer to the first messages is generated from, with the assistant's header.

    Raises:
        TaskError: as `chat_tokens`.
    """
    need_chat_template(tokenizer)
    return _rendered(_bare(chat, tokenizer), count, tokenizer, add_generation_prompt=True)


def answer_text(message: Message) -> str:
    """Return what the assistant says in a turn: its text, and its calls of tools as JSON."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    said = without_thoughts(message.get("content") or "")
    return "\n".join([said, *map(json.dumps, calls)]).strip()


def _said(message: Message) -> list[str]:
    """Return what must stand in the text: what is said, and the names of tools that are called."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    names = [str(call.get("name", "")) for call in calls]
    return [without_thoughts(message.get("content") or "").strip(), *names]


def without_thoughts(text: str) -> str:
    """Return what stands behind "</think>"; all of it where no thoughts are."""
    return text.rpartition(_THOUGHT)[2].strip() if _THOUGHT in text else text


def frame_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens a template has in a turn besides its text: thoughts, the end."""
    try:
        return sum(chat_tokens(chat_of("a", "b"), tokenizer).learned)
    except TaskError:  # it takes other conversations only
        return 0


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that ends the assistant's turns; None where the template has no such."""
    user = {"role": "user", "content": "a"}
    try:
        ids, learned = chat_tokens(
            Chat((user, {"role": "assistant", "content": "b"}, user)), tokenizer
        )
    except TaskError:
        return None
    added = set(tokenizer.get_added_vocab().values())
    written = [token for token, own in zip(ids, learned, strict=True) if own]
    return next((token for token in reversed(written) if token in added), None)


def need_chat_template(tokenizer: Any, *, to_learn: bool = False) -> None:
    """Raise `TaskError` where a tokenizer has no chat template, or cannot tell whose tokens are."""
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            f"the tokenizer of {_name(tokenizer)} has no chat template; take an instruct model, or "
            "set tokenizer.chat_template"
        )
    if to_learn and not tokenizer.is_fast:
        raise TaskError(
            f"the tokenizer of {_name(tokenizer)} is a slow one, which cannot tell the "
            "assistant's tokens from others; load its fast version"
        )


def _bare(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> Chat:
    """Return a chat without the ends of sequence in its messages that the template writes too."""
    template = tokenizer.get_chat_template(tools=list(chat.tools) or None)
    begin, end = (
        mark if mark and (name in template or mark in template) else None
        for name, mark in (("bos_token", tokenizer.bos_token), ("eos_token", tokenizer.eos_token))
    )

    def bare(message: Message) -> Message:
        said = message.get("content")
        if not isinstance(said, str):
            return message
        own = without_end(without_begin(said, begin), end)
        return message if own == said else {**message, "content": own}

    return replace(chat, messages=tuple(map(bare, chat.messages)))


def _turns(chat: Chat) -> list[int]:
    return [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]


def _marked(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Span] | None]:
    """Return the text, and what the template's marks enclose; None where it has no marks."""
    template = tokenizer.get_chat_template(tools=list(chat.tools) or None)
    if not _MARKS.search(template):
        return _rendered(chat, len(chat.messages), tokenizer), None
    messages = _messages(chat, template)
    try:
        return render_chat(template, messages, _variables(chat, tokenizer))
    except Exception as error:
        raise _refused(chat, tokenizer, error) from as_cause(error)


def _rendered(
    chat: Chat, count: int, tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False
) -> str:
    """Return the text of the first messages."""
    need_chat_template(tokenizer)
    template = tokenizer.get_chat_template(tools=list(chat.tools) or None)
    messages = _messages(chat, template)[:count]
    variables = _variables(chat, tokenizer) | {"add_generation_prompt": add_generation_prompt}
    try:
        text, _ = render_chat(template, messages, variables)
    except Exception as error:  # jinja's, and whatever a template's own code runs into
        raise _refused(chat, tokenizer, error) from as_cause(error)
    return text


def _variables(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    tools = {"tools": list(chat.tools) or None}
    return {**tokenizer.special_tokens_map, **tools, **chat.template_kwargs}


def _refused(chat: Chat, tokenizer: PreTrainedTokenizerBase, error: Exception) -> TaskError:
    return TaskError(
        f"{chat.where}: the chat template of {_name(tokenizer)} refuses the conversation "
        f"({', '.join(message['role'] for message in chat.messages[:6])}): {first_line(error)}"
    )


def _messages(chat: Chat, template: str) -> list[dict[str, Any]]:
    """Return the messages as the template takes them: OpenAI's calls have JSON for arguments."""
    messages = [dict(message) for message in chat.messages]
    if _WANTS_DICTS.search(template) and "arguments is string" not in template:
        for message in messages:
            if message.get("tool_calls"):
                message["tool_calls"] = [_parsed(call) for call in message["tool_calls"]]
    return messages


def _parsed(call: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _parsed(call["function"])}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = parse_text(arguments)
    return {**call, "arguments": arguments}


def _turn(chat: Chat, number: int, text: str, tokenizer: PreTrainedTokenizerBase) -> Span:
    """Return where a turn of the assistant begins and ends in the text, its header left out."""
    whole = _rendered(chat, number + 1, tokenizer)
    if number:
        before = prompt_text(chat, number, tokenizer)
    else:  # no template renders nothing at all: its header is what it puts behind the turn
        header = prompt_text(chat, 1, tokenizer).removeprefix(whole)
        before = whole.partition(header)[0] + header if header else ""
    # Qwen3's and others' leave the thoughts out of earlier turns, also those that they begin.
    for start in (len(before), before.rfind(_THINK)):
        written = _without_end(whole, text, tokenizer)[start:]
        for own in (written, written.partition(_THOUGHT)[2].lstrip("\n")):
            if start > 0 and own and text.startswith(before[:start] + own):
                return start, start + len(own)
    raise TaskError(
        f"{chat.where}, turn {number + 1}: the chat template of {_name(tokenizer)} has no "
        "{% generation %} marks, and the conversation does not begin with what this turn would be "
        "generated from, so that what the assistant wrote cannot be told; set "
        "tokenizer.chat_template to one with marks, such as TRL's training templates"
    )


def _without_end(whole: str, text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    # Phi-3's and others end every conversation with it, and this one goes on.
    return whole if text.startswith(whole) else whole.removesuffix(tokenizer.eos_token or "")


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def _inside(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Return which tokens have a letter in one of the spans, or stand between such."""
    learned = [False] * len(offsets)
    for start, end in spans:
        inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start]
        if inside:
            learned[inside[0] : inside[-1] + 1] = [True] * (inside[-1] + 1 - inside[0])
    return learned
