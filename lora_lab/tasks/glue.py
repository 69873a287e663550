"""GLUE's tasks (Wang et al., 2019, https://arxiv.org/abs/1804.07461): how each is scored.

Which one it is tells the hub's configuration ("nyu-mll/glue", "cola"), or the official folder's
name ("CoLA", "STS-B", …), whose files are read as they are: CoLA's have no line of names.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from lora_lab.tasks.base import Task
from lora_lab.tasks.classification import ClassificationTask
from lora_lab.tasks.families.regression import RegressionTask
from lora_lab.tasks.files import suffix_of
from lora_lab.tasks.folders import plain_name
from lora_lab.tasks.metrics import ACCURACY, F1, MATTHEWS, PEARSON, SPEARMAN, Metric


class GlueTask(NamedTuple):
    """One of the eight: what people call it, and its scores, the one of the leaderboard first.

    Attributes:
        classes: how many; 0 of a regression.
    """

    title: str
    classes: int
    metrics: tuple[Metric, ...]


GLUE = {
    "cola": GlueTask("CoLA", 2, (MATTHEWS, ACCURACY)),
    "sst2": GlueTask("SST-2", 2, (ACCURACY,)),
    "mrpc": GlueTask("MRPC", 2, (ACCURACY, F1)),
    "stsb": GlueTask("STS-B", 0, (PEARSON, SPEARMAN)),
    "qqp": GlueTask("QQP", 2, (ACCURACY, F1)),
    "mnli": GlueTask("MNLI", 3, (ACCURACY,)),
    "qnli": GlueTask("QNLI", 2, (ACCURACY,)),
    "rte": GlueTask("RTE", 2, (ACCURACY,)),
}
_COLA = {"text": 3, "label": 1}  # source, class, the author's mark, sentence


def scored_as_glue(task: Task, name: Any, config_name: str | None) -> Task:
    """Return a task with GLUE's scores, and a note of it, if it is one of GLUE's."""
    glue = _glue_task(name, config_name)
    if isinstance(task, ClassificationTask):
        classes = len(task.labels)
    elif isinstance(task, RegressionTask):
        classes = 0
    else:
        return task
    if glue is None or glue.classes != classes:
        return task
    notes = (*task.notes, f"scored as GLUE's {glue.title}")
    return dataclasses.replace(task, metrics=glue.metrics, notes=notes)


def cola_columns(path: Path) -> dict[str, int]:
    """Return the columns of CoLA's files, which have no line of names; {} of any other file."""
    if suffix_of(path) != ".tsv" or path.suffix != ".tsv":
        return {}
    with path.open(encoding="utf-8", errors="replace") as file:
        fields = file.readline(10_000).rstrip("\n").split("\t")
    is_cola = len(fields) == 4 and fields[1] in ("0", "1") and fields[2] in ("", "*")
    return dict(_COLA) if is_cola else {}


def _glue_task(name: Any, config_name: str | None) -> GlueTask | None:
    if not isinstance(name, (str, Path)):
        return None
    path = Path(name)
    places = [path.name if path.is_dir() else path.parent.name]
    if config_name is not None and plain_name(path.name) in ("glue", "gluedata"):
        places = [config_name]
    return next((GLUE[plain_name(place)] for place in places if plain_name(place) in GLUE), None)
