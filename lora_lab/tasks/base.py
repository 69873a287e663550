"""What a task is: prompts with completions, what the model sees, and how answers are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_lab.errors import TaskError


@dataclass(frozen=True)
class Example:
    """One prompt with the completion to learn, and every completion that counts as right.

    Attributes:
        prompt: as the data has it; `Task.prompt_text` makes of it what the model sees.
        completion: what the model learns to write.
        references: what its answer is scored against; `completion` is one of them.
    """

    prompt: str
    completion: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """Prompt → completion, in three parts.

    Attributes:
        name: "mini-e2e", or the file or hub id it came from.
        synthetic: made by a program, not by people; `describe` says so.
        train: one example a row.
        validation: one example a prompt, with all its references, in random order: the first n
            are a fair sample to score around training.
        test: one example a prompt, kept for the end; may be empty.
    """

    name: str
    synthetic: bool
    train: Sequence[Example] = field(repr=False)
    validation: Sequence[Example] = field(repr=False)
    test: Sequence[Example] = field(default=(), repr=False)

    def prompt_text(self, prompt: str) -> str:
        """Return exactly what the model sees before the completion.

        The prompt on a line of its own: no model's chat template, so that one adapter's training
        text is the same for every model, and the completion starts a line, at a token boundary.
        """
        return f"{prompt}\n"

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Score answers against every reference of their examples.

        Args:
            predictions: one a example, in the same order.
            examples: from `validation` or `test`.

        Returns:
            {"bleu": corpus BLEU from 0 to 100, sacrebleu's default (13a tokens, mixed case)}.

        Raises:
            TaskError: nothing to score, or not one prediction an example.
        """
        if not examples or len(predictions) != len(examples):
            raise TaskError(
                f"{len(predictions)} predictions for {len(examples)} examples; score needs one "
                "prediction an example, and at least one"
            )
        import sacrebleu

        # sacrebleu wants the i-th reference of every example as one stream; None: it has fewer.
        most = max(len(example.references) for example in examples)
        streams: list[Any] = [
            [e.references[i] if i < len(e.references) else None for e in examples]
            for i in range(most)
        ]
        return {"bleu": sacrebleu.corpus_bleu(list(predictions), streams).score}

    def describe(self) -> str:
        """Return one line: the name, whether it is synthetic, and the sizes."""
        label = " (synthetic)" if self.synthetic else ""
        test = f", {len(self.test):,} test" if self.test else ""
        return (
            f"{self.name}{label}: {len(self.train):,} training examples, {len(self.validation):,} "
            f"validation{test} prompts; scored by BLEU"
        )
