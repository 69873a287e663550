"""Visits of a run, which hold its worker at a boundary and let it go."""

from __future__ import annotations

import time

from lora_lab.training.control import Control
from tests.helpers.state_walks import DONE, IDLE, PAUSED, PAUSING, RUNNING, STOPPING, Walk, until


def test_visit_holds_the_worker_and_lets_it_go():
    walk = Walk(seconds=0.0005).start()
    for _ in range(20):
        with walk.control.visit(None):
            step = walk.step
            assert not walk.within.is_set()
            assert walk.control.state is PAUSED
            time.sleep(0.002)
            assert walk.step == step
        assert walk.control.state is RUNNING
    walk.control.stop()
    assert walk.control.wait(10)
    walk.assert_legal()


def test_a_long_rest_is_interrupted_for_a_sign_of_life_and_stays_a_rest():
    states, signs = [], []
    control = Control("signs", states.append)

    def work() -> None:
        while not control.stop_wanted:
            while control.rest(0.002):
                signs.append(control.state)
            time.sleep(0.001)

    control.start(work)
    control.pause()
    until(lambda: len(signs) > 3)
    assert states == [RUNNING, PAUSING, PAUSED]
    assert set(signs) == {PAUSED}
    with control.visit(None):  # the worker is at rest all the while, between two signs too
        control.resume()
        count = len(signs)
        until(lambda: len(signs) > count + 3)
        assert control.state is PAUSED
    assert control.state is RUNNING
    count = len(signs)
    time.sleep(0.02)
    assert len(signs) <= count + 1
    control.stop()
    assert control.wait(10)


def test_visit_of_a_paused_run_leaves_it_paused():
    walk = Walk().start()
    walk.control.pause()
    with walk.control.visit(None):
        pass
    assert walk.control.state is PAUSED
    walk.control.stop()
    assert walk.control.wait(10)


def test_resume_during_a_visit_takes_effect_after_it():
    walk = Walk().start()
    walk.control.pause()
    with walk.control.visit(None):
        walk.control.resume()
        step = walk.step
        time.sleep(0.01)
        assert walk.step == step
    until(lambda: walk.step > step)
    walk.control.stop()
    assert walk.control.wait(10)


def test_pause_during_a_visit_lasts_after_it():
    walk = Walk().start()
    with walk.control.visit(None):
        walk.control.pause()
    assert walk.control.state is PAUSED
    walk.control.stop()
    assert walk.control.wait(10)


def test_stop_during_a_visit_waits_for_its_end():
    walk = Walk().start()
    with walk.control.visit(None):
        walk.control.stop()
        time.sleep(0.01)
        assert walk.control.state is STOPPING
    assert walk.control.wait(10)
    walk.assert_legal()


def test_visits_of_idle_and_finished_runs_just_enter():
    walk = Walk(steps=1)
    with walk.control.visit(None):
        assert walk.control.state is IDLE
    walk.start()
    walk.control.wait(10)
    with walk.control.visit(None):
        assert walk.control.state is DONE


def test_a_run_started_during_a_visit_begins_after_it():
    walk = Walk(steps=3)
    with walk.control.visit(None):
        walk.start()
        time.sleep(0.02)
        assert walk.step == 0
    assert walk.control.wait(10)
    walk.assert_legal()
