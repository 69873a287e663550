"""How much a workbench tells the browser while it trains, counted at the size of Llama 405B."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import lora_lab as ll
from lora_lab.anatomy import Site
from lora_lab.budget.reading import MemoryReading
from lora_lab.spectra.update import LowRankUpdate, SiteUpdate
from lora_lab.tasks import load_task
from lora_lab.training.progress import LossHistory
from lora_lab.training.snapshot import RunState, Snapshot, Spectra
from lora_lab_widgets import Workbench
from lora_lab_widgets.message_throttle import MessageThrottle
from tests.helpers.tiny_chat import tiny_chat_model

MOST_A_SECOND, MOST_BYTES = 5, 64 * 1024
R = 64


class Clock:
    """A time that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Wire:
    """What any widget sends, and when by the test's clock."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[tuple[float, str, int]] = []
        open_widget = ipywidgets.Widget.open

        def send(widget: Any, message: Any, buffers: Any = None) -> None:
            if widget.comm is not None:
                self._add(clock.now, type(widget).__name__, message, buffers)

        def opened(widget: Any) -> None:
            before = widget.comm
            open_widget(widget)
            if widget.comm is not before:
                # Its traits, and with them its code: once a widget.
                self._add(clock.now, f"new {type(widget).__name__}", {}, None)

        monkeypatch.setattr(ipywidgets.Widget, "_send", send)
        monkeypatch.setattr(ipywidgets.Widget, "open", opened)

    def _add(self, now: float, who: str, message: Any, buffers: Any) -> None:
        size = len(json.dumps(message).encode()) + sum(memoryview(b).nbytes for b in buffers or ())
        self.messages.append((now, who, size))

    def busiest(self) -> int:
        times = [now for now, _, _ in self.messages]
        return max(sum(t - 1 < other <= t for other in times) for t in times)

    def largest(self) -> tuple[int, str]:
        return max((size, who) for _, who, size in self.messages)


def largest_model(kind: type) -> Any:
    """Return Llama 405B's 126 layers of 7 matrices, without memory behind them."""
    _, tokenizer = tiny_chat_model()
    config = LlamaConfig(
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        vocab_size=len(tokenizer),
        pad_token_id=0,
        num_labels=2,
    )
    with torch.device("meta"):
        return kind(config), tokenizer


class Bench:
    """A workbench on the largest model, and a run that takes a step a millisecond.

    The run is made up: what the trainer would publish comes from here, and W₀ and the factors
    that a look takes are small ones.
    """

    def __init__(self, wb: Workbench, config: Any, clock: Clock) -> None:
        self.wb, self._clock, self._rng = wb, clock, np.random.default_rng(0)
        self.losses = LossHistory()
        self.sites = [site.name for site in wb.anatomy.sites if site.layer is not None]
        wb.session.throttle = MessageThrottle(clock)
        wb.session.live_adapter.factors = self._factors
        wb.session.live_adapter.base_weight = lambda _: W0
        wb.session.run = SimpleNamespace(
            id="run-1", configs=(config,), adapter=None, state=RunState.RUNNING
        )
        wb.delta_w.ranks = dict.fromkeys(self.sites, R)
        self.train(1)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.losses.add(len(self.losses.values) + 1, float(self._rng.random()) / 3)
        step = len(self.losses.values)
        ranks = self._rng.integers(1, R, len(self.sites)).tolist()
        values = np.sort(self._rng.random((len(self.sites), R)).astype(np.float32))[:, ::-1]
        metrics = {f"{name}_before": 1 / 3 for name in ("loss", "accuracy", "matthews")}
        self.wb.run.snapshot = Snapshot(
            run_id="run-1",
            state=RunState.RUNNING,
            phase="training",
            step=step,
            total_steps=1_000_000,
            loss=1 / 3,
            losses=self.losses.points(),
            steps_per_second=1000.0,
            metrics=metrics,
            memory=MemoryReading(10**12 + step, 10**12 + step, "tensor bytes on the CPU"),
            spectra=Spectra(step, dict(zip(self.sites, values, strict=True))),
            ranks=dict(zip(self.sites, ranks, strict=True)),
            version=step,
        )

    def tick(self, width: int = 1340) -> None:
        self.wb.panel._handle({"type": "tick", "seq": "a-1", "theme": "light", "width": width})
        job = self.wb.delta_w._job
        end = time.perf_counter() + 30
        while job.busy and job._outcome is None:  # the look, on its thread
            assert time.perf_counter() < end
            time.sleep(0.001)

    def look_on(self, seconds: float, pace: float) -> None:
        end = self._clock.now + seconds
        while self._clock.now < end:
            self.train(round(pace * 1000))
            self.tick()
            self._clock.now += pace

    def _factors(self, site: str) -> SiteUpdate:
        A, B = self._rng.standard_normal((2, R, 2 * R)).astype(np.float32)
        place = Site(site, site, 0, "q", in_features=2 * R, out_features=2 * R)
        return SiteUpdate(place, LowRankUpdate(A, B.T.copy()), len(self.losses.values))


W0 = np.random.default_rng(1).standard_normal((2 * R, 2 * R)).astype(np.float32)


@pytest.fixture(params=["text", "classes"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    clock = Clock()
    classes = request.param == "classes"
    model = largest_model(LlamaForSequenceClassification if classes else LlamaForCausalLM)
    config = ll.AdaLoraConfig(init_r=R, target_r=R // 2, target_modules="all-linear")
    task = load_task("mini-rating" if classes else "mini-e2e")
    wb = Workbench(*model, task=task, config=config, output_dir=tmp_path)
    monkeypatch.setattr(time, "monotonic", clock)
    yield Bench(wb, config, clock), Wire(clock, monkeypatch)
    monkeypatch.undo()
    ipywidgets.Widget.close_all()


@pytest.mark.parametrize("pace", [0.4, 0.6], ids=["after a command", "while it runs"])
def test_no_more_than_five_messages_a_second_and_none_of_them_large(
    bench: Any, pace: float
) -> None:
    bench, wire = bench
    bench.tick()  # the page opens, and says how wide it is
    wire.messages.clear()
    bench._clock.now += 2
    bench.look_on(30.0, pace)
    assert len(bench.losses.values) > 10_000
    assert wire.busiest() <= MOST_A_SECOND
    assert wire.largest()[0] < MOST_BYTES, wire.largest()
    # Nobody waits for ever: the answers, and each view at its turn.
    told = Counter(who for _, who, _ in wire.messages)
    assert told["RunPanel"] == pytest.approx(30 / pace, abs=1)
    for view in ("SiteMap", "RankGrid", "Savings", "Line", "Plot"):
        assert told[view] >= 3, told


@pytest.mark.parametrize("how", ["button", "cell", "history"])
def test_the_second_in_which_a_run_starts_is_no_exception(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock()
    wb = Workbench(
        *tiny_chat_model(),
        max_steps=4000,
        per_device_train_batch_size=4,
        max_length=96,
        output_dir=tmp_path,
    )
    wb.session.throttle = MessageThrottle(clock)

    def ticks(seconds: float, pace: float) -> None:
        for _ in range(round(seconds / pace)):
            wb.panel._handle({"type": "tick", "seq": "a-1", "theme": "light", "width": 1340})
            time.sleep(0.02)  # of training
            clock.now += pace

    if how == "history":
        wb.start()
        until(lambda: wb.run.snapshot.step > 2)
        wb.run.stop()
        wb.run.wait(60)
        wb.history._handle_custom_msg({"type": "open", "value": True}, [])
        until(lambda: ticks(1, 1.0) or wb.history.form["rows"])
    ticks(10, 1.0)  # the page has opened, and all has been shown
    wire = Wire(clock, monkeypatch)
    first = wb.run
    if how == "button":
        wb.panel._handle({"type": "command", "name": "start", "seq": "a-0", "settings": {}})
    elif how == "cell":
        wb.start()
    else:
        wb.history._handle_custom_msg({"type": "resume", "id": wb.run.id}, [])
        wire.messages.clear()  # the answer to the click
        until(lambda: ticks(1, 1.0) or wb.run is not first)
    clock.now += 0.6  # as run_clock.js does after a command
    awaited = {"RankGrid", "SiteMap", "RunPanel", "Plot"}
    until(lambda: ticks(2, 0.4) or awaited <= {who for _, who, _ in wire.messages})
    wb.run.stop()
    wb.run.wait(60)
    assert wire.busiest() <= MOST_A_SECOND, wire.messages


def until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ranks_painted_on_every_matrix_come_in_small_messages(bench: Any) -> None:
    bench, wire = bench
    grid = bench.wb.grid
    bench.wb.session.run = None  # while one trains nothing can be painted
    bench.wb.config = ll.LoraConfig(r=8, target_modules="all-linear")
    ranks = {cell["site"]: 1 + place % 60 for place, cell in enumerate(grid.cells)}
    wire.messages.clear()
    grid.set_state({"ranks": ranks})  # as the browser sends it
    assert grid.coded_ranks == ranks
    assert wire.largest()[0] < MOST_BYTES, wire.largest()
