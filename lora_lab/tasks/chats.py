"""Chats: conversations of which the assistant's turns are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from lora_lab.tasks.base import Task
from lora_lab.tasks.chat_template import Chat, answer_text
from lora_lab.tasks.decoding import GREEDY, Decoding
from lora_lab.tasks.framing import CHAT, name_template
from lora_lab.tasks.metrics import OF_TEXTS, Metric


@dataclass(frozen=True)
class ChatTask(Task):
    """Conversations in the model's chat template; see `Task`.

    All turns of the assistant are learned from. What is scored is its last one, answered from the
    turns before it.
    """

    name: str
    synthetic: bool
    train: Sequence[Chat] = field(repr=False)
    validation: Sequence[Chat] = field(repr=False)
    test: Sequence[Chat] = field(default=(), repr=False)
    metrics: tuple[Metric, ...] = field(default=OF_TEXTS, repr=False)
    decoding: Decoding = field(default=GREEDY, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    template: ClassVar[str] = CHAT

    @property
    def framing(self) -> str:
        """What stands around the turns, for people."""
        return name_template(CHAT)

    def reference(self, example: Chat) -> tuple[str, ...]:
        """Return every last answer that counts as right."""
        return example.references or (answer_text(example.messages[example.last_answer]),)

    def input_text(self, example: Chat) -> str:
        """Return what the user says before the last answer."""
        said = [m for m in example.messages[: example.last_answer] if m["role"] == "user"]
        return str(said[-1]["content"]) if said else ""

    def _sizes(self) -> str:
        return f"{super()._sizes()} conversations"
