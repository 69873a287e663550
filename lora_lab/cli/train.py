"""`lora-lab train`: a run from a file, without a notebook; one process, or several together."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from lora_lab._util.format import format_bytes, plural
from lora_lab._util.yaml import value_of
from lora_lab.cli.command import Command, Report
from lora_lab.cli.decoding import decoding_arguments, decoding_of
from lora_lab.cli.output import console
from lora_lab.errors import ConfigError, LoraLabError, as_cause, one_line
from lora_lab.models.load import load_outline
from lora_lab.runs.run_file import RunConfig
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.decoding import Decoding
from lora_lab.tasks.load import load_task
from lora_lab.tasks.metrics import sureness
from lora_lab.training import processes
from lora_lab.training.api import make_run
from lora_lab.training.outcome import RunResult
from lora_lab.training.resume import resume
from lora_lab.training.run import Run
from lora_lab.training.snapshot import Snapshot

_LOOKS = 0.25  # seconds between two looks at the run
_ENDS = signal.SIGINT, signal.SIGTERM  # Ctrl-C, and a cluster that wants its machine back


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_file", help="a run file, such as the workbench writes, or a config.json"
    )
    parser.add_argument("--output-dir", help="where the run's folder goes (the file says)")
    parser.add_argument(
        "--resume", action="store_true", help="the file is a run's folder or id: go on with it"
    )
    parser.add_argument(
        "--look", action="store_true", help="look at the data, and do not train; needs no weights"
    )
    parser.add_argument(
        "--start-from",
        metavar="RUN",
        help="a run's folder or id, or an adapter's folder: the new run starts from its adapter",
    )
    decoding_arguments(parser)
    group = parser.add_argument_group("training", "in place of what the run file says")
    for field in dataclasses.fields(TrainingConfig):
        flags = dict.fromkeys((f"--{field.name.replace('_', '-')}", f"--{field.name}"))
        group.add_argument(*flags, dest=field.name, metavar="VALUE")


def _training(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `TrainingConfig` that flags name, read as a run file's are."""
    names = (field.name for field in dataclasses.fields(TrainingConfig))
    given = {name: text for name in names if (text := getattr(options, name)) is not None}
    return {name: value_of(text) for name, text in given.items()}


def _run(options: argparse.Namespace) -> Report | None:
    if options.look:
        return _look(_config(options))
    with processes.joined():
        try:
            run = _made(options)
            _watch(run, quiet=options.json or not processes.main())
            result = run.result()
        except LoraLabError as error:
            if processes.main():
                raise
            # All of them may say the same, or this one alone has something to say.
            raise type(error)(f"process {processes.rank()}: {error}") from as_cause(error)
        return Report(_json(run, result), _text(run, result)) if processes.main() else None


def _look(config: RunConfig) -> Report:
    task = load_task(**config.task)
    found = task.look(load_outline(config.model["name"]), max_length=config.training.max_length)
    return Report(found.to_json(), str(found))


def _made(options: argparse.Namespace) -> Run:
    if options.resume and options.start_from:
        raise ConfigError("--resume goes on with a run, and --start-from begins a new one; use one")
    if options.resume and decoding_of(options):
        raise ConfigError(
            "--resume goes on with the run's own decoding; lora-lab evaluate takes another"
        )
    if options.resume:
        where, changes = options.output_dir or "runs", _training(options)
        return resume(options.run_file, output_dir=where, start=False, **changes)
    return make_run(_config(options))


def _config(options: argparse.Namespace) -> RunConfig:
    config, training = RunConfig.read(options.run_file), _training(options)
    if training:
        config = dataclasses.replace(config, training=config.training.replace(**training))
    if given := decoding_of(options):
        own = Decoding.of(config.task.get("decoding") or {})
        decoding = own.changed(given).to_dict()
        config = dataclasses.replace(config, task={**config.task, "decoding": decoding})
    if options.output_dir:
        config = dataclasses.replace(config, output_dir=options.output_dir)
    if options.start_from:
        config = dataclasses.replace(config, start_from=options.start_from)
    return config


def _watch(run: Run, quiet: bool) -> None:
    """Start the run and show it until it is over; a signal ends it at the next step, saved."""
    with _signals() as told, _display(run, quiet) as show:
        run.start()
        stopping = False
        while not run.wait(_LOOKS):
            if told and not stopping:
                stopping = True
                run.stop()
            show(run.snapshot)
        show(run.snapshot)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield a list that the first signal to end goes into; a second one ends the process."""
    told: list[int] = []

    def take(number: int, _frame: FrameType | None) -> None:
        told.append(number)
        signal.signal(number, before[number])

    before = {int(number): signal.signal(number, take) for number in _ENDS}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _display(run: Run, quiet: bool) -> Iterator[Callable[[Snapshot], None]]:
    """Yield what shows a Snapshot: a bar on a terminal, a line now and then elsewhere."""
    if quiet:
        yield lambda _snapshot: None
        return
    shown = console(stderr=True, highlight=False, markup=False)
    names = f"{run.lm.card.name} on {run.task.name}"
    shown.print(f"run {run.id}: {one_line(names)}", soft_wrap=True)
    with _bar(run, shown) if shown.is_terminal else _lines(shown) as show:
        yield show


@contextlib.contextmanager
def _lines(shown: Any) -> Iterator[Callable[[Snapshot], None]]:
    told = 0

    def tell(seen: Snapshot) -> None:
        nonlocal told
        far = seen.step - told >= max(1, seen.total_steps // 20)
        if seen.loss is not None and (far or (seen.state.final and seen.step > told)):
            told = seen.step
            shown.print(f"step {seen.step} of {seen.total_steps}, loss {seen.loss:.3f}")

    yield tell


@contextlib.contextmanager
def _bar(run: Run, shown: Any) -> Iterator[Callable[[Snapshot], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining()
    facts_column = TextColumn("{task.fields[facts]}", markup=False)
    with Progress(*columns, facts_column, console=shown) as progress:
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
        **({"intervals": result.intervals} if result.intervals else {}),
        **({"evaluated": result.evaluated} if result.evaluated else {}),
        "notes": run.notes,
    }


def _text(run: Run, result: RunResult) -> str:
    lines = [f"{plural(run.snapshot.step, 'step')} in {result.seconds:.1f} s"]
    lines += [f"{name:<20}{value:.4g}" for name, value in result.metrics.items()]
    lines += filter(None, [sureness(result.intervals, result.evaluated)])
    return "\n".join([*lines, *run.notes, f"adapter  {result.adapter_folder}"])


COMMAND = Command(_arguments, _run)
