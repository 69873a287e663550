"""Adapters come and go on one thread while another generates with one of them."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

import lora_lab as ll
from tests.helpers.tiny_models import tiny, tiny_inputs

SERVED = ll.LoraConfig(r=2, lora_alpha=8, target_modules=["q", "v"], init_lora_weights=False)
# Layers that the served adapter has, and layers that only these have.
OTHERS = [
    SERVED.replace(r=4, target_modules="all-linear"),
    SERVED.replace(r=3, target_modules=["down"]),
    SERVED.replace(r=1, target_modules=["q", "embed_tokens"]),
]


class Server(threading.Thread):
    """Answers the same prompt again and again, until told to stop."""

    def __init__(self, model, mixed: bool) -> None:
        super().__init__()
        self.model, self.mixed = model, mixed
        self.batch = tiny_inputs(model, batch=2)
        self.answers, self.error = [], None
        self.stopping = threading.Event()

    def answer(self) -> torch.Tensor:
        with torch.inference_mode():
            if not self.mixed:
                return self.model(**self.batch).logits
            with ll.mixed_batch(self.model, ["served", "served"]):
                return self.model(**self.batch).logits

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.answers.append(self.answer())
        except Exception as error:
            self.error = error


@pytest.fixture
def busy_switching():
    """Threads take turns a thousand times as often as they usually do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_one_that_is_served_is_not_disturbed(busy_switching, mixed, tmp_path):
    torch.set_num_threads(1)
    model = tiny("llama")
    ll.attach(model, OTHERS[0], "kept")
    ll.save_adapter(model, tmp_path / "other")
    ll.detach(model)
    ll.attach(model, SERVED, "served")
    server = Server(model, mixed)
    expected = server.answer()
    server.start()
    for round_ in range(12):
        for i, config in enumerate(OTHERS):
            ll.attach(model, config, f"other-{i}", activate=False)
        ll.load_adapter(model, tmp_path / "other", "loaded", activate=False)
        assert ll.active(model) == "served"
        if mixed:  # the batch names its adapter, so another may be in force for all others
            ll.activate(model, "loaded")
        assert len(ll.attached(model)) == 5
        for name in ("other-1", "other-0", "loaded", "other-2")[:: 1 if round_ % 2 else -1]:
            ll.detach(model, name)
        ll.activate(model, "served")
    seen = len(server.answers)
    while len(server.answers) == seen and server.is_alive():
        pass
    server.stopping.set()
    server.join()
    assert server.error is None
    assert len(server.answers) > 10
    assert all(torch.equal(answer, expected) for answer in server.answers)


def test_a_loaded_adapter_acts_when_it_is_activated(tmp_path):
    model = tiny("llama")
    batch = tiny_inputs(model)
    ll.attach(model, OTHERS[0], "other")
    other = model(**batch).logits
    ll.save_adapter(model, tmp_path / "other")
    ll.detach(model)
    bare = model(**batch).logits
    ll.load_adapter(model, tmp_path / "other", activate=False)
    assert ll.active(model) is None
    assert torch.equal(model(**batch).logits, bare)
    ll.activate(model, "default")
    torch.testing.assert_close(model(**batch).logits, other)
    ll.load_adapter(model, tmp_path / "other", "second")
    assert ll.active(model) == "second"


def test_switching_takes_as_many_steps_among_50_as_among_2():
    model = tiny("llama")

    def calls(work) -> int:
        count = 0

        def counted(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(counted)
        try:
            work()
        finally:
            sys.setprofile(None)
        return count

    counts = []
    for number in range(50):
        ll.attach(model, SERVED, f"a{number}")
        if number in (1, 49):
            counts.append(calls(lambda: [ll.activate(model, name) for name in ("a0", "a1") * 20]))
    assert counts[0] == counts[1]
