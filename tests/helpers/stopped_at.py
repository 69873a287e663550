"""A short run of the tiny task that may be stopped as soon as a step is told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lora_lab as ll
from lora_lab.models import LoadedModel
from lora_lab.tasks import GenerationTask


def trained(
    lm: LoadedModel,
    task: GenerationTask,
    config: Any,
    folder: Path,
    stop_at: int | None,
    **more: Any,
) -> ll.Run:
    """Return a run that is over; stopped at the boundary after step `stop_at`, if that is given."""
    settings = {"learning_rate": 1e-2, "warmup_steps": 0, "save_steps": 2}
    settings |= {"per_device_train_batch_size": 4, **more}
    run = ll.train(lm, task, config, output_dir=folder, start=False, **settings)
    publish = run.publish

    def look(**changes: Any) -> None:
        publish(**changes)
        if stop_at is not None and changes.get("step") == stop_at:
            run.stop()

    run.publish = look  # type: ignore[method-assign]
    run.start().result(120)
    return run
