"""A run's epochs in steps, once it is known how many examples there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab._util.format import plural
from lora_lab.training import processes

if TYPE_CHECKING:
    from lora_lab.training.run import Run


def settle_steps(run: Run, examples: int) -> None:
    """Count the steps of a run's epochs anew: some examples do not fit, texts become blocks.

    Args:
        run: before its first step.
        examples: that it trains on.

    Raises:
        ConfigError: a method's schedule does not fit into so many steps.
        RunError: the disk does not take its config.json.
    """
    exact = run.asked_training.for_examples(examples, processes.count())
    if exact.max_steps == run.training.max_steps:
        return
    run.training = exact
    for config in run.configs:
        config.check_steps(exact.max_steps)
    run.notes.append(
        f"{exact.num_train_epochs:g} epochs of {plural(examples, 'example')} are "
        f"{plural(exact.max_steps, 'step')}"
    )
    run.publish(total_steps=exact.max_steps)
    if run.store.config is not None:
        # Not signed anew: of a run that came from elsewhere it would be one's own from then on.
        run.store.write_config({**run.store.config, "training": exact.to_dict()})
