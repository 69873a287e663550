"""What a panel needs of a workbench, without a run; the plan is a tiny model's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import traitlets

from lora_lab.models.load import LoadedModel
from lora_lab.tasks import load_task
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.background import Background
from lora_lab_widgets.message_throttle import MessageThrottle
from lora_lab_widgets.plan import PlanModel
from lora_lab_widgets.plot import PlotlyScript
from tests.helpers.tiny_chat import tiny_chat_model


class FakeSession(traitlets.HasTraits):
    """A session without an adapter.

    Args:
        anatomy: of the model that there is not.
        plan: what is planned, if the panel asks.
        command: does what a button of the run panel asks.
        snapshot: of the latest run.
        bench: names the workbench.
        live: attributes of the adapter that there is not.
    """

    run = traitlets.Any()
    sweep = traitlets.Any()
    site = traitlets.Unicode()

    def __init__(
        self,
        anatomy: Any = None,
        *,
        plan: Any = None,
        command: Callable[..., Any] = lambda *_: None,
        snapshot: Snapshot | None = None,
        bench: str = "",
        **live: Any,
    ) -> None:
        super().__init__()
        if snapshot is not None:
            self.run = SimpleNamespace(snapshot=snapshot, notes=[])
        self.anatomy, self.output_dir, self.bench = anatomy, Path("runs"), bench
        self.live_adapter = SimpleNamespace(latest=None, adapter=None, nothing="", **live)
        self.plan = plan or SimpleNamespace(observe=lambda *_: None)
        self.command, self.used = command, None
        self.throttle, self.plotly = MessageThrottle(), PlotlyScript()
        self.scorer: Background[Any] = Background()

    def watch(self) -> None:
        """Nobody hands out factors."""


@functools.cache
def tiny_lm() -> LoadedModel:
    """Return a tiny model with its tokenizer."""
    return LoadedModel.given(*tiny_chat_model())


def tiny_plan(*task_names: str, **settings: Any) -> PlanModel:
    """Return the plan of a tiny model and a few examples.

    Args:
        task_names: those to choose from.
        settings: fields of `TrainingConfig`.
    """
    task = load_task("mini-e2e")
    few = dataclasses.replace(task, train=task.train[:2], validation=task.validation[:1])
    plan = PlanModel(tiny_lm(), few, None, settings)
    plan.task_names = list(task_names) or plan.task_names
    return plan
