"""How often spectra and factors are copied, on a clock of the test's own."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
from tiny_run import CONFIG, tiny_lm

from lora_lab import adapters
from lora_lab.runs import observer as observer_module
from lora_lab.runs.observer import Observer
from lora_lab.runs.surroundings import diverted_log, seeded


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


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
    adapter = adapters.attach(tiny_lm().model, CONFIG)
    return Observer(adapter), clock, cost


def looks(scene, seconds: float, every: float, watch: str | None) -> tuple[int, int]:
    observer, clock, _ = scene
    found = []
    end = clock.now + seconds
    while clock.now < end:
        found.append(observer.look(1, watch))
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


def test_at_the_end_both_come_due_or_not(scene):
    observer, _, _ = scene
    site = next(iter(observer.adapter.sites))
    assert set(observer.look(1, site)) == {"spectra", "factors"}
    assert observer.look(2, site) == {}
    assert set(observer.look(2, site, now=True)) == {"spectra", "factors"}


def test_another_site_comes_at_once(scene):
    observer, _, _ = scene
    first, second = list(observer.adapter.sites)[:2]
    observer.look(1, first)
    assert observer.look(1, second)["factors"].site == second


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
    assert "spectra" in observer.look(1, site)
    cost["seconds"] = 0.001
    clock.now += 0.3
    assert "spectra" in observer.look(2, site)
