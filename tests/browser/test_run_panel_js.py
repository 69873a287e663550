"""The run's controls and the loss chart, in Chromium with a fake model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import expect

from lora_lab.budget.reading import MemoryReading
from lora_lab.training.snapshot import Failure, RunState, Snapshot
from tests.browser.run_panel_page import TRAINING, Make, panel, shown

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("state", "primary", "primary_on", "stop_on"),
    [
        ("idle", "Start", True, False),
        ("running", "Pause", True, True),
        ("pausing", "Pause", False, True),
        ("paused", "Resume", True, True),
        ("stopping", "Pause", False, False),
        ("done", "Start", True, False),
        ("failed", "Start", True, False),
    ],
)
def test_each_state_offers_what_can_be_done(
    esm_page: Make, state: str, primary: str, primary_on: bool, stop_on: bool
) -> None:
    esm = esm_page(panel(), {"snapshot": shown(TRAINING, state=state)})
    view = esm.view()
    expect(view.locator(".ll-run")).to_have_attribute("data-ll-state", state)
    button = view.get_by_role("button", name=primary)
    stop = view.get_by_role("button", name="Stop", exact=True)
    assert (button.is_enabled(), stop.is_enabled()) == (primary_on, stop_on)
    running = state in ("running", "pausing", "paused", "stopping")
    assert view.get_by_role("textbox", name="seed").is_disabled() is running
    for wanted, each in ((primary_on, button), (stop_on, stop)):
        if wanted:
            esm.clear_log()
            each.click()
            (command,) = [m for m in esm.sent() if m["type"] == "command"]
            assert command["name"] == (primary.lower() if each is button else "stop")
            assert command["seq"]


def test_start_sends_the_settings_as_typed(esm_page: Make) -> None:
    esm = esm_page(panel())
    view = esm.view()
    view.get_by_role("textbox", name="steps").fill("40")
    view.get_by_role("textbox", name="learning rate").fill("5e-4")
    view.get_by_role("textbox", name="dropout").fill("some")
    view.get_by_label("task").select_option("mini-sql")
    view.get_by_role("button", name="Start", exact=True).click()
    changes = [m["settings"] for m in esm.sent() if m["type"] == "settings"]
    assert len(changes) == 4
    for change in (
        {"max_steps": 40},
        {"learning_rate": 5e-4},
        {"lora_dropout": "some"},
        {"task": "mini-sql"},
    ):
        assert change in changes
    (start,) = [m for m in esm.sent() if m["type"] == "command"]
    assert start["settings"] == {
        **panel().settings,
        "max_steps": 40,
        "learning_rate": 5e-4,
        "lora_dropout": "some",
        "task": "mini-sql",
    }
    assert esm.saves() == []  # Python alone writes traits


def test_start_brings_along_the_ranks_that_the_page_shows(esm_page: Make) -> None:
    esm = esm_page(panel(bench="b1"))
    start = esm.view().get_by_role("button", name="Start", exact=True)
    start.click()
    esm.page.evaluate(
        """() => globalThis[Symbol.for("lora-lab:grids")]
          .set("b2", { ranks: { "layers.0.q": 4 } }).set("b1", { ranks: { "layers.0.v": 2 } })"""
    )
    start.click()
    esm.view().get_by_role("button", name="Take it to a cluster").click()
    commands = [m for m in esm.sent() if m["type"] == "command"]
    assert [c.get("ranks") for c in commands] == [None, {"layers.0.v": 2}, {"layers.0.v": 2}]


def test_settings_agree_in_two_views_and_stay_as_typed_under_the_hand(esm_page: Make) -> None:
    esm = esm_page(panel(), views=2)
    first, second = (
        esm.view(0).get_by_role("textbox", name="steps"),
        esm.view(1).get_by_role("textbox", name="steps"),
    )
    first.fill("55")
    first.press("Enter")
    expect(second).to_have_value("55")
    first.press_sequentially("0")
    esm.set(settings={**esm.get("settings"), "seed": 3})
    expect(first).to_have_value("550")
    expect(esm.view(0).get_by_role("textbox", name="seed")).to_have_value("3")


def test_a_queued_run_says_behind_which_one_and_only_stop_is_offered(esm_page: Make) -> None:
    queued = Snapshot("run-2", RunState.QUEUED, phase="queued behind run run-1", total_steps=60)
    esm = esm_page(panel(), {"snapshot": shown(queued)})
    view = esm.view()
    expect(view.locator(".ll-run-phase")).to_have_text("queued behind run run-1")
    for name in ("Start", "Pause", "Resume"):
        expect(view.get_by_role("button", name=name, exact=True)).to_have_count(0)
    expect(view.get_by_role("textbox", name="steps")).to_be_disabled()
    esm.clear_log()
    view.get_by_role("button", name="Stop", exact=True).click()
    assert [m["name"] for m in esm.sent() if m["type"] == "command"] == ["stop"]
    esm.set(snapshot=shown(TRAINING))
    expect(view.get_by_role("button", name="Pause", exact=True)).to_be_visible()


def test_one_click_takes_what_would_have_fitted(esm_page: Make) -> None:
    words = "per_device_train_batch_size=4 with gradient_accumulation_steps=2"
    problem = {"message": "out of memory", "remedy": "", "details": "", "field": ""}
    esm = esm_page(panel(), {"snapshot": shown(None, problem={**problem, "proposal": words})})
    esm.clear_log()
    offer = esm.view().get_by_role("button", name=f"Take {words}")
    offer.click()
    expect(offer).to_be_disabled()
    assert [m["name"] for m in esm.sent() if m["type"] == "command"] == ["take"]
    taken = {**problem, "proposal": "", "remedy": "press Start"}
    esm.set(snapshot=shown(None, problem=taken, seq="x-1"))
    expect(esm.view().get_by_role("alert").get_by_role("button")).to_be_hidden()


def test_the_run_file_and_its_commands_are_shown_and_copied(esm_page: Make) -> None:
    esm = esm_page(panel())
    view = esm.view()
    expect(view.get_by_text("wrote")).to_have_count(0)
    esm.clear_log()
    view.get_by_role("textbox", name="steps").fill("7")
    view.get_by_role("button", name="Take it to a cluster").click()
    asked = next(m for m in esm.sent() if m["type"] == "command")
    assert (asked["name"], asked["settings"]["max_steps"]) == ("run_file", 7)
    command = "torchrun --nproc_per_node gpu -m lora_lab train run.yaml"
    esm.set(run_file={"path": "/a/run.yaml", "commands": [{"text": command, "hint": "on many"}]})
    expect(view.get_by_text("wrote /a/run.yaml")).to_be_visible()
    view.get_by_role("button", name=f"copy {command}").click()
    assert esm.page.evaluate("() => navigator.clipboard.readText()") == command
    view.locator(".ll-run-file").get_by_role("button", name="Close").click()
    expect(view.get_by_text("wrote /a/run.yaml")).to_be_hidden()


def test_problem_is_text_and_blames_its_field(esm_page: Make) -> None:
    evil = '<img src=x onerror="window.hacked = true">'
    problem = {"message": evil, "remedy": evil, "details": evil, "field": "learning_rate"}
    esm = esm_page(panel(), {"snapshot": shown(None, problem=problem)})
    view = esm.view()
    strip = view.get_by_role("alert")
    expect(strip.locator("b")).to_have_text(evil)
    assert strip.locator("img").count() == 0
    assert esm.page.evaluate("() => window.hacked") is None
    expect(view.get_by_role("textbox", name="learning rate")).to_have_attribute(
        "aria-invalid", "true"
    )
    strip.get_by_text("details").click()
    expect(strip.locator("pre")).to_be_visible()
    esm.set(snapshot=shown(None, problem=problem, seq="x-1"))
    expect(strip.locator("pre")).to_be_visible()  # a tick does not close it
    esm.set(snapshot=shown(None, seq="x-2"))
    expect(strip).to_be_hidden()
    assert view.locator("[aria-invalid]").count() == 0


def test_failed_run_says_what_to_try(esm_page: Make) -> None:
    failed = Snapshot("run-1", RunState.FAILED, failure=Failure("out of memory", "try batch 4"))
    esm = esm_page(panel(failed))
    expect(esm.view().get_by_role("alert")).to_contain_text("out of memory")
    expect(esm.view().get_by_role("alert")).to_contain_text("try batch 4")
    expect(esm.view().get_by_text("details")).to_be_hidden()


def test_steps_that_float16_skipped_are_shown(esm_page: Make) -> None:
    step = esm_page(panel(replace(TRAINING, skipped_steps=2))).view().locator(".ll-run-step")
    expect(step).to_have_text("step 186 / 300, 2 skipped")
    expect(step).to_have_attribute(
        "title", "gradients overflowed float16; the loss scale was halved"
    )


def test_each_device_of_a_model_that_is_spread_has_a_line(esm_page: Make) -> None:
    memory = MemoryReading(
        *(4 << 30, 6 << 30, "CUDA memory"),
        devices=(("cuda:0", 3 << 30, 4 << 30), ("cuda:1", 1 << 30, 2 << 30)),
    )
    esm = esm_page(panel(replace(TRAINING, memory=memory)))
    lines = esm.view().get_by_role("list", name="memory by device").get_by_role("listitem")
    expect(lines).to_have_text(
        ["cuda:03 GiB now · 4 GiB at its peak", "cuda:11 GiB now · 2 GiB at its peak"]
    )
    widths = lines.locator("i").evaluate_all("bars => bars.map(i => i.style.width)")
    assert widths == ["100%", "75%", "50%", "25%"]  # peak and now, of the largest peak
    esm.set(snapshot=shown(TRAINING, seq="later"))
    expect(esm.view().get_by_role("list", name="memory by device")).to_be_hidden()


def test_a_new_view_shows_the_run_at_once(esm_page: Make) -> None:
    view = esm_page(panel(TRAINING)).view()
    expect(view.locator(".ll-run-step")).to_have_text("step 186 / 300")
    expect(view.locator(".ll-run-time")).to_have_text("37 s left")
    expect(view.locator(".ll-run-rate")).to_have_text("2.1 steps/s")
    expect(view.locator(".ll-run-padding")).to_have_text("4 % padding")
    expect(view.locator(".ll-run-loss")).to_have_text("this step's loss 1.42")
    expect(view.locator(".ll-run-metrics")).to_have_text("BLEU (cased) 12.1 → 38.2")
    sure = "scored on 16 of 4,672 held-out examples; 95 % intervals: BLEU (cased) 30.2 to 44.6"
    expect(view.locator(".ll-run-sureness")).to_have_text(sure)
    expect(view.locator(".ll-run-phase")).to_have_text("training")
    expect(view.get_by_text("1.25 GiB")).to_have_count(0)  # the savings say it
    bar = view.get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuenow", "186")
    expect(bar).to_have_attribute("aria-valuemax", "300")
    assert bar.locator("i").evaluate("i => i.style.width") == "62%"
    expect(view.get_by_role("status")).to_have_text("run: training")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.4, "59 s left"), (200, "3 min 20 s left"), (3900, "1 h 05 min left")],
)
def test_times_are_readable(esm_page: Make, seconds: float, text: str) -> None:
    esm = esm_page(panel(), {"snapshot": shown(TRAINING, eta=seconds)})
    expect(esm.view().locator(".ll-run-time")).to_have_text(text)


def test_chart_draws_every_point_with_labelled_axes(esm_page: Make) -> None:
    esm = esm_page(panel(TRAINING), width=700)
    chart = esm.view().locator("svg.ll-loss")
    points = chart.locator(".ll-loss-raw").get_attribute("d") or ""
    xy = [tuple(map(float, p.removesuffix("h0").split(","))) for p in points.split("M")[1:]]
    assert len(xy) == 186
    assert [x for x, _ in xy] == sorted(x for x, _ in xy)
    assert [y for _, y in xy] == sorted(y for _, y in xy)  # down the page as the loss falls
    texts = chart.locator("text").all_inner_texts()
    labels = chart.locator("text").evaluate_all("all => all.map(t => t.textContent)")
    assert texts is not None
    assert "training loss, nats per token · squares held-out" in labels
    assert {"step", "0", "100", "200", "300"} <= set(labels)
    assert {"1", "2", "3", "4"} <= set(labels)
    # Half of the steps lie left of the middle between the ticks of 0 and 300.
    at = {
        text: chart.locator("text", has_text=text).first.get_attribute("x")
        for text in ("100", "200")
    }
    hundred, two_hundred = float(at["100"] or 0), float(at["200"] or 0)
    assert xy[99][0] == pytest.approx(hundred, abs=0.1)
    assert xy[149][0] == pytest.approx((hundred + two_hundred) / 2, abs=0.1)


def test_chart_says_what_is_under_the_pointer_and_in_a_table(esm_page: Make) -> None:
    esm = esm_page(panel(TRAINING), width=700)
    chart = esm.view().locator("svg.ll-loss")
    chart.hover(position={"x": 1, "y": 60})
    expect(chart.get_by_text("step 1: training loss 3.80, smoothed 3.80")).to_be_attached()
    rows = esm.view().locator("table tbody tr")
    assert 10 <= rows.count() <= 20
    expect(rows.last.locator("td")).to_have_text(["186", "1.30"])


def test_held_out_losses_and_the_rates_way_stand_in_the_chart(esm_page: Make) -> None:
    made = panel()
    made.plan = {**made.plan, "schedule": [[1, 0.0], [15, 1.0], [300, 0.0]]}
    esm = esm_page(made, {"snapshot": shown(TRAINING)})
    view = esm.view()
    marks = view.locator(".ll-loss-held-marks").get_attribute("d") or ""
    assert marks.count("M") == 3
    assert (view.locator(".ll-loss-rates").get_attribute("d") or "").count("L") == 2
    assert (
        view.locator(".ll-run-held").inner_text() == "held-out loss 1.63 at step 180, best at 120"
    )
    title = view.locator("svg.ll-loss text").first.text_content()
    assert "squares held-out · dashes learning rate" in (title or "")
    kept = {"label": "kept loss", "before": 2.1, "after": None, "now": 2.346}
    esm.set(snapshot=shown(TRAINING, metrics=[kept]))
    expect(view.locator(".ll-run-metrics")).to_have_text("kept loss 2.10 → 2.35 now")
    scores = [{"label": name, "before": 6.06, "after": None} for name in ("loss", "BLEU")]
    esm.set(snapshot=shown(TRAINING, metrics=[*scores, kept]))
    words = "kept loss 2.10 → 2.35 now · base model: loss 6.06 · BLEU 6.06"
    expect(view.locator(".ll-run-metrics")).to_have_text(words)
    esm.set(snapshot=shown(TRAINING, held_out=[], total_steps=77))
    assert view.locator(".ll-loss-held-marks").get_attribute("d") == ""
    assert view.locator(".ll-loss-rates").get_attribute("d") == "", "of another number of steps"
    assert view.locator(".ll-run-held").inner_text() == ""


def test_losses_that_are_no_number_leave_a_gap(esm_page: Make) -> None:
    losses = [[1, 2.0, 2.0], [2, None, 2.0], [3, 2.0, 2.0]]
    esm = esm_page(panel(), {"snapshot": shown(TRAINING, losses=losses, loss=None)})
    path = esm.view().locator(".ll-loss-raw").get_attribute("d") or ""
    assert path.count("M") == 2
    assert "NaN" not in path
    esm.set(snapshot=shown(TRAINING, losses=[[1, None, None]], loss=None))
    assert esm.view().locator(".ll-loss-raw").get_attribute("d") == ""


def test_nothing_moves_when_numbers_change_width(esm_page: Make) -> None:
    esm = esm_page(panel(TRAINING), width=700)

    def boxes() -> list[Any]:
        stats = ".ll-run-time, .ll-run-rate, .ll-run-padding, .ll-run-loss, .ll-run-metrics"
        places = f"{stats}, svg.ll-loss, button"
        return (
            esm.view()
            .locator(places)
            .evaluate_all(
                "all => all.map(n => [n.getBoundingClientRect().x, n.getBoundingClientRect().y])"
            )
        )

    before = boxes()
    esm.set(snapshot=shown(TRAINING, step=7, eta=4.0, rate=11.9, loss=12.34, state="paused"))
    assert boxes() == before


@pytest.mark.parametrize("width", [360, 430, 600, 1000])
def test_fits_every_width(esm_page: Make, width: int) -> None:
    problem = {"message": "m " * 40, "remedy": "r" * 300, "details": "d" * 900, "field": ""}
    esm = esm_page(panel(), {"snapshot": shown(TRAINING, problem=problem)}, width=width, height=300)
    root = esm.view().locator(".ll-run")
    wide, high, real = esm.page.evaluate(
        "() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight, "
        "document.querySelector('.ll-run').getBoundingClientRect().bottom]"
    )
    assert wide <= width
    assert high <= real + 20  # nothing hidden makes the page longer
    drawn = root.locator("svg.ll-loss").bounding_box()
    assert drawn is not None
    assert drawn["width"] > 0.8 * (width - 60)


def test_keys_stay_out_of_the_notebook(esm_page: Make) -> None:
    esm = esm_page(panel())
    esm.page.evaluate(
        "() => { window.keys = []; document.addEventListener('keydown', e => keys.push(e.key)); }"
    )
    esm.view().get_by_role("textbox", name="steps").press("x")
    assert esm.page.evaluate("() => keys") == []


def test_a_run_that_was_stopped_is_called_so(esm_page: Make) -> None:
    esm = esm_page(panel(), {"snapshot": shown(TRAINING, state="done")})
    phase, lamp = esm.view().locator(".ll-run-phase"), esm.view().locator(".ll-run-lamp")
    color = "node => getComputedStyle(node).backgroundColor"
    expect(phase).to_have_text("stopped")
    stopped = lamp.evaluate(color)
    esm.set(snapshot=shown(TRAINING, state="done", step=TRAINING.total_steps))
    expect(phase).to_have_text("done")
    assert lamp.evaluate(color) != stopped


def test_a_run_that_goes_on_is_not_asked_to_be_started(esm_page: Make) -> None:
    esm = esm_page(panel())
    note = esm.view().locator(".ll-loss-note")
    expect(note).to_have_text("the loss shows here, step by step: press Start")
    esm.set(snapshot=shown(TRAINING, losses=[], step=0))
    expect(note).to_have_text("the loss shows here, step by step")
    esm.set(snapshot=shown(TRAINING, losses=[], step=0, state="done"))
    expect(note).to_have_text("the loss shows here, step by step: press Start")


def test_when_a_run_is_over_it_leads_to_what_can_be_done_with_it(esm_page: Make) -> None:
    esm = esm_page(panel())
    esm.page.evaluate(
        """() => {
            const bench = document.createElement("div");
            bench.className = "ll-workbench";
            const view = document.querySelector("[data-view]");
            view.before(bench);
            const keep = document.createElement("section");
            keep.className = "ll-keep";
            keep.innerHTML = "<button hidden>Back</button><select><option>PEFT</option></select>";
            bench.append(view, keep);
        }"""
    )
    save = esm.view().get_by_role("button", name="save it")
    esm.set(snapshot=shown(TRAINING))
    expect(esm.view().locator(".ll-run")).to_have_attribute("data-ll-state", "running")
    expect(save).to_have_count(0)
    esm.set(snapshot=shown(TRAINING, state="done"))
    expect(esm.view().get_by_role("button", name="try it")).to_have_count(0)  # no such panel here
    expect(esm.view().get_by_role("button", name="Keep…")).to_have_count(0)  # one way there
    esm.clear_log()
    save.click()
    expect(esm.page.locator(".ll-keep select")).to_be_focused()
    assert [m["name"] for m in esm.sent()] == ["keep"], "the panel is to show this run's"
