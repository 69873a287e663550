"""Run folders as anybody may send them: one thing in them changed, type by type, and what reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from lora_lab.analysis.capacity import run_capacity
from lora_lab.analysis.methods import compare_methods
from lora_lab.analysis.steps import step_maps
from lora_lab.analysis.sweep import comparable_runs, sweep_map
from lora_lab.reports import inspect_adapter, write_inspection
from lora_lab.runs.history import read_history
from lora_lab.runs.records import list_runs
from lora_lab.runs.run_file import RunConfig
from lora_lab.training.resume import resume
from lora_lab.training.start_from import find_start
from lora_lab_widgets.lab_views.base import run_label
from lora_lab_widgets.run_rows import delete, look

# What stands in a file: a change is told in words, and made in a run's folder.
Change = tuple[str, Callable[[Path], object]]

_HUGE = [10**18, 2**63, 2**64, -(2**63) - 1, 10**400]
_TEXT = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "\ud800",
            "\x00",
            "\x1b[2J",
            "a\nb",
            "../../x",
            "/etc/passwd",
            "x" * 5_000,
            "<b>",
            "\u202e",
        ]
    ),
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "bool": st.booleans(),
    "int": st.one_of(st.integers(-3, 100), st.sampled_from(_HUGE)),
    "float": st.floats(),
    "text": _TEXT,
    "list": st.lists(st.one_of(st.none(), st.integers(), _TEXT), max_size=3),
    "object": st.dictionaries(_TEXT, st.one_of(st.none(), st.integers(), st.floats()), max_size=3),
    "deep": st.sampled_from([30, 300, 100_000]),  # lists in each other
}
BYTES = [b"", b"\0" * 64, b"\xff\xfe", b"null", b"[]", b'"x"', b"{}", b"NaN", b"[" * 50_000, b"\n"]


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path to everything within a JSON value, itself first."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, own in pairs if isinstance(value, dict | list) else ():
        if isinstance(own, dict | list):
            yield from places(own, (*path, key))
        else:
            yield (*path, key)


@st.composite
def value_changes(draw: st.DrawFn, folder: Path, names: list[str], kind: str) -> Change:
    """One value of a JSON file, or of a line of one, is of another type, or gone, or new."""
    name = draw(st.sampled_from(names))
    text = (folder / name).read_text()
    lines = text.splitlines() if name.endswith(".jsonl") else [text]
    number = draw(st.integers(0, len(lines) - 1))
    whole = json.loads(lines[number])
    place = draw(st.sampled_from(list(places(whole))))
    new = draw(VALUES[kind])
    how = draw(st.sampled_from(["put", "put", "put", "drop", "add"]))

    def change(run: Path) -> None:
        value = json.loads(json.dumps(whole))
        mark, odd = "\ufffehere", None if kind == "deep" else new
        into, last = value, place[-1] if place else None
        for key in place[:-1]:
            into = into[key]
        if not place:
            value = mark
        elif how == "drop":
            del into[last]
        elif how == "add":
            into.insert(0, mark) if isinstance(into, list) else into.update({"new": mark})
        else:
            into[last] = mark
        own = "[" * new + "]" * new if kind == "deep" else json.dumps(odd)
        out = json.dumps(value).replace(json.dumps(mark), own)
        done = [*lines[:number], out, *lines[number + 1 :]]
        (run / name).write_text("\n".join(done) + "\n")

    return f"{how} {kind} {str(new)[:40]!r} at {place} of {name}", change


@st.composite
def byte_changes(draw: st.DrawFn, folder: Path, names: list[str]) -> Change:
    """Bytes of a file are gone, others, or more."""
    name = draw(st.sampled_from(names))
    data = (folder / name).read_bytes()
    first = draw(st.integers(0, len(data)))
    gone = draw(st.sampled_from([0, 1, 8, len(data)]))
    new = draw(st.one_of(st.sampled_from(BYTES), st.binary(max_size=9)))
    out = data[:first] + new + data[first + gone :]
    return f"{new[:9]!r} for {gone} bytes at {first} of {name}", lambda run: (
        run / name
    ).write_bytes(out)


def _gone(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**34)


KINDS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a file": lambda path: path.touch(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("gone"),
    "a link to /etc": lambda path: path.symlink_to("/etc"),
    "16 GiB of zeros": _sparse,
}


@st.composite
def kind_changes(draw: st.DrawFn, names: list[str]) -> Change:
    """A file or a folder is something else."""
    name, kind = draw(st.sampled_from(names)), draw(st.sampled_from(sorted(KINDS)))

    def change(run: Path) -> None:
        _gone(run / name)
        KINDS[kind](run / name)

    return f"{kind} for {name}", change


# What reads and uses them ------------------------------------------------------------------------


def _compared(top: Path) -> None:
    found = compare_methods(list_runs(top))
    json.dumps(found.to_json())
    assert str(found)
    assert found.best


def _looked(top: Path) -> None:
    records = list_runs(top)
    for shown in ("run", "good"):
        found = look(records, [record.id for record in records], shown)
        json.dumps([found.rows, found.compared, found.details], allow_nan=False)
        assert "good" in {row["id"] for row in found.rows}


def _inspected(top: Path) -> None:
    found = inspect_adapter(top / "run")
    json.dumps(found.to_json())
    write_inspection(top / "report.html", found)


READERS: dict[str, Callable[[Path], object]] = {
    "list": lambda top: [(str(r.state), r.start_from, r.open().losses) for r in list_runs(top)],
    "history panel": _looked,
    "labels": lambda top: [run_label(record) for record in list_runs(top)],
    "sweep map": lambda top: [sweep_map(group) for group in comparable_runs(list_runs(top))],
    "sweep map of all": lambda top: sweep_map(list_runs(top)),
    "comparison": _compared,
    "maps over steps": lambda top: step_maps(read_history(top / "run")),
    "capacity": lambda top: run_capacity(top / "run"),
}


def users(lm: Any, task: Any) -> dict[str, Callable[[Path], object]]:
    """What goes on with a run, on its model and data; and what ends it."""
    return {
        "inspect": _inspected,
        "inspect a sweep": lambda top: inspect_adapter(top / "good", sweep=top),
        "start from": lambda top: find_start(top / "run").config_for(lm.model, None),
        "run file": lambda top: RunConfig.read(top / "run" / "config.json").to_yaml(),
        "resume": lambda top: resume(top / "run", lm, task, start=False),
        "resume by name": lambda top: resume(top / "run", start=False),
        "delete": lambda top: [
            delete(record, top, lambda _: False) for record in list_runs(top) if record.id != "good"
        ],
    }
