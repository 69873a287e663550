"""What a thread warns of is its own, whatever other threads collect meanwhile."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from lora_lab._util.own_warnings import collected


def on_thread(act: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def standing() -> tuple[Any, list[Any]]:
    return warnings.showwarning, list(warnings.filters)


def test_each_thread_has_its_own_though_they_overlap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    before = standing()
    inside = {name: threading.Event() for name in "ab"}
    let = {name: threading.Event() for name in "ab"}
    said: dict[str, list[str]] = {}

    def work(name: str) -> None:
        with collected() as found:
            warnings.warn(f"of {name}", stacklevel=1)
            inside[name].set()
            let[name].wait(60)
            warnings.warn(f"of {name}", stacklevel=1)  # once more, and told once more
        said[name] = found

    threads = [on_thread(functools.partial(work, name)) for name in "ab"]
    for name in "ab":
        assert inside[name].wait(60)
    warnings.warn("of a cell", stacklevel=1)
    warnings.filterwarnings("ignore", "a cell's own filter")
    for name, thread in zip("ab", threads, strict=True):  # the first that came goes first
        let[name].set()
        thread.join(60)
    assert said == {"a": ["of a"] * 2, "b": ["of b"] * 2}
    assert shown == ["of a cell"]
    own = [each for each in warnings.filters if each not in before[1]]
    assert [each[0] for each in own] == ["ignore"], "what the cell has set stays"
    assert warnings.showwarning is before[0]
    warnings.warn("later", stacklevel=1)
    assert shown == ["of a cell", "later"]


def test_an_inner_block_keeps_its_own() -> None:
    before = standing()
    with collected() as outer:
        warnings.warn("1", stacklevel=1)
        with collected() as inner:
            warnings.warn("2", stacklevel=1)
        warnings.warn("3", stacklevel=1)
    assert (outer, inner) == (["1", "3"], ["2"])
    assert standing() == before


def test_what_a_cell_puts_back_meanwhile_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    inside, end = threading.Event(), threading.Event()

    def work() -> None:
        with collected():
            inside.set()
            end.wait(60)

    thread = on_thread(work)
    assert inside.wait(60)
    with warnings.catch_warnings():  # which puts back, at its end, what it has found
        end.set()
        thread.join(60)
    with collected() as said:
        warnings.warn("kept", stacklevel=1)
    warnings.warn("of the cell", stacklevel=1)
    assert (said, shown) == (["kept"], ["of the cell"])
