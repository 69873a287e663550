"""`lora-lab budget`: what a plan costs, and what the paper printed for it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_lab import paper
from lora_lab._util.format import format_bytes
from lora_lab.anatomy.api import anatomy
from lora_lab.budget.dry_run import dry_run
from lora_lab.budget.forecast import budget
from lora_lab.budget.gpu import GPUS
from lora_lab.budget.optimizers import OPTIMIZERS
from lora_lab.cli.command import Command, Report
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.descriptor import Field, Method, Plan
from lora_lab.methods.head.beside import with_heads
from lora_lab.methods.registry import offered
from lora_lab.models.classifier import with_head_for
from lora_lab.models.load import load_outline, model_config
from lora_lab.paper.rows import PublishedRow
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.load import as_task
from lora_lab.training.planned_cost import longest_of_task, step_inputs

if TYPE_CHECKING:
    from lora_lab.tasks.base import Task


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a catalogue name, a hub id, or a folder with a config.json")
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        action="append",
        choices=[own.key for own in offered().values()],
        dest="methods",
        help="how to adapt (lora); more than once for a combination",
    )
    for field, start in _options().items():
        name = f"--{field.option}"
        if field.kind is bool:
            method.add_argument(name, action="store_true", help=field.help)
            continue
        shown = ",".join(start) if isinstance(start, tuple) else start
        text = field.help if start is None else f"{field.help} ({shown})"
        kind = field.words if field.kind is tuple else field.kind
        method.add_argument(name, type=kind, help=text.replace("%", "%%"))
    step = parser.add_argument_group("training step")
    step.add_argument("--batch-size", type=int, default=8, help="sequences a step (8)")
    step.add_argument("--sequence-length", type=int, default=128, help="tokens each (128)")
    step.add_argument(
        "--task", help="a task or a file: as long as its longest example, and no longer than that"
    )
    step.add_argument("--dtype", help="of the base model: float32, bfloat16 or float16")
    step.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adamw", help="(adamw)")
    step.add_argument(
        "--gradient-checkpointing", action="store_true", help="recompute blocks in the backward"
    )
    step.add_argument(
        "--padding-mask", action="store_true", help="sequences of several lengths in a batch"
    )
    step.add_argument(
        "--device", help=f"whose kernels: cpu, cuda, or one of {', '.join(GPUS)} (what is here)"
    )
    step.add_argument(
        "--dry-run", action="store_true", help="take one step on fake tensors too; takes seconds"
    )


def _run(options: argparse.Namespace) -> Report:

    configs = _configs(options)
    settings: dict[str, Any] = {
        "batch_size": options.batch_size,
        "sequence_length": options.sequence_length,
        "dtype": options.dtype,
        "optimizer": options.optimizer,
        "gradient_checkpointing": options.gradient_checkpointing,
        "padding_mask": options.padding_mask,
        "device": options.device,
    }
    model, trained, longest = options.model, tuple(configs), ""
    if options.task:
        task = as_task(options.task)
        longest = _of_task(options, task, settings)
        if task.head:
            model = with_head_for(model, model_config(model), task.head)
            trained = with_heads(anatomy(model).heads, configs)
    found = replace(budget(model, trained, **settings), longest=longest)
    report = Report(found.to_json(), str(found))
    if options.dry_run:
        report = _with_dry_runs(report, model, trained, settings)
    rows = paper.published_rows(paper.TABLES, options.model, configs)
    claims = paper.claims(options.model)
    if rows or claims:
        shown = [*map(_row_text, rows), *map(str, claims)]
        report.json["published"] = [row.to_json() for row in rows]
        report.json["claims"] = [claim.to_json() for claim in claims]
        report = Report(report.json, "\n".join([report.text, "", "in the paper:", *shown]))
    return report


def _of_task(options: argparse.Namespace, task: Task, settings: dict[str, Any]) -> str:
    """Put a task's lengths into the settings, as a run of it has them; return the longest's."""
    lm = load_outline(options.model)
    longest = longest_of_task(lm, task, options.sequence_length)
    training = TrainingConfig(per_device_train_batch_size=options.batch_size)
    of_run = step_inputs(lm, training, longest)
    names = ("sequence_length", "target_length", "label_length", "padding_mask")
    settings |= {name: of_run[name] for name in names}
    return longest.text


def _with_dry_runs(
    report: Report, model: Any, configs: Sequence[MethodConfig], settings: dict[str, Any]
) -> Report:

    runs = {
        "full": dry_run(model, **settings),
        "adapted": dry_run(model, configs, **settings),
    }
    for name, run in runs.items():
        report.json["memory"][name]["dry_run_peak"] = run.peak
    full, adapted = (format_bytes(run.peak) for run in runs.values())
    seconds = sum(run.seconds for run in runs.values())
    line = f"dry run: full fine-tuning {full}, this plan {adapted} at the peak ({seconds:.1f} s)"
    return Report(report.json, f"{report.text}\n{line}")


def _options() -> dict[Field, Any]:
    """Return {field: what it starts with} of all methods; of one option the first one's."""
    found: dict[str, tuple[Field, Any]] = {}
    for method in offered().values():
        for field in _offered(method):
            found.setdefault(field.option, (field, field.start(method.config)))
    return dict(found.values())


def _configs(options: argparse.Namespace) -> list[MethodConfig]:
    """Return one config for each --method, in their order."""
    by_key = {method.key: method for method in offered().values()}
    return [_config(by_key[key], options) for key in options.methods or ["lora"]]


def _offered(method: Method) -> list[Field]:
    return [field for field in method.fields if field.flag is not None]


def _config(method: Method, options: argparse.Namespace) -> MethodConfig:
    values = {f.name: getattr(options, f.option.replace("-", "_")) for f in _offered(method)}
    starts = {f.name: f.start(method.config) for f in method.fields}
    values = {name: starts[name] if v is None else v for name, v in values.items()}
    plan = Plan(rank=values.get(method.rank, 1))
    return method.config(**method.fixed, **method.filled(values, plan))


def _row_text(row: PublishedRow) -> str:
    name = f"{row.method}, {row.setting}" if row.setting else row.method
    text = f"{row.table}, {name}: {row.printed}M, counted {row.count / 1e6:,.3f}M; {row.verdict}"
    return f"{text} ({row.note})" if row.note else text


COMMAND = Command(_arguments, _run)
