"""The libraries underneath are kept silent on one thread; the settings of the process are nobody's
but the user's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import datasets
import huggingface_hub.utils as hub
import pytest
from transformers.utils import logging as transformers_logging

import lora_lab as ll
from lora_lab._util.quiet import quiet_transformers


@pytest.fixture
def drawn() -> Iterator[list[str]]:
    """What is drawn as a bar, by the user's own hook."""
    bars: list[str] = []

    def hook(_factory: Any, _args: Any, options: dict[str, Any]) -> Any:
        bars.append(options["desc"])
        return iter(())

    before = transformers_logging.set_tqdm_hook(hook)
    yield bars
    assert transformers_logging.set_tqdm_hook(before) is hook, "it is put back"


def draw(what: str) -> None:
    list(transformers_logging.tqdm([1, 2], desc=what))


def on_a_thread(work: Any, *args: Any) -> None:
    thread = threading.Thread(target=work, args=args)
    thread.start()
    thread.join()


def settings() -> tuple[Any, ...]:
    return (
        transformers_logging.is_progress_bar_enabled(),
        transformers_logging.get_verbosity(),
        hub.are_progress_bars_disabled(),
        datasets.are_progress_bars_disabled(),
        datasets.logging.get_verbosity(),
    )


def test_bars_of_this_thread_are_held_back_and_others_are_drawn(drawn: list[str]) -> None:
    before = settings()
    with quiet_transformers():
        draw("mine")
        with quiet_transformers():
            draw("mine, within")
        draw("mine, still")
        on_a_thread(draw, "theirs")
        assert settings() == before
    draw("mine, after")
    assert drawn == ["theirs", "mine, after"]


def test_two_threads_that_come_and_go_leave_nothing(drawn: list[str]) -> None:
    begun, ended = threading.Event(), threading.Event()

    def other() -> None:
        with quiet_transformers():
            begun.set()
            ended.wait(10)
            draw("the other's")

    thread = threading.Thread(target=other)
    with quiet_transformers():
        thread.start()
        begun.wait(10)
    draw("mine, after")
    ended.set()
    thread.join()
    on_a_thread(draw, "theirs")
    assert drawn == ["mine, after", "theirs"]


def test_a_hook_that_is_set_meanwhile_stays() -> None:
    def theirs(factory: Any, args: Any, options: Any) -> Any:
        return factory(*args, **options)

    before = transformers_logging.set_tqdm_hook(None)
    with quiet_transformers():
        transformers_logging.set_tqdm_hook(theirs)
    assert transformers_logging.set_tqdm_hook(before) is theirs


def test_load_task_leaves_datasets_settings_alone(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = datasets.Dataset.from_dict({"prompt": ["a", "b", "c"], "completion": ["x", "y", "z"]})
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "saved")
    before, seen, load = settings(), [], datasets.load_from_disk

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(settings())
        return load(*args, **options)

    monkeypatch.setattr(datasets, "load_from_disk", watched)
    ll.load_task(tmp_path / "saved")
    assert seen == [before]
