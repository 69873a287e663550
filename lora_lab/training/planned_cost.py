"""What a run will cost: at the longest batch that can come, and at the longest that will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_lab.budget.costs import Budget
from lora_lab.budget.forecast import budget
from lora_lab.methods.combined import as_config
from lora_lab.methods.head.adapter import with_head
from lora_lab.tasks.families.api import family_of, longest_and_labels
from lora_lab.tasks.families.base import Lengths
from lora_lab.tasks.too_long import fit_examples
from lora_lab.training import processes
from lora_lab.training.data import in_order_of

if TYPE_CHECKING:
    from lora_lab.methods.config import MethodConfig
    from lora_lab.models.load import LoadedModel
    from lora_lab.runs.training_config import TrainingConfig
    from lora_lab.tasks.base import Task


class Longest(NamedTuple):
    """How long the sequences of a batch are at most.

    Attributes:
        lengths: tokens, of an encoder-decoder model of its two sides.
        labels: tokens of an example that have a label; None: not of tokens.
        why: which example that is, for people: "the longest example".
    """

    lengths: Lengths
    labels: int | None
    why: str

    @property
    def text(self) -> str:
        """Tokens, and why: "97 tokens, the longest of the 240 examples drawn"."""
        read, written = self.lengths
        tokens = f"{read} tokens" if written is None else f"{read} tokens read, {written} written"
        return f"{tokens}, {self.why}"


def longest_of_task(lm: LoadedModel, task: Task, max_length: int) -> Longest:
    """Return the longest that any batch of a task's training examples can be.

    Raises:
        TaskError: an example cannot be encoded, or none fits.
    """
    return Longest(*longest_and_labels(lm, task, max_length), "the longest example")


def longest_drawn(lm: LoadedModel, task: Task, training: TrainingConfig) -> Longest | None:
    """Return the longest that a batch of just this run will be: its seed says what it draws.

    Returns:
        None where it draws every example, and where examples are put end to end.

    Raises:
        TaskError: an example cannot be encoded.
    """
    family = family_of(task, lm)(lm, task, training.max_length)
    together = processes.count()  # each has its own share of every step's examples
    training = training.for_examples(len(task.train), together)
    count = training.max_steps * training.step_size * together
    if training.num_train_epochs is not None or count >= len(task.train) or family.packs:
        return None
    drawn: list[Any] = []
    rows = in_order_of(training.seed, task.train)
    for found in fit_examples(family, rows, training.too_long, count):
        drawn += found.encoded[: count - len(drawn)]
        if len(drawn) == count:
            break
    if not drawn:
        return None
    why = f"the longest of the {count:,} examples that the steps draw"
    return Longest(family.longest(drawn), family.most_labels(drawn), why)


def step_inputs(lm: LoadedModel, training: TrainingConfig, longest: Longest) -> dict[str, Any]:
    """Return what `budget`, the table of prices and the dry run take of a run's largest step."""
    batch = training.per_device_train_batch_size
    found: dict[str, Any] = {
        "batch_size": batch,
        "sequence_length": longest.lengths.read,
        "target_length": longest.lengths.written,
        "label_length": longest.labels,
        "dtype": lm.card.dtype,
        "padding_mask": batch > 1,  # examples of one batch differ in length
        "device": lm.model.device,
    }
    if training.gradient_checkpointing:
        found["gradient_checkpointing"] = True
    if training.recompute_mlp is not None:
        found["recompute_mlp"] = training.recompute_mlp
    return found


def planned_cost(
    lm: LoadedModel,
    task: Task,
    config: MethodConfig | Sequence[MethodConfig],
    training: TrainingConfig,
) -> Budget:
    """Forecast a run: workbench, reports and `lora-lab` all ask here.

    Where the task has the model's head trained, that is in it.

    Args:
        lm: the model, adapted or not, with its tokenizer.
        task: what it learns.
        config: of a method, or several.
        training: how it is trained.

    Returns:
        The budget at the longest batch that can come; its `expected` is at the longest that will,
        where that is shorter.

    Raises:
        ConfigError, TaskError: as `budget` and `longest_and_labels`.
    """
    if task.head:  # a run of it trains the head too
        config = with_head(lm.model, as_config(config).parts)
    longest = longest_of_task(lm, task, training.max_length)
    found = budget(lm.model, config, **step_inputs(lm, training, longest))
    drawn = longest_drawn(lm, task, training)
    if drawn is None or drawn.lengths == longest.lengths:
        return replace(found, longest=longest.text)
    expected = budget(lm.model, config, **step_inputs(lm, training, drawn))
    return replace(
        found, longest=longest.text, expected=expected.adapted, expected_longest=drawn.text
    )
