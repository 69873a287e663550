"""`lora-lab train`: a run from a file, without a notebook."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_lab._format import format_bytes, plural
from lora_lab.cli.command import Command, Report
from lora_lab.errors import RunError

if TYPE_CHECKING:
    from lora_lab.runs import Run, RunResult, Snapshot

_LOOKS = 0.25  # seconds between two looks at the run


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a run file, such as the workbench writes, or a config.json")
    parser.add_argument("--output-dir", help="where the run's folder goes (the file says)")
    parser.add_argument(
        "--resume", action="store_true", help="the file is a run's folder or id: go on with it"
    )


def _run(options: argparse.Namespace) -> Report:
    from lora_lab.runs import processes

    with processes.joined():
        run = _made(options)
        if processes.main():
            _watch(run.start(), quiet=options.json)
        else:
            run.start()
        result = run.result()
    return Report(_json(run, result), _text(run, result))


def _made(options: argparse.Namespace) -> Run:
    from lora_lab.runs import resume
    from lora_lab.runs.recipe import Recipe

    if options.resume:
        return resume(options.recipe, output_dir=options.output_dir or "runs", start=False)
    recipe = Recipe.read(options.recipe)
    if options.output_dir:
        import dataclasses

        recipe = dataclasses.replace(recipe, output_dir=options.output_dir)
    return recipe.make()


def _watch(run: Run, quiet: bool) -> None:
    """Show the run until it is over. Ctrl-C ends it at the next step, its adapter saved."""
    try:
        with _display(run, quiet) as show:
            while not run.wait(_LOOKS):
                show(run.snapshot)
            show(run.snapshot)
    except KeyboardInterrupt:
        run.stop()
        run.wait()


@contextlib.contextmanager
def _display(run: Run, quiet: bool) -> Iterator[Any]:
    """Yield what shows a Snapshot: a bar on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    if quiet:
        yield lambda _snapshot: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining()
    console.print(f"run {run.id}: {run.lm.card.name} on {run.task.name}", markup=False)
    if not console.is_terminal:
        last = [-1]

        def tell(seen: Snapshot) -> None:
            if seen.step >= last[0] + max(1, seen.total_steps // 20) and seen.loss is not None:
                last[0] = seen.step
                console.print(f"step {seen.step} of {seen.total_steps}, loss {seen.loss:.3f}")

        yield tell
        return
    with Progress(*columns, TextColumn("{task.fields[facts]}"), console=console) as progress:
        bar = progress.add_task(str(run.state), total=run.training.max_steps, facts="")

        def draw(seen: Snapshot) -> None:
            facts = [] if seen.loss is None else [f"loss {seen.loss:.3f}"]
            if seen.steps_per_second:
                facts.append(f"{seen.steps_per_second:.2g} steps/s")
            if seen.memory:
                facts.append(format_bytes(seen.memory.peak))
            progress.update(
                bar,
                completed=seen.step,
                description=seen.phase or str(seen.state),
                facts=" · ".join(facts),
            )

        yield draw


def _json(run: Run, result: RunResult) -> dict[str, Any]:
    return {
        "run": result.id,
        "folder": str(result.folder),
        "adapter": str(result.adapter_folder),
        "state": str(run.state),
        "steps": run.snapshot.step,
        "seconds": round(result.seconds, 3),
        "metrics": result.metrics,
    }


def _text(run: Run, result: RunResult) -> str:
    if run.adapter is None:
        raise RunError(f"run {run.id} did not start")
    lines = [f"{plural(run.snapshot.step, 'step')} in {result.seconds:.1f} s"]
    lines += [f"{name:<16}{value:.4g}" for name, value in result.metrics.items()]
    return "\n".join([*lines, f"adapter  {result.adapter_folder}"])


TRAIN = Command("train from a run file; under `accelerate launch` on many GPUs", _arguments, _run)
