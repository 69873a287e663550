"""The meter against sizes counted by hand."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from lora_lab.budget import Memory
from lora_lab.budget.meter import LiveStorages, Meter, storage_bytes
from lora_lab.budget.reading import MemoryReading, differing_part
from tests.helpers.made_up_hardware import counting
from tests.helpers.quantized_layers import torchao

N, D = 64, 32  # rows of the batch, width of the layers
FLOAT = 4  # bytes


class Chain(torch.nn.Module):
    """L bias-free square layers with tanh: each saves its input, tanh saves its output."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.randn(D, D) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            x = (x @ weight).tanh()
        return x


def test_storages_count_once_for_views_and_ties():
    base = torch.zeros(10, 10)
    assert storage_bytes([base, base[2:], base.T, torch.zeros(3)]) == 100 * FLOAT + 3 * FLOAT


def test_a_wrapper_counts_as_what_it_holds():
    layer = torchao(torch.nn.Linear(8, 6, bias=False))
    assert storage_bytes([layer.weight, layer.weight.detach()]) == 6 * 8 + 6 * 4  # int8 and scales
    counter = LiveStorages([layer.weight])
    with counter:
        layer(torch.ones(3, 8))
    assert counter.live == 6 * 8 + 6 * 4
    assert counter.peak >= counter.live + 3 * 8 * 4


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_live_bytes_of_a_chain_are_those_counted_by_hand(depth):
    model = Chain(depth)
    x = torch.randn(N, D)
    weights, activation = depth * D * D * FLOAT, N * D * FLOAT
    counter = LiveStorages(model.parameters())
    assert counter.live == weights
    with counter:
        out = model(x)
        # x, and each tanh's output (the next layer's saved input); the products are gone.
        assert counter.live == weights + activation * (1 + depth)
        # At its most one product is alive beside what is saved so far: before the last tanh
        # returns, the last product and its tanh are both there.
        assert counter.peak == weights + activation * (2 + depth)
        loss = out.sum()
        del out
        loss.backward()
        # Gradients are as large as the weights; of the activations only x and the loss are left.
        assert counter.live == 2 * weights + activation + FLOAT


def test_a_freed_storage_whose_address_is_used_again_counts_again():
    counter = LiveStorages()
    with counter:
        for _ in range(50):
            big = torch.ones(1000)
            assert counter.live == 1000 * FLOAT
            del big
            assert counter.live == 0
    assert counter.peak == 1000 * FLOAT


def test_other_threads_tensors_are_not_counted():
    counter = LiveStorages()
    with counter:
        thread = threading.Thread(target=lambda: torch.ones(1000).add_(1))
        thread.start()
        thread.join()
    assert counter.peak == 0


def _step(model: Chain, x: torch.Tensor) -> None:
    model(x).sum().backward()


def test_meter_counts_weights_gradients_and_optimizer_state():
    model = Chain(3)
    weights = 3 * D * D * FLOAT
    meter = Meter(model)
    assert meter.reading().current == weights
    optimizer = torch.optim.AdamW(model.parameters())
    meter.optimizer = optimizer
    _step(model, torch.randn(N, D))
    assert meter.reading().current == 2 * weights
    optimizer.step()
    steps = 3 * FLOAT  # AdamW keeps a step count a parameter, a float32
    assert meter.reading().current == 4 * weights + steps
    optimizer.zero_grad()
    assert meter.reading().current == 3 * weights + steps
    assert meter.reading().kind == "tensor bytes on the CPU"


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_meter_peak_of_a_chain_is_the_one_counted_by_hand(depth):
    model = Chain(depth)
    meter = Meter(model)
    one, activation = D * D * FLOAT, N * D * FLOAT
    with meter.measure(N) as measured:
        _step(model, torch.randn(N, D))
    assert measured
    # The most is alive in the last layer's product: all weights, the first gradient; x and the
    # outputs of the layers below (depth in all); the gradient that came, the one that goes on;
    # and two scalars, the loss and its gradient.
    assert meter.reading().peak == depth * one + one + (depth + 2) * activation + 2 * FLOAT


def test_meter_keeps_the_highest_peak():
    model = Chain(2)
    meter = Meter(model)
    peaks = []
    for rows in (N, 2 * N, N):
        model.zero_grad()
        with meter.measure(rows):
            _step(model, torch.randn(rows, D))
        peaks.append(meter.reading().peak)
    assert peaks[1] - peaks[0] == 4 * N * D * FLOAT
    assert peaks[2] == peaks[1]


def test_meter_measures_two_passes_and_then_only_larger_ones():
    model = Chain(1)
    meter = Meter(model)
    taken = []
    for tokens in (10, 10, 10, 9, 12, 12, 13):
        with meter.measure(tokens) as measured:
            _step(model, torch.randn(tokens, D))
        taken.append(measured)
    assert taken == [True, True, False, False, True, False, True]


def test_an_error_within_a_measured_pass_gets_out_and_counting_ends():
    model = Chain(1)
    meter = Meter(model)
    with pytest.raises(ZeroDivisionError), meter.measure(1):
        _ = 1 / 0
    before = meter.reading().peak
    torch.ones(100_000).add_(1)
    assert meter.reading().peak == before


def test_the_parts_of_a_reading_add_up_to_its_peak():
    model = Chain(3)
    weights = 3 * D * D * FLOAT
    meter = Meter(model)
    optimizer = torch.optim.AdamW(model.parameters())
    meter.optimizer = optimizer
    start = meter.reading()
    assert (start.peak, start.weights, start.gradients, start.optimizer) == (weights, weights, 0, 0)
    assert start.activations == 0
    state = 2 * weights + 3 * FLOAT
    for state_there in (0, state):  # the first pass has no optimizer state yet
        with meter.measure(N):
            _step(model, torch.randn(N, D))
        # As in the chain counted by hand above, but of the parts; one gradient of three is there.
        beside = D * D * FLOAT + 5 * N * D * FLOAT + 2 * FLOAT
        assert meter.reading().peak == max(
            weights + state_there + beside, 2 * weights + state_there
        )
        with meter.measure_update():
            optimizer.step()
        optimizer.zero_grad()
        reading = meter.reading()
        assert (reading.weights, reading.gradients, reading.optimizer) == (weights, weights, state)
        assert reading.weights + reading.gradients + reading.optimizer + reading.activations == (
            reading.peak
        )
    # The update holds two temporaries of one weight's size (√v and the step), and fewer scalars
    # than fit into one of them; the pass needs more.
    assert reading.peak == weights + state + beside


def test_an_update_that_needs_more_than_the_pass_sets_the_peak():
    model = Chain(1)
    meter = Meter(model)
    optimizer = torch.optim.AdamW(model.parameters())
    meter.optimizer = optimizer
    one = D * D * FLOAT
    for _ in range(2):
        optimizer.zero_grad()
        with meter.measure(1):
            _step(model, torch.randn(1, D))
        with meter.measure_update():
            optimizer.step()
    # Weight, gradient, two moments; then √v, and what it is divided into before eps is added.
    assert 5 * one < meter.reading().peak <= 6 * one + 64 * FLOAT


def test_updates_of_passes_that_were_not_measured_are_not_either():
    model = Chain(1)
    meter = Meter(model)
    for _ in range(2):
        with meter.measure(N):
            pass
    with meter.measure(N) as measured:
        pass
    assert not measured
    before = meter.reading().peak
    with meter.measure_update():
        torch.ones(100_000).add_(1)
    assert meter.reading().peak == before


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ((100, 10, 20, 70), ""),
        ((100, 10, 20, 79), ""),  # 209 of 200: 4.5 %
        ((100, 10, 20, 81), "activations"),
        ((111, 10, 20, 70), "weights"),
        ((100, 10, 31, 70), "optimizer"),
        ((100, 30, 20, 60), ""),  # wrong parts, right sum
        ((90, 50, 20, 70), "gradients"),
        ((50, 10, 20, 70), "weights"),
    ],
)
def test_the_part_that_differs_is_named(parts, named):
    measured = MemoryReading(0, 200, "CUDA memory", 100, 10, 20, 70)
    assert differing_part(Memory(*parts), measured) == named


def test_a_reading_without_parts_differs_in_its_peak():
    measured = MemoryReading(0, 200, "CUDA memory")
    assert differing_part(Memory(100, 10, 20, 100), measured) == "peak"
    assert differing_part(Memory(100, 10, 20, 65), measured) == ""
    assert differing_part(Memory(100, 10, 20, 65), measured, tolerance=0.01) == "peak"


def test_several_devices_are_read_each_by_itself(monkeypatch):
    first, second = torch.device("cpu"), torch.device("cuda", 1)
    counts = counting(monkeypatch, {first: 1_000_000, second: 500})
    monkeypatch.setattr(sys.modules[Meter.__module__], "devices_of", lambda _: (first, second))
    model = Chain(2)
    weights = 2 * D * D * FLOAT
    meter = Meter(model)
    assert counts.resets == [first, second]
    counts.now[first] += 300
    counts.now[second] += 70
    counts.most.update({first: 1_000_900, second: 580})
    found = meter.reading()
    assert found.devices == (
        ("cpu", weights + 300, weights + 900),  # what is not this model's does not count
        ("cuda:1", 70, 80),
    )
    assert (found.current, found.peak) == (weights + 370, weights + 980)
    counts.most[second] = 500  # somebody has reset it: what was seen is not forgotten
    assert meter.reading().devices[1] == ("cuda:1", 70, 80)


def test_of_one_device_there_is_nothing_to_tell_apart(monkeypatch):
    counting(monkeypatch, {torch.device("cpu"): 1_000_000})
    assert Meter(Chain(1)).reading().devices == ()
    assert Meter(Chain(1)).reading().kind == "CUDA memory"


def test_what_is_kept_away_is_not_here():
    model = Chain(3)
    model.weights[1] = torch.nn.Parameter(model.weights[1].to("meta"))
    assert Meter(model).resident() == 2 * D * D * FLOAT


def test_a_recent_reading_is_enough_between_measured_steps(monkeypatch):
    model = torch.nn.Linear(8, 8)
    meter = Meter(model)
    monkeypatch.setattr(sys.modules[Meter.__module__], "_SHARE", float("inf"))
    first = meter.recent()
    assert meter.recent() is first
    assert meter.recent(now=True) is not first
    with meter.measure(8):
        model(torch.ones(8, 8)).sum().backward()
    measured = meter.recent()
    assert measured.gradients == 4 * (8 * 8 + 8)
    for _ in range(2):  # the second measured one, and one that is not
        with meter.measure(8):
            pass
    latest = meter.recent()
    assert latest is meter.recent()
    monkeypatch.setattr(sys.modules[Meter.__module__], "_SHARE", 0)
    meter.recent(now=True)
    assert meter.recent() is not latest
