"""What a power loss may leave of files, by construction, in the manner of ALICE (OSDI 2014).

A `Recorder` notes every change of a folder while some work is done in it, and what was flushed
when. From that `states` builds what POSIX permits after a crash at any moment:

- what was written and not flushed is there, missing, torn or zeros, each file by itself;
- of the names that were made, changed or removed in a folder since it was flushed, any may have
  reached the disk and any not: a name without its data, a rename without the one before it.

A rename and an exchange of two names are there or not, never half: file systems promise that much.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from lora_lab._util import files

Key = tuple[int, str]  # a folder, and a name in it
Change = Mapping[Key, int | None]  # what the names stand for then: one that is None is gone
Tree = dict[str, bytes | None]  # {path: content}, None of a folder
_CHANGES = "rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir", "truncate"
_ROOT = 0
_VARIANTS = "missing", "whole", "torn", "half zeros", "zeros"


@dataclass(frozen=True)
class Moment:
    """How things stand just before the power goes.

    Attributes:
        entries: the names that are on the disk for certain.
        pending: changes of names that may be, the oldest first.
        folders: those of all things that are folders.
        flushed: {file: what of it is on the disk for certain}.
        written: {file: what a program reads}.
        marks: what the work had told of by then.
    """

    entries: Mapping[Key, int]
    pending: tuple[Change, ...]
    folders: frozenset[int]
    flushed: Mapping[int, bytes]
    written: Mapping[int, bytes]
    marks: frozenset[str]


@dataclass
class Recorder:
    """Notes what happens in a folder, in a ``with`` block; what is there before is on the disk."""

    root: Path
    moments: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._ids: dict[int, int] = {}
        self._next = _ROOT
        self._patches = ExitStack()
        self._marks: frozenset[str] = frozenset()
        self._pending: list[Change] = []
        self._seen, self._folders, self._written = self._look()
        self._entries, self._flushed = dict(self._seen), dict(self._written)

    def mark(self, name: str) -> None:
        """Note that the work told of something, such as that a run has started."""
        with self._lock:
            self._marks |= {name}
            self._note()

    def __enter__(self) -> Recorder:
        for name in _CHANGES:
            self._patch(os, name)
        self._patch(files, "swap")
        self._patches.enter_context(mock.patch.object(os, "fsync", self._flush))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()
        self._note()

    def _patch(self, owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def watched(*given: Any, **named: Any) -> Any:
            with self._lock:
                self._note()
                try:
                    return real(*given, **named)
                finally:
                    self._note(together=True)

        self._patches.enter_context(mock.patch.object(owner, name, watched))

    def _flush(self, descriptor: int) -> None:
        with self._lock:
            self._note()
            number = self._ids.get(os.fstat(descriptor).st_ino)
            if number in self._written:
                self._flushed[number] = self._written[number]
            elif number is not None:
                for change in [c for c in self._pending if any(key[0] == number for key in c)]:
                    self._pending.remove(change)
                    _apply(self._entries, change)
            self._note()

    def _note(self, together: bool = False) -> None:
        """Note what changed since the last time: as one change, or each name by itself."""
        with self._lock:
            before = self._seen
            self._seen, folders, written = self._look()
            self._folders |= folders
            self._written = {
                number: old if (old := self._written.get(number)) == data else data
                for number, data in written.items()
            } | {n: data for n, data in self._written.items() if n not in written}
            changed = {
                key: self._seen.get(key)
                for key in sorted(before.keys() | self._seen.keys())
                if before.get(key) != self._seen.get(key)
            }
            if changed:
                apart = [changed] if together else [{key: v} for key, v in changed.items()]
                self._pending += apart
            now = Moment(
                dict(self._entries),
                tuple(self._pending),
                frozenset(self._folders),
                dict(self._flushed),
                dict(self._written),
                self._marks,
            )
            if not self.moments or now != self.moments[-1]:
                self.moments.append(now)

    def _look(self) -> tuple[dict[Key, int], set[int], dict[int, bytes]]:
        """Return all names, the folders among what they stand for, and the files' contents."""
        entries: dict[Key, int] = {}
        folders: set[int] = set()
        written: dict[int, bytes] = {}
        known: dict[int, int] = {}

        def walk(path: str) -> int:
            status = os.lstat(path)
            number = known.get(status.st_ino, self._ids.get(status.st_ino))
            if number is None:
                number, self._next = self._next, self._next + 1
            known[status.st_ino] = number
            if os.path.isdir(path):
                folders.add(number)
                for name in sorted(os.listdir(path)):
                    entries[number, name] = walk(f"{path}/{name}")
            else:
                written[number] = Path(path).read_bytes()
            return number

        walk(str(self.root))
        self._ids = known  # a number of the file system's that is free may be given again
        return entries, folders, written


def states(moments: list[Moment], seed: int = 0) -> Iterator[tuple[Tree, frozenset[str]]]:
    """Yield what may be left, each once, with what the work had told of by then."""
    rng = random.Random(seed)
    known: set[int] = set()
    for moment in moments:
        for subset in _subsets(moment.pending, rng):
            for variant in (*_VARIANTS, None):
                tree = _tree(moment, subset, variant, rng)
                digest = hash((frozenset(tree.items()), moment.marks))
                if digest not in known:
                    known.add(digest)
                    yield tree, moment.marks


def put(tree: Tree, root: Path) -> Path:
    """Write a state into a new folder."""
    root.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_bytes(content)
    return root


def seen_of(tree: Tree) -> Tree:
    """Return a state without the drafts that nobody reads."""
    hidden = [path for path in tree if path.rpartition("/")[2].startswith(".")]
    drafts = tuple(path for path in hidden if path.endswith(".tmp"))
    return {
        path: content
        for path, content in tree.items()
        if path not in drafts and not path.startswith(tuple(f"{draft}/" for draft in drafts))
    }


def _subsets(pending: tuple[Change, ...], rng: random.Random) -> Iterator[list[Change]]:
    """Yield all of few changes' subsets; of many: none, all, each alone, all but each, some."""
    count = len(pending)
    if count <= 4:
        masks: list[int] = list(range(2**count))
    else:
        every = 2**count - 1
        single = [1 << n for n in range(count)]
        masks = [0, every, *single, *(every ^ one for one in single)]
        masks += [2**n - 1 for n in range(count)]
        masks += [rng.randrange(2**count) for _ in range(4)]
    for mask in dict.fromkeys(masks):
        yield [change for n, change in enumerate(pending) if mask >> n & 1]


def _tree(moment: Moment, changes: list[Change], variant: str | None, rng: random.Random) -> Tree:
    entries = dict(moment.entries)
    for change in changes:
        _apply(entries, change)
    inside: dict[int, list[tuple[str, int]]] = {}
    for (folder, name), number in entries.items():
        inside.setdefault(folder, []).append((name, number))
    tree: Tree = {}

    def add(folder: int, path: str) -> None:
        for name, number in sorted(inside.get(folder, ())):
            if number in moment.folders:
                tree[path + name] = None
                add(number, f"{path}{name}/")
            else:
                tree[path + name] = _content(
                    moment.flushed.get(number, b""),
                    moment.written[number],
                    variant or rng.choice(_VARIANTS),
                )

    add(_ROOT, "")
    return tree


def _content(old: bytes, new: bytes, variant: str) -> bytes:
    if old == new or variant == "whole":
        return new
    if variant == "missing":
        return old
    pairs = enumerate(zip(old, new, strict=False))
    same = next((n for n, (a, b) in pairs if a != b), min(len(old), len(new)))
    half = same if variant == "zeros" else same + (len(new) - same) // 2
    return new[:half] + (old[half:] if variant == "torn" else bytes(len(new) - half))


def _apply(entries: dict[Key, int], change: Change) -> None:
    for key, number in change.items():
        if number is None:
            entries.pop(key, None)
        else:
            entries[key] = number
