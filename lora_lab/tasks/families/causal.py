"""Prompt → completion by a decoder: one sequence, the loss on the completion and its end only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lora_lab.errors import ConfigError, TaskError, as_cause
from lora_lab.tasks.base import Task
from lora_lab.tasks.chat_template import (
    frame_length,
    need_chat_template,
    turn_end,
    without_thoughts,
)
from lora_lab.tasks.encoding import (
    Encoded,
    collate,
    cut_end,
    cut_start,
    encode_all,
    no_tokenizer,
    pad_id,
    prompt_ids,
    task_prompt,
)
from lora_lab.tasks.families.base import Evaluation, Family, Measured, register_family
from lora_lab.tasks.framing import CHAT, LINE
from lora_lab.tasks.generation import answer_room, generate, prompt_room, task_ends
from lora_lab.tasks.greedy import greedy_settings
from lora_lab.tasks.own_loss import losses_by_row
from lora_lab.tasks.prompts import GenerationTask
from lora_lab.tasks.sequence_ends import without_begin, without_end

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel

_LONGER = 1.5  # an answer may be so many times as long as the longest right one


@register_family
class Causal(Family):
    """A decoder, and prompts with completions."""

    kind: ClassVar[type[Task]] = GenerationTask
    writes = True
    smooths = True
    cut_note = "{cut} of {count} {part} prompts were cut at their start to fit max_length={length}"

    @classmethod
    def check(cls, lm: LoadedModel, task: Any) -> None:
        """Refuse a model that reads or writes no text, or has no template for chats."""
        model, name = lm.model, lm.card.name
        lacks = "" if model.can_generate() else "generates"
        lacks = lacks or ("reads" if model.main_input_name != "input_ids" else "")
        if lacks:
            raise ConfigError(
                f"{name} ({type(model).__name__}) {lacks} no text, and {task.name} is prompt → "
                "completion; use a language model such as smollm2-135m"
            )
        if lm.tokenizer is None:
            raise ConfigError(no_tokenizer(name))
        if task.template == CHAT:
            if model.config.is_encoder_decoder:
                raise ConfigError(
                    f"{name} has an encoder and a decoder, and {task.name} holds chats, which are "
                    "one sequence; use a decoder such as smollm2-135m, or template='plain'"
                )
            try:
                need_chat_template(lm.tokenizer, to_learn=True)
            except TaskError as error:
                raise ConfigError(f"{task.name} holds chats, and {error}") from as_cause(error)

    @classmethod
    def notes(cls, lm: LoadedModel, task: Any) -> list[str]:
        """Note a framing that is no matter of course, and turns whose end is not learned."""
        noted = super().notes(lm, task)
        instruct = getattr(lm.tokenizer, "chat_template", None) and cls is Causal
        if task.template == CHAT:
            assert lm.tokenizer is not None, "check has seen to it"
            if turn_end(lm.tokenizer) is None:
                noted.append(
                    "the chat template has no token of its own at the end of the assistant's turns "
                    "that is learned; the model may not learn to stop"
                )
        elif instruct:
            noted.append(
                f"framing: {task.framing}; {lm.card.name} has a chat template, which "
                "load_task(…, template='chat') takes"
            )
        elif task.template != LINE:
            noted.append(f"framing: {task.framing}")
        return noted

    @property
    def chance(self) -> float | None:
        """The loss of one who holds every token for equally likely, in nats."""
        return math.log(self.model.get_input_embeddings().weight.shape[0])

    def encode(self, examples: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """Return prompts with completions as tokens; prompts are cut at their start."""
        return encode_all(examples, self.task, self.tokenizer, self.max_length)

    def cut(self, examples: Sequence[Any], whole: Sequence[Any]) -> list[Any]:  # noqa: ARG002
        """Return whole examples cut, without tokenizing them again."""
        if self.task.template == CHAT:
            return [cut_end(item, self.max_length) for item in whole]
        bos = self.tokenizer.bos_token_id
        return [cut_start(item, bos, self.max_length) for item in whole]

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad to a batch; see `encoding.collate`."""
        return collate(batch, pad_id(self.tokenizer))

    def measure(self, batch: dict[str, Tensor]) -> Measured:
        """Return the sum over the batch's completion tokens, nats, and how many they are."""
        loss, size, each = losses_by_row(self.model, batch)
        return Measured(loss, size, each=each)

    def evaluate(
        self,
        examples: Sequence[Any],
        batches: Iterable[dict[str, Tensor]],
        should_stop: Callable[[], bool],
    ) -> Evaluation | None:
        """Score the model as it stands; see `Family.evaluate`."""
        # Answers are decoded without special tokens: those that the data has itself are none.
        return super().evaluate(list(map(self._bare, examples)), batches, should_stop)

    def _bare(self, example: Any) -> Any:
        begin, end = self.tokenizer.bos_token, self.tokenizer.eos_token
        given = example.references
        texts = tuple(without_end(without_begin(text, begin), end) for text in given)
        return example if texts == given else dataclasses.replace(example, references=texts)

    def write(self, examples: Sequence[Any], should_stop: Callable[[], bool]) -> list[str]:
        """Complete the prompts greedily."""
        prompts = [self._prompt(example) for example in examples]
        written = self._written(prompts, self._longest_answer(examples), should_stop)
        return list(map(without_thoughts, written)) if self.task.template == CHAT else written

    def _longest_answer(self, examples: Sequence[Any]) -> int:
        """Return how many tokens an answer may have."""
        lengths = [
            len(self.tokenizer(reference, add_special_tokens=False)["input_ids"])
            for example in examples
            for reference in self.task.reference(example)
        ]
        longest = math.ceil(_LONGER * max(lengths)) + 1
        if self.task.decoding.max_new_tokens is not None:
            return min(self.task.decoding.max_new_tokens, answer_room(self.model) - 1)
        if self.task.template == CHAT:
            longest += frame_length(self.tokenizer)
        longest, context = min(longest, self.max_length), answer_room(self.model)
        return longest if longest < context else context // 2  # the prompt needs some of it

    def decoding(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Return how answers are decoded, as transformers' GenerationConfig has it."""
        ends = task_ends(self.task, self.tokenizer)
        longest = self._longest_answer(list(map(self._bare, examples)))
        return greedy_settings(self.model, self.tokenizer, longest, ends, self.task.decoding)

    def short_of_room(self, examples: Sequence[Any]) -> str:
        """Return a line on prompts that are cut so that an answer has room; "" where none is."""
        longest = self._longest_answer(list(map(self._bare, examples)))
        if self.max_length + longest <= answer_room(self.model):
            return ""  # what is longer than that is told of as too long
        room, cut = prompt_room(self.model, longest), 0
        for prompt in map(self._prompt, examples):
            if isinstance(prompt, str):
                cut += prompt_ids(prompt, self.tokenizer, room)[1] > 0
            else:
                cut += len(prompt) > room
        if not cut:
            return ""
        return (
            f"{cut} of {len(examples)} held-out prompts are cut at their start, so that an answer "
            f"of {longest} tokens has room in the model's {answer_room(self.model)}; use shorter "
            "ones, or Decoding(max_new_tokens=…)"
        )

    def sample(self, example: Any) -> tuple[str, tuple[str, ...]]:
        """Return the prompt as the model sees it, and every right completion."""
        seen = self._prompt(example)
        text = seen if isinstance(seen, str) else str(self.tokenizer.decode(seen))
        return text, tuple(self.task.reference(example))

    def answer(self, text: str, max_new_tokens: int) -> str:
        """Complete a prompt greedily."""
        return self._written([self._typed(text)], max_new_tokens)[0]

    def _prompt(self, example: Any) -> str | list[int]:
        """Return what an example's answer is generated from."""
        return self._typed(example.prompt)

    def _typed(self, text: str) -> str | list[int]:
        """Return what the answer to a prompt that somebody typed is generated from."""
        return task_prompt(self.task, text, self.tokenizer)

    def _written(
        self,
        prompts: Sequence[str | list[int]],
        max_new_tokens: int,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[str]:
        return generate(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            ends=task_ends(self.task, self.tokenizer),
            should_stop=should_stop,
            decoding=self.task.decoding,
        )
