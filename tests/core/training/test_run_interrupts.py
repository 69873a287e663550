"""Ctrl-C at every place of what a cell calls on a run: it can be steered, or started, as before."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from lora_lab.errors import RunError
from lora_lab.training import at_exit, own_adapter, queue, run
from lora_lab.training.snapshot import RunState
from tests.helpers.interrupted import cut
from tests.helpers.tiny_run import tiny_lm, until

pytestmark = pytest.mark.usefixtures("one_thread")

CODE = run, queue, at_exit, own_adapter


def visited(one: Any) -> None:
    with one.paused() as model:
        model.eval()


def asked(one: Any) -> None:
    """Wait a moment for what a run leaves that goes on."""
    with pytest.raises(RunError, match="still"):
        one.result(0.01)


VERBS: dict[str, Callable[[Any], object]] = {
    "pause": lambda one: one.pause(),
    "resume": lambda one: one.resume(),
    "checkpoint": lambda one: one.checkpoint(),
    "wait": lambda one: one.wait(0.01),
    "result": asked,
    "paused": visited,
}


def steps_on(one: Any) -> None:
    step = one.snapshot.step
    until(lambda: one.snapshot.step > step)


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_goes_on_after_a_verb_that_was_interrupted_anywhere(begin, verb):
    one = begin(max_steps=10**6, eval_examples=0)
    until(lambda: one.snapshot.step > 1)
    for place in itertools.count(0, 3):
        came_so_far = cut(lambda: VERBS[verb](one), place, *CODE)
        one.resume()
        steps_on(one)
        assert one.state is RunState.RUNNING
        if not came_so_far:
            break
    one.stop()
    assert one.wait(60)
    assert one.state is RunState.DONE


def test_a_start_that_was_interrupted_anywhere_is_started_again(begin):
    """Also where another one was to be queued behind it."""
    for place in itertools.count(0, 13):
        lm = tiny_lm()
        one = begin(lm, max_steps=2, eval_examples=0, start=False)
        came_so_far = cut(one.start, place, *CODE)
        one.start()
        other = begin(lm, max_steps=2, eval_examples=0)
        assert one.wait(60)
        assert other.wait(60)
        assert (one.state, other.state) == (RunState.DONE, RunState.DONE)
        assert one.result().losses == other.result().losses
        if not came_so_far:
            return


def test_one_that_was_interrupted_as_it_was_queued_keeps_nobody_waiting(begin):
    for place in itertools.count(0, 5):
        lm = tiny_lm()
        first = begin(lm, max_steps=3, eval_examples=0, start=False)
        second = begin(lm, max_steps=1, eval_examples=0, start=False)
        first.start()
        first.pause()
        came_so_far = cut(second.start, place, *CODE)
        third = begin(lm, max_steps=1, eval_examples=0)
        first.resume()
        assert third.wait(60)
        if second.state is RunState.IDLE:
            second.start()
        assert second.wait(60)
        if not came_so_far:
            return


def test_a_queued_run_whose_stop_was_interrupted_leaves_the_queue(begin):
    for place in itertools.count(0, 5):
        lm = tiny_lm()
        first = begin(lm, max_steps=10**6, eval_examples=0)
        queued = begin(lm, max_steps=1, eval_examples=0)
        came_so_far = cut(queued.stop, place, *CODE)
        queued.stop()
        assert queued.wait(60)
        assert queued.state is RunState.DONE
        first.stop()
        assert first.wait(60)
        assert not queue._waiting
        assert not at_exit.jobs(), "nobody waits for it"
        if not came_so_far:
            return
