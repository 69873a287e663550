"""Chats by a decoder: one sequence in its chat template, the loss on the assistant's turns only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_lab.errors import ConfigError, TaskError, as_cause
from lora_lab.tasks.chat_template import Chat, chat_tokens, prompt_text
from lora_lab.tasks.chats import ChatTask
from lora_lab.tasks.encoding import chat_prompt_ids, encode_chat
from lora_lab.tasks.families.base import register_family
from lora_lab.tasks.families.causal import Causal

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel


@register_family
class Chats(Causal):
    """A decoder with a chat template, and conversations."""

    kind = ChatTask
    cut_note = "{cut} of {count} {part} chats were cut at their end to fit max_length={length}"

    @classmethod
    def check(cls, lm: LoadedModel, task: ChatTask) -> None:
        """Refuse a model whose template does not take the first conversation."""
        super().check(lm, task)
        if task.train and lm.tokenizer is not None:
            try:
                chat_tokens(task.train[0], lm.tokenizer)
            except TaskError as error:
                raise ConfigError(str(error)) from as_cause(error)

    @classmethod
    def notes(cls, lm: LoadedModel, task: ChatTask) -> list[str]:
        """Note tools that the template does not write."""
        noted = super().notes(lm, task)
        chat = next((chat for chat in task.train if chat.tools), None)
        if chat is not None and lm.tokenizer is not None:
            tools = (tool.get("function", tool) for tool in chat.tools)
            text = prompt_text(chat, chat.last_answer, lm.tokenizer)
            unsaid = [name for tool in tools if (name := str(tool.get("name"))) not in text]
            if unsaid:
                noted.append(f"the chat template does not write the tools ({', '.join(unsaid)})")
        return noted

    def encode(self, examples: Sequence[Chat]) -> tuple[Sequence[Any], int]:
        """Return conversations as tokens; they are cut at their end."""
        encoded = [encode_chat(chat, self.tokenizer, self.max_length) for chat in examples]
        return encoded, sum(item["cut"] > 0 for item in encoded)

    def _prompt(self, example: Chat) -> list[int]:
        return chat_prompt_ids(example, example.last_answer, self.tokenizer)

    def _typed(self, text: str) -> list[int]:
        user = {"role": "user", "content": text}
        first = self.task.train[0].messages[0]  # a system prompt, where all have the same
        if first["role"] == "user" or any(c.messages[0] != first for c in self.task.train):
            return chat_prompt_ids(Chat((user,)), 1, self.tokenizer)
        return chat_prompt_ids(Chat((first, user)), 2, self.tokenizer)
