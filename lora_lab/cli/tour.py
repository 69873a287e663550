"""The main job without a browser: train the embedded model, print savings, write a report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from lora_lab.budget.reading import measured_text
from lora_lab.cli.output import console
from lora_lab.errors import one_line, visible
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.models.load import load_model
from lora_lab.reports.run_page import write_run_report
from lora_lab.tasks.load import load_task
from lora_lab.tasks.metrics import changes
from lora_lab.training.api import train
from lora_lab.training.planned_cost import planned_cost
from lora_lab.training.run import Run

_LOOKS_PER_SECOND = 5


def demo(
    model: str = "smollm2-135m",
    task: str = "mini-e2e",
    max_steps: int = 40,
    output_dir: str | Path = "runs",
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a LoRA adapter with a progress bar and leave a report.

    Args:
        model: what `load_model` takes.
        task: what `load_task` takes.
        max_steps: optimizer steps of 8 examples each.
        output_dir: where `runs/<id>/` is made.
        quiet: print nothing.

    Returns:
        {"run": id, "adapter": folder, "report": path of report.html, "metrics": {…}}.
    """
    shown = console(quiet=quiet)
    with shown.status(f"loading {escape(one_line(model))}"):
        lm = load_model(model)
        data = load_task(task)
    shown.out(visible(f"{lm.card}\n{data.describe()}"), highlight=False)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q", "v"])
    run = train(lm, data, config, output_dir=output_dir, max_steps=max_steps)
    _follow(run, shown)
    result = run.result()
    plan = planned_cost(lm, data, config, run.training)
    shown.print("", str(plan), sep="\n", highlight=False, soft_wrap=True)
    if (reading := run.snapshot.memory) is not None:
        shown.print(measured_text(plan, reading), highlight=False, soft_wrap=True)
    shown.print()
    for metric, before, after in changes(result.metrics):
        if before is not None and after is not None:
            line = f"{metric.title:<27}{before:8.2f} → {after:6.2f}"
            shown.print(line, highlight=False, markup=False)
    for sample in result.samples[:2]:
        shown.print(
            f"\n{visible(sample.prompt)}",
            f"  base     {_one_line(sample.base)}",
            sep="\n",
            markup=False,
        )
        shown.print(f"  adapted  {_one_line(sample.adapted)}", markup=False, soft_wrap=True)
    with shown.status("writing the report"):
        report = write_run_report(run, plan)
    shown.print()
    return {
        "run": result.id,
        "adapter": str(result.adapter_folder),
        "report": str(report),
        "metrics": result.metrics,
    }


def _follow(run: Run, console: Console) -> None:
    """Draw the run's progress until it is over; Ctrl-C stops it and keeps what it has learned."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.fields[loss]}"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=run.training.max_steps, loss="", left="")
        while True:
            seen = run.snapshot
            loss = "" if seen.loss is None else f"loss {seen.loss:.3f}"
            progress.update(
                bar,
                completed=seen.step,
                description=seen.phase or str(seen.state),
                loss=loss,
                left=_left(seen.eta_seconds),
            )
            if seen.state.final:
                return
            try:
                time.sleep(1 / _LOOKS_PER_SECOND)
            except KeyboardInterrupt:
                run.stop()


def _left(seconds: float | None) -> str:
    """Return how long a run goes on, its evaluations counted; "" while nothing is known of it."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} left"


def _one_line(text: str | None) -> str:
    return one_line(" ".join((text or "").split()))
