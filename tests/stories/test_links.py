"""Links in a folder that somebody handed on: whatever is done with it, nothing outside changes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lora_lab as ll
from lora_lab.errors import LoraLabError
from lora_lab.reports import inspect_adapter, write_inspection
from lora_lab.runs.records import list_runs
from lora_lab_widgets.resume import write_report
from lora_lab_widgets.run_rows import delete
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")

LM, TASK = tiny_lm(), tiny_task()
SETTINGS = {
    "max_steps": 2, "save_steps": 1, "eval_examples": 1, "kept_texts": 0, "max_length": 64,
}  # fmt: skip
# What verbs make beside what lies there: drafts with names that can be guessed, were there any.
GUESSED = "report.html", "report.html.part", ".report.html.tmp", "adapter.tmp", "config.json.tmp"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a run's folder, a sweep's and an adapter's, as they were made."""
    top = tmp_path_factory.mktemp("made")
    run = ll.train(LM, TASK, CONFIG, output_dir=top / "runs", name="r", **SETTINGS)
    run.result(60)
    sweep(top / "runs", "s")
    model = tiny("llama")
    ll.attach(model, ll.LoraConfig(r=2, init_lora_weights=False))
    return {
        "run": run.folder,
        "sweep": top / "runs" / "s",
        "adapter": ll.save_adapter(model, top / "adapter"),
    }


def sweep(output_dir: Path, name: str) -> None:
    made = ll.sweep(
        LM, TASK, CONFIG, grid={"r": [1, 2]}, output_dir=output_dir, name=name,
        **SETTINGS | {"save_steps": 0, "eval_examples": 0},
    )  # fmt: skip
    made.results(60)


def sweep_on(folder: Path) -> None:
    sweep(folder.parent, folder.name)


def report(folder: Path) -> None:
    for record in list_runs(folder.parent):
        write_report(record, None)


def delete_all(folder: Path) -> None:
    for record in list_runs(folder.parent):
        delete(record, folder.parent, lambda _: False)


def resume(folder: Path) -> None:
    ll.resume(folder, lm=LM, task=TASK).wait(60)


def save_over(folder: Path) -> None:
    model = tiny("llama")
    ll.attach(model, ll.LoraConfig(r=2))
    ll.save_adapter(model, folder)


def inspect(folder: Path) -> None:
    write_inspection(folder / "report.html", inspect_adapter(folder))


VERBS: dict[str, tuple[Callable[[Path], Any], ...]] = {
    "run": (report, delete_all, resume),
    "sweep": (sweep_on, delete_all),
    "adapter": (save_over, inspect),
}


def entries(folder: Path) -> Iterator[Path]:
    """Yield what lies in a folder, and what could be made there, by its path within.

    Of folders that are alike, checkpoints and a sweep's cells, the first; two levels deep.
    """
    seen: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder)
        alike = re.sub(r"step-\d+|\d{8}-[^/]+", "*", within.as_posix())
        if seen.setdefault(alike, within) == within and len(within.parts) <= 2:
            yield within
    yield from (Path(name) for name in GUESSED if not (folder / name).exists())


def tree(folder: Path) -> dict[str, Any]:
    """Return every file's bytes and rights below a folder, and the folders."""
    return {
        path.relative_to(folder).as_posix(): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else None,
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("kind", VERBS)
def test_nothing_outside_is_written_emptied_or_deleted(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    made = folders[kind]
    victim = tmp_path / "victim"
    shutil.copytree(made, victim)  # of the same names, so that every reader finds what it looks for
    (victim / "mine.txt").write_text("mine")
    before = tree(victim)
    wrong = []
    for number, entry in enumerate(entries(made)):
        for verb in VERBS[kind]:
            folder = tmp_path / f"{number}" / "got"
            shutil.copytree(made, folder)
            place = folder / entry
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
            place.symlink_to(victim / entry if (victim / entry).exists() else victim / "mine.txt")
            with contextlib.suppress(LoraLabError):
                verb(folder)
            if tree(victim) != before:
                wrong.append((verb.__name__, str(entry)))
                shutil.rmtree(victim)
                shutil.copytree(made, victim)
                (victim / "mine.txt").write_text("mine")
                before = tree(victim)
            shutil.rmtree(folder.parent)
    assert wrong == []


@pytest.mark.parametrize("kind", VERBS)
def test_files_that_are_mine_too_by_hard_links_stay_as_they_are(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """As where a tar brings such, or a backup was made of them: what grows in place would there."""
    victim = tmp_path / "victim"
    shutil.copytree(folders[kind], victim)
    for name in ("summary.json", "cells.jsonl"):  # it is gone on with
        (victim / name).unlink(missing_ok=True)
    if kind == "sweep":
        (victim / "cells.jsonl").write_text("mine\n")
    before = tree(victim)
    for verb in VERBS[kind]:
        folder = tmp_path / verb.__name__ / "got"
        shutil.copytree(victim, folder, copy_function=os.link)
        verb(folder)
        assert tree(victim) == before, verb.__name__
