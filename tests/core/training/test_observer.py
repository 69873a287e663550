"""How often spectra and factors are copied, on a clock of the test's own."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import torch

from lora_lab import methods
from lora_lab._util.own_random import seeded
from lora_lab.training import observer as observer_module
from lora_lab.training.isolation import diverted_log
from lora_lab.training.observer import Observer
from lora_lab.training.snapshot import Spectra
from tests.helpers.tiny_run import CONFIG, tiny_lm


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Kept:
    """A recorder that wants every `every`-th step, or none."""

    def __init__(self) -> None:
        self.every: int | None = None
        self.steps: list[int] = []

    def due(self, step: int) -> bool:
        return self.every is not None and step % self.every == 0

    def keep(self, seen: Spectra) -> None:
        self.steps.append(seen.step)


@pytest.fixture
def scene(monkeypatch):
    """An observer, its clock, and a switch for what one look at the spectra costs."""
    clock = Clock()
    cost = {"seconds": 0.0}

    def spectra(adapter):
        clock.now += cost["seconds"]
        return {}

    monkeypatch.setattr(observer_module.time, "perf_counter", clock)
    monkeypatch.setattr(observer_module, "adapter_spectra", spectra)
    adapter = methods.attach(tiny_lm().model, CONFIG)
    return Observer(adapter, Kept()), clock, cost


def looks(scene, seconds: float, every: float, watch: str | None) -> tuple[int, int]:
    observer, clock, _ = scene
    found = []
    end = clock.now + seconds
    while clock.now < end:
        found.append(observer.observe(1, watch))
        clock.now += every
    return sum("spectra" in f for f in found), sum("factors" in f for f in found)


def test_spectra_cost_at_most_one_percent_of_the_time(scene):
    observer, clock, cost = scene
    cost["seconds"] = 0.1
    site = next(iter(observer.adapter.sites))
    start = clock.now
    spectra, _ = looks(scene, seconds=300, every=0.05, watch=site)
    assert 0.009 <= spectra * 0.1 / (clock.now - start) <= 0.0104
    assert spectra == pytest.approx(30, abs=1)


def test_cheap_looks_come_four_times_a_second_and_rarely_when_nobody_looks(scene):
    site = next(iter(scene[0].adapter.sites))
    spectra, factors = looks(scene, seconds=60, every=0.0625, watch=site)
    assert (spectra, factors) == (240, 240)
    spectra, factors = looks(scene, seconds=60, every=0.0625, watch=None)
    assert (spectra, factors) == (6, 0)


def drive(scene, cost: float, steps: int, seconds_a_step: float, watch: str | None) -> Kept:
    """Train on the scene's clock, with a recorder that wants every step."""
    observer, clock, price = scene
    price["seconds"] = cost
    kept = observer._recorder
    kept.every = 1
    for step in range(1, steps + 1):
        clock.now += seconds_a_step
        observer.observe(step, watch)
    return kept


def test_every_step_is_recorded_where_that_costs_at_most_one_percent(scene):
    assert drive(scene, 0.01, 50, seconds_a_step=1.0, watch=None).steps == list(range(1, 51))


@pytest.mark.parametrize("watched", [False, True])
def test_recording_and_views_together_cost_one_percent(scene, watched):
    _, clock, _ = scene
    site = next(iter(scene[0].adapter.sites)) if watched else None
    start = clock.now
    kept = drive(scene, 0.1, 1000, seconds_a_step=0.5, watch=site)
    share = len(kept.steps) * 0.1 / (clock.now - start)
    assert 0.009 <= share <= 0.0104
    assert np.diff(kept.steps)[1:].max() <= 21, "spread over the whole run"


def test_what_the_views_were_shown_is_not_recorded_unless_it_is_wanted(scene):
    observer, clock, _ = scene
    site = next(iter(observer.adapter.sites))
    observer._recorder.every = 10
    for step in range(1, 31):
        clock.now += 1.0
        assert "spectra" in observer.observe(step, site)
    assert observer._recorder.steps == [10, 20, 30]
    observer.observe(31, site, now=True)
    assert observer._recorder.steps[-1] == 31


def test_at_the_end_both_come_due_or_not(scene):
    observer, _, _ = scene
    site = next(iter(observer.adapter.sites))
    assert set(observer.observe(1, site)) == {"spectra", "factors"}
    assert observer.observe(2, site) == {}
    assert set(observer.observe(2, site, now=True)) == {"spectra", "factors"}


def test_another_site_comes_at_once(scene):
    observer, _, _ = scene
    first, second = list(observer.adapter.sites)[:2]
    observer.observe(1, first)
    assert observer.observe(1, second)["factors"].site.name == second


def test_log_lines_of_the_thread_become_notes_and_others_pass(caplog):
    notes: list[str] = []
    logger = logging.getLogger("transformers.something")

    def speak() -> None:
        with diverted_log(notes):
            for _ in range(3):
                logger.error("from the trainer")
            other = threading.Thread(target=lambda: logger.error("from a cell"))
            other.start()
            other.join()
        logger.error("after")

    thread = threading.Thread(target=speak)
    thread.start()
    thread.join()
    assert notes == ["transformers.something: from the trainer"]
    assert caplog.messages == ["from a cell", "after"]


def test_seeded_draws_from_the_seed_and_leaves_the_callers_sequence_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(7):
        drawn = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), drawn)


def test_one_slow_look_does_not_blind_the_views(scene):
    observer, clock, cost = scene
    site = next(iter(observer.adapter.sites))
    cost["seconds"] = 2.0  # the first one starts cold
    assert "spectra" in observer.observe(1, site)
    cost["seconds"] = 0.001
    clock.now += 0.3
    assert "spectra" in observer.observe(2, site)


def test_a_rest_catches_up_with_what_was_not_looked_at(scene):
    observer, _, _ = scene
    first, second = list(observer.adapter.sites)[:2]
    assert set(observer.observe(1, first)) == {"spectra", "factors"}
    assert observer.catch_up(1, first) == {}, "it was seen"
    assert observer.observe(2, first) == {}, "not due"
    assert set(observer.catch_up(2, first)) == {"spectra", "factors"}
    assert observer.catch_up(2, None) == {}
    assert observer.catch_up(2, second)["factors"].site.name == second
