"""Scripts that end while a run trains, each in a forked process: `python script_ends.py FOLDER`.

This process imports everything once and never trains. Each child does what a script does and then
ends as scripts end, through the interpreter's own way out. Prints {name: what became of it}.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from lora_lab.cli import main as command
from lora_lab.configs import LoraConfig
from lora_lab.runs.records import list_runs
from lora_lab.sweeps.api import sweep
from lora_lab.training.api import train
from lora_lab.training.resume import resume
from lora_lab.training.snapshot import RunState
from tests.helpers.tiny_files import tiny_recipe
from tests.helpers.tiny_run import tiny_lm, tiny_task, until

CONFIG = LoraConfig(r=2, target_modules=["q"])
ENDLESS = 1_000_000
QUICK: Any = {"eval_examples": 0, "per_device_train_batch_size": 2, "max_length": 32}
Script = Callable[[Path], Any]


def begin(folder: Path, max_steps: int = 6, **settings: Any) -> Any:
    own = {**QUICK, "max_steps": max_steps, "save_steps": 0, **settings}
    return train(tiny_lm(), tiny_task(), CONFIG, output_dir=folder, **own)


def endless(folder: Path, **settings: Any) -> Any:
    run = begin(folder, ENDLESS, **settings)
    until(lambda: run.snapshot.step >= 2)
    return run


# What scripts do ----------------------------------------------------------------------------------


def last_line_starts_a_run(folder: Path) -> None:
    begin(folder)


def raises(folder: Path) -> None:
    begin(folder)
    raise ValueError("a mistake in the script")


def exits(folder: Path) -> None:
    begin(folder)
    sys.exit(3)


def does_not_wait(folder: Path) -> None:
    endless(folder, wait_at_exit=False)


def ends_before_the_first_step(folder: Path) -> None:
    begin(folder, ENDLESS, wait_at_exit=False)


def queues_a_second(folder: Path) -> None:
    begin(folder, name="first")
    begin(folder, name="second")


def leaves_one_paused(folder: Path) -> None:
    run = endless(folder, name="paused")
    run.pause()
    until(lambda: run.state is RunState.PAUSED)
    begin(folder, name="queued")


def has_a_thread_that_leaves_late(folder: Path) -> None:
    """The C library has it sleep behind the end that `Thread.join` waits for."""
    library = ctypes.CDLL(None)
    sleep = ctypes.cast(library.usleep, ctypes.CFUNCTYPE(None, ctypes.c_void_p))
    key = ctypes.c_uint()
    library.pthread_key_create(ctypes.byref(key), sleep)
    run, threads = begin(folder, start=False), set()

    def on_its_thread(*_: Any) -> None:
        library.pthread_setspecific(key, ctypes.c_void_p(100_000))  # microseconds
        threads.add(Path(f"/proc/self/task/{threading.get_native_id()}"))

    def look() -> None:
        print("trained on", len(threads), "of which are left", [*filter(Path.exists, threads)])

    run.model.register_forward_hook(on_its_thread)
    atexit.register(look)
    run.start()


def is_idle(folder: Path) -> None:
    begin(folder, start=False)


def fails(folder: Path) -> None:
    begin(folder, 200, learning_rate=1e38)
    atexit.register(print, "what is called at the end", file=sys.stderr, flush=True)


def exits_and_fails(folder: Path) -> None:
    begin(folder, 200, learning_rate=1e38)
    sys.exit(3)


def goes_on_after_a_failure(folder: Path) -> None:
    begin(folder, 200, learning_rate=1e38).wait()


def looks_at_a_failure(folder: Path) -> None:
    run = begin(folder, 200, learning_rate=1e38)
    run.wait()
    assert run.state is RunState.FAILED


def is_told_of_a_failure(folder: Path) -> None:
    begin(folder, 200, learning_rate=1e38).result()


def is_interrupted_while_waiting(folder: Path) -> None:
    endless(folder)
    errors = folder.with_suffix(".stderr")

    def press() -> None:
        until(lambda: "waiting for" in errors.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


def is_interrupted(folder: Path) -> None:
    endless(folder)
    raise KeyboardInterrupt


def is_a_notebooks_kernel(folder: Path) -> None:
    endless(folder)
    shell = SimpleNamespace(kernel=object())
    sys.modules["IPython"] = SimpleNamespace(get_ipython=lambda: shell)  # type: ignore[assignment]


def is_a_marimo_kernel(folder: Path) -> None:
    in_kernel = [True]
    marimo: Any = SimpleNamespace(running_in_notebook=lambda: in_kernel[0])
    sys.modules["marimo"] = marimo
    endless(folder)
    in_kernel[0] = False  # as it says on the main thread, when all is over


def is_marimos_as_a_script(folder: Path) -> None:
    marimo: Any = SimpleNamespace(running_in_notebook=lambda: False)
    sys.modules["marimo"] = marimo
    begin(folder)


def sweeps(folder: Path) -> None:
    grid = {"r": [1, 2]}
    sweep(tiny_lm(), tiny_task(), CONFIG, grid=grid, max_steps=3, output_dir=folder, **QUICK)


def sweeps_and_fails(folder: Path) -> None:
    grid = {"learning_rate": [1e-3, 1e38]}
    sweep(tiny_lm(), tiny_task(), CONFIG, grid=grid, max_steps=30, output_dir=folder, **QUICK)


def forks_and_waits(folder: Path) -> None:
    """A child that ends as scripts end, and one that starts a run of its own."""
    run = endless(folder, name="parents")
    for ends in range(2):
        child = os.fork()
        if child == 0:
            assert run.state is RunState.FAILED
            assert "of which this one is a forked copy" in run.snapshot.failure.message
            assert gc.get_freeze_count() > 0
            with run.paused():
                run.stop()
            assert run.wait()
            if ends:
                run = begin(folder, name="childs")
            return
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    step = run.snapshot.step
    until(lambda: run.snapshot.step > step)
    run.stop()


def nobody_reads_stderr(folder: Path) -> None:
    _as_command(folder, lambda: _break(2))


def nobody_reads_stdout(folder: Path) -> None:
    _as_command(folder, lambda: _break(1))


def the_terminal_closes(folder: Path) -> None:
    def hang_up() -> None:
        until(lambda: [*folder.glob("runs/*/metrics.jsonl")])
        os.kill(os.getpid(), signal.SIGHUP)

    _as_command(folder, threading.Thread(target=hang_up, daemon=True).start)


def stderr_is_closed(folder: Path) -> None:
    def close() -> None:
        os.close(2)
        sys.stderr = None  # type: ignore[assignment]

    _as_command(folder, close)


def _break(stream: int) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    os.dup2(writes, stream)


def _as_command(folder: Path, disturb: Callable[[], None]) -> None:
    recipe = tiny_recipe(folder)
    recipe["training"] |= {"max_steps": 25, "eval_examples": 0}
    (folder / "run.yaml").write_text(yaml.safe_dump(recipe))
    disturb()
    sys.exit(command(["train", str(folder / "run.yaml")]))


SCRIPTS: tuple[Script, ...] = (
    *(last_line_starts_a_run, raises, exits, does_not_wait, ends_before_the_first_step),
    *(
        has_a_thread_that_leaves_late,
        queues_a_second,
        leaves_one_paused,
        is_idle,
        fails,
        exits_and_fails,
    ),
    *(goes_on_after_a_failure, looks_at_a_failure, is_told_of_a_failure),
    *(is_interrupted_while_waiting, is_interrupted, is_a_notebooks_kernel, is_a_marimo_kernel),
    *(is_marimos_as_a_script, sweeps, sweeps_and_fails, forks_and_waits),
    *(nobody_reads_stderr, nobody_reads_stdout, the_terminal_closes, stderr_is_closed),
)


# What became of them ------------------------------------------------------------------------------


def seen(folder: Path) -> list[dict[str, Any]]:
    """What the runs of a script left, in the order of their names."""
    own = folder / "runs"
    records = list_runs(own if own.is_dir() else folder)
    return [
        {
            "name": record.folder.name.split("-")[2],
            "state": str(record.state),
            "steps": (record.summary or {}).get("steps"),
            "logged": [row["step"] for row in record.open().rows],
            "of": record.config["training"]["max_steps"],
            "adapter": record.open().adapter_folder is not None,
            "checkpoints": [*record.open().checkpoints],
        }
        for record in sorted(records, key=lambda record: record.folder.name.split("-")[2:])
    ]


def orphan(folder: Path) -> dict[str, Any]:
    """Kill a process that trains; a child that it had forked lives on."""
    reads, writes = os.pipe()
    end_reads, end_writes = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        os.close(end_writes)
        run = endless(folder, save_steps=2)
        if os.fork() == 0:
            os.write(writes, b"forked")
            os.read(end_reads, 1)  # until the test is over
            os._exit(0)
        run.wait()
    os.close(end_reads)
    os.read(reads, 6)
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(trainer, 0)
    (record,) = list_runs(folder)
    child = os.fork()
    if child == 0:
        run = resume(record, tiny_lm(), tiny_task())
        step = run.snapshot.step
        until(lambda: run.snapshot.step > step)
        run.stop()
        run.wait(60)
        os._exit(0)
    state = str(record.state)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(end_writes)
    return {"state": state, "resumed": status}


def main(folder: Path) -> Script | None:
    """Return, in each child, the script that it is; None in the parent when all is over."""
    torch.set_num_threads(1)
    # Ctrl-C is ignored in what a shell has started in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert threading.active_count() == 1
    gc.freeze()  # a child that collects garbage must not copy every page of this process
    ended: dict[str, int] = {}
    for script in SCRIPTS:
        place = folder / script.__name__
        place.mkdir()
        child = os.fork()
        if child == 0:
            for number, name in ((1, ".stdout"), (2, ".stderr")):
                file = os.open(place.with_suffix(name), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(file, number)
            return lambda _folder, script=script, place=place: script(place)
        _, status = os.waitpid(child, 0)
        ended[script.__name__] = os.waitstatus_to_exitcode(status)
    found = {
        name: {
            "status": status,
            "stdout": (folder / f"{name}.stdout").read_text(),
            "stderr": (folder / f"{name}.stderr").read_text(),
            "runs": seen(folder / name),
        }
        for name, status in ended.items()
    }
    print(json.dumps(found | {"orphan": orphan(folder / "orphan")}))
    return None


if __name__ == "__main__":
    if (own := main(Path(sys.argv[1]))) is not None:
        own(Path())
