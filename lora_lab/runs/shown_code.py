"""A run's configs as Python that people copy: whole, so that it runs as it stands."""

from __future__ import annotations

from collections.abc import Sequence

from lora_lab.methods.combined import to_python
from lora_lab.methods.config import MethodConfig
from lora_lab.runs.training_config import TrainingConfig


def shown_code(configs: MethodConfig | Sequence[MethodConfig], training: TrainingConfig) -> str:
    """Return lines of Python that make `config` and `training` again, with what uses them.

    Ranks and targets stand in it where they are defaults too; see `Config.told`.
    """
    return "\n".join(
        (
            "import lora_lab as ll",
            "",
            f"config = {to_python(configs)}",
            f"training = {training.to_python()}",
            "# run = ll.train(lm, task, config, **training.to_dict())",
        )
    )
