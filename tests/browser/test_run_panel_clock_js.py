"""The heartbeat's clock, in Chromium with a fake model."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.esm import EsmPage
from tests.browser.run_panel_page import TRAINING, Make, panel, shown, ticks

pytestmark = pytest.mark.browser

# The kernel's side of the clock: answers each question 20 ms after it was sent.
ANSWERING = """() => {
  const receive = (seq) => lab.receive({ snapshot: { ...lab.state.snapshot, seq } });
  const answer = (seq) => setTimeout(() => receive(seq), 20);
  const push = lab.sent.push;
  lab.sent.push = function (message) {
    answer(message.seq);
    return push.call(this, message);
  };
  if (lab.sent.length) answer(lab.sent.at(-1).seq);
}"""


@pytest.fixture
def timed(esm_page: Make) -> Make:
    """Return a maker of pages whose clock stands still until a test moves it."""

    def make(*args: Any, views: int = 1, **kwargs: Any) -> EsmPage:
        esm = esm_page(*args, views=0, fresh=True, **kwargs)
        esm.page.clock.install(time=0)
        esm.page.clock.pause_at(60_000)
        for _ in range(views):
            esm.add_view()
        settle(esm)
        return esm

    return make


def settle(esm: EsmPage) -> None:
    """Let the browser report what is in sight (real time), and the page hear of it."""
    for _ in range(3):
        esm.page.clock.run_for(20)
        esm.page.evaluate(
            "() => new Promise(done => { const o = new IntersectionObserver(() => "
            "{ o.disconnect(); done(); }); o.observe(document.body); })"
        )
    esm.page.clock.run_for(20)


def answer(esm: EsmPage, **changes: Any) -> None:
    esm.set(snapshot={**esm.get("snapshot"), "seq": ticks(esm)[-1]["seq"], **changes})


def test_asks_again_only_when_answered(timed: Make) -> None:
    esm = timed(panel(TRAINING), width=700)
    (first,) = ticks(esm)
    assert first == {"type": "tick", "seq": first["seq"], "theme": "light", "width": 680}
    esm.page.clock.run_for(5_000)
    assert len(ticks(esm)) == 1
    esm.set(snapshot=shown(TRAINING, seq="another-page-1"))
    esm.page.clock.run_for(1_000)
    assert len(ticks(esm)) == 1
    answer(esm)
    esm.page.clock.run_for(300)
    assert len(ticks(esm)) == 2
    assert ticks(esm)[1]["seq"] != first["seq"]


def test_asks_again_after_ten_seconds_without_an_answer(timed: Make) -> None:
    esm = timed(panel(TRAINING))
    busy = esm.view().get_by_text("kernel busy")
    expect(busy).to_be_hidden()
    esm.page.clock.run_for(2_100)
    expect(busy).to_be_visible()
    esm.page.clock.run_for(7_500)
    assert len(ticks(esm)) == 1
    esm.page.clock.run_for(600)
    assert len(ticks(esm)) == 2
    answer(esm)
    expect(busy).to_be_hidden()


@pytest.mark.parametrize(
    ("state", "rate", "low", "high"),
    [
        ("running", 20.0, 8, 9),
        ("stopping", 20.0, 8, 9),
        ("running", 2.0, 6, 7),  # slow steps need fewer looks
        ("running", 0.1, 2, 3),
        ("running", None, 8, 9),
        ("idle", None, 4, 6),
        ("paused", 20.0, 4, 6),
        ("done", 20.0, 4, 6),
    ],
)
def test_looks_often_only_while_a_run_goes_on(
    timed: Make, state: str, rate: float | None, low: int, high: int
) -> None:
    esm = timed(panel(), {"snapshot": shown(TRAINING, state=state, rate=rate)})
    esm.page.evaluate(ANSWERING)
    esm.page.clock.run_for(100)
    esm.clear_log()
    esm.page.clock.run_for(5_000)
    assert low <= len(ticks(esm)) <= high


def test_a_resized_page_is_told_of_soon_however_slow_the_steps(timed: Make) -> None:
    esm = timed(panel(), {"snapshot": shown(TRAINING, rate=0.1)}, width=900)
    esm.page.evaluate(ANSWERING)
    esm.page.clock.run_for(2_100)
    esm.clear_log()
    esm.page.set_viewport_size({"width": 700, "height": 800})
    settle(esm)
    esm.page.clock.run_for(420)
    (tick,) = ticks(esm)
    assert 600 < tick["width"] < 700


def test_asks_nothing_while_nobody_looks(timed: Make) -> None:
    esm = timed(panel(), {"snapshot": shown(TRAINING, rate=20.0)})
    esm.page.evaluate(ANSWERING)
    hide = """hidden => {
      const get = () => hidden ? "hidden" : "visible";
      Object.defineProperty(document, "visibilityState", {configurable: true, get});
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    esm.page.evaluate(hide, True)
    esm.clear_log()
    esm.page.clock.run_for(30_000)
    assert ticks(esm) == []
    esm.page.evaluate(hide, False)
    esm.page.clock.run_for(2_500)
    assert len(ticks(esm)) >= 3


def test_a_commands_answer_and_the_ticks_are_three_messages_a_second_at_most(timed: Make) -> None:
    esm = timed(panel(), {"snapshot": shown(None)})
    esm.page.evaluate(ANSWERING)
    esm.page.clock.run_for(2_000)
    esm.page.evaluate(
        """() => {
          const push = lab.sent.push;
          lab.times = [];
          lab.sent.push = function (message) {
            lab.times.push(performance.now());
            return push.call(this, message);
          };
        }"""
    )
    for wait in (3_950, 4_330, 4_710):  # just after a tick, between two, just before one
        esm.page.clock.run_for(wait)
        esm.view().get_by_role("button", name="Start", exact=True).click()
        esm.page.clock.run_for(300)
    esm.page.clock.run_for(3_000)
    times = esm.page.evaluate("() => lab.times")
    assert len(times) > 20
    assert max(sum(t <= other < t + 1000 for other in times) for t in times) == 3


def test_asks_nothing_while_scrolled_away(timed: Make) -> None:
    esm = timed(panel(), {"snapshot": shown(TRAINING, rate=20.0)})
    esm.page.evaluate(ANSWERING)
    esm.page.evaluate("() => { document.body.style.paddingTop = '5000px'; }")
    settle(esm)
    esm.clear_log()
    esm.page.clock.run_for(10_000)
    assert ticks(esm) == []
    esm.page.evaluate("() => window.scrollTo(0, 6000)")
    settle(esm)
    esm.page.clock.run_for(2_500)
    assert len(ticks(esm)) >= 3


@pytest.mark.parametrize("answers", [True, False], ids=["answered", "the kernel is busy"])
def test_a_page_whose_timers_fire_once_a_minute_has_no_backlog(timed: Make, answers: bool) -> None:
    """As browsers do to a page in the background."""
    esm = timed(panel(), {"snapshot": shown(TRAINING, rate=20.0)})
    asked = [ticks(esm)[-1]["seq"]]
    for minute in range(1, 31):
        if answers:
            answer(esm, step=minute)
        esm.clear_log()
        esm.page.clock.fast_forward(60_000)  # every timer that is due fires once
        asked += [tick["seq"] for tick in ticks(esm)]
        assert len(ticks(esm)) <= 1
    assert len(asked) == 31 if answers else 1 < len(asked) <= 31
    esm.clear_log()
    for seq in asked[-1:] if answers else asked:  # a busy kernel gets to them all at last
        esm.set(snapshot={**esm.get("snapshot"), "seq": seq, "step": 299})
    esm.page.clock.run_for(2_500)  # awake: the clock runs as it should
    assert len(ticks(esm)) == 1
    answer(esm, step=300, state="done")
    expect(esm.view().locator(".ll-run-step")).to_have_text("step 300 / 300")


def test_beats_while_any_part_of_its_workbench_is_in_sight(timed: Make) -> None:
    esm = timed(panel(TRAINING), views=0, width=900)
    esm.page.evaluate(
        """async () => {
          const index = await lab.addView();
          const bench = document.createElement("div");
          bench.className = "ll-workbench";
          bench.style = "padding: 5000px 30px 0 20px; width: 800px; box-sizing: border-box";
          bench.append(document.querySelector(`[data-view="${index}"]`));
          document.body.append(bench);
        }"""
    )
    settle(esm)
    assert ticks(esm)[0]["width"] == 750  # the room inside the workbench's padding


def test_two_views_share_one_clock_and_agree(timed: Make) -> None:
    esm = timed(panel(TRAINING), views=2)
    assert len(ticks(esm)) == 1
    answer(esm, step=187, rate=20.0)
    for i in (0, 1):
        expect(esm.view(i).locator(".ll-run-step")).to_have_text("step 187 / 300")
    esm.page.evaluate(ANSWERING)
    esm.remove_view(0, by="signal")
    esm.clear_log()
    esm.page.clock.run_for(3_000)
    assert 4 <= len(ticks(esm)) <= 6
    esm.remove_view(1)
    esm.clear_log()
    esm.page.clock.run_for(20_000)
    assert esm.sent() == []
    assert esm.open_ends()["model"] == esm.open_ends()["document"] == 0


def test_tells_the_theme_it_sees(timed: Make) -> None:
    esm = timed(panel(TRAINING), theme="dark")
    assert ticks(esm)[0]["theme"] == "dark"
