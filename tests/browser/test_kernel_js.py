"""What panels show of a kernel that has gone, in Chromium with a fake JupyterLab around them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from lora_lab_widgets import Workbench
from lora_lab_widgets.panel import PanelWidget
from lora_lab_widgets.workbench import PANELS
from tests.browser.esm import EsmPage
from tests.browser.run_panel_page import TRAINING, panel, shown, ticks
from tests.helpers.tiny_chat import tiny_chat_model

pytestmark = pytest.mark.browser
Make = Callable[..., EsmPage]
REMEDY = "this is its last state · run the cell again; your runs are under Runs"
AWAY = "no connection to the kernel: this is its last state, until the connection is back"
CONTROLS = "button, input, select, textarea, [tabindex='0']"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(*tiny_chat_model(), output_dir=tmp_path_factory.mktemp("runs"), max_steps=3)


def drawn_by(bench: Workbench, name: str) -> PanelWidget:
    """Return what draws itself of a panel, as some are boxes of ipywidgets."""
    inner = {"delta_w": bench.delta_w._map, "laboratory": bench.laboratory.panel}
    return inner.get(name, bench.panels[name])  # type: ignore[return-value]


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_says_so_and_is_a_picture_from_then_on(
    bench: Workbench, esm_page: Make, name: str
) -> None:
    esm = esm_page(drawn_by(bench, name))
    view = esm.view()
    text = view.inner_text()
    line = view.locator(".ll-gone")
    expect(line).to_have_count(0)
    esm.kernel("statusChanged", "busy")
    expect(line).to_have_count(0)
    esm.kernel("statusChanged", "restarting")
    expect(line).to_have_text(f"the kernel was restarted: {REMEDY}")
    line.evaluate("node => node.remove()")
    assert view.inner_text() == text, "the last state stays"
    alive = "nodes => nodes.filter(n => !n.closest('[inert]')).length"
    assert view.locator(CONTROLS).evaluate_all(alive) == 0
    late = esm.add_view()  # of the same model, such as a new view of the output
    expect(late.locator(".ll-gone")).to_have_text(f"the kernel was restarted: {REMEDY}")


@pytest.mark.parametrize(
    ("status", "how"),
    [
        ("autorestarting", "the kernel died and was started anew"),
        ("dead", "the kernel died"),
        ("terminating", "the kernel was shut down"),
    ],
)
def test_how_it_went_is_said_once(esm_page: Make, status: str, how: str) -> None:
    esm = esm_page("header", {"chips": ["tiny"], "device": "CPU", "others": ""})
    esm.kernel("kernelChanged", {"oldValue": None, "newValue": {}})  # the first one
    expect(esm.view().locator(".ll-gone")).to_have_count(0)
    esm.kernel("statusChanged", status)
    esm.kernel("statusChanged", "idle")  # another kernel is in its place
    esm.kernel("kernelChanged", {"oldValue": {}, "newValue": None})
    esm.kernel("connectionStatusChanged", "connected")
    expect(esm.view().locator(".ll-gone")).to_have_text(f"{how}: {REMEDY}")


def test_a_kernel_that_died_is_told_by_jupyterlab_as_two(esm_page: Make) -> None:
    esm = esm_page("header", {"chips": ["tiny"], "device": "CPU", "others": ""})
    esm.kernel("statusChanged", "restarting")
    esm.kernel("statusChanged", "autorestarting")
    line = esm.view().locator(".ll-gone")
    expect(line).to_have_text(f"the kernel died and was started anew: {REMEDY}")


def test_another_kernel_in_its_place_is_none_of_the_panels(esm_page: Make) -> None:
    esm = esm_page("header", {"chips": ["tiny"], "device": "CPU", "others": ""})
    esm.kernel("kernelChanged", {"oldValue": {}, "newValue": {}})
    expect(esm.view().locator(".ll-gone")).to_have_text(f"the kernel was shut down: {REMEDY}")


def test_nothing_is_asked_of_a_kernel_that_has_gone(esm_page: Make) -> None:
    esm = esm_page(panel(TRAINING), fresh=True, views=0)
    esm.page.clock.install()
    esm.add_view()
    esm.page.wait_for_function("lab.sent.length > 0")
    esm.kernel("statusChanged", "dead")
    asked = len(ticks(esm))
    esm.page.clock.run_for(60_000)
    assert len(ticks(esm)) == asked
    expect(esm.view().locator(".ll-run-busy")).to_be_hidden()


def test_a_kernel_that_was_busy_as_it_died_is_not_called_busy(esm_page: Make) -> None:
    esm = esm_page(panel(TRAINING), fresh=True, views=0)
    esm.page.clock.install()
    esm.add_view()
    esm.page.wait_for_function("lab.sent.length > 0")
    esm.page.clock.run_for(2_100)
    busy = esm.view().locator(".ll-run-busy")
    expect(busy).to_be_visible()
    esm.kernel("statusChanged", "dead")
    expect(busy).to_be_hidden()
    opacity = "node => getComputedStyle(node).opacity"
    assert esm.view().locator(".ll-run > .ll-card").evaluate(opacity) == "0.75"


def test_a_connection_that_breaks_off_is_told_while_it_is_away(esm_page: Make) -> None:
    esm = esm_page(panel(TRAINING), fresh=True, views=0)
    esm.page.clock.install()
    esm.add_view()
    line = esm.view().locator(".ll-gone")
    esm.kernel("connectionStatusChanged", "connecting")
    esm.page.clock.run_for(1_500)
    expect(line).to_have_count(0)  # mostly it is back by then
    esm.page.clock.run_for(1_000)
    expect(line).to_have_text(AWAY)
    stop = esm.view().get_by_role("button", name="Stop", exact=True)
    stop.click()  # JupyterLab sends it when the connection is back
    esm.kernel("connectionStatusChanged", "connected")
    expect(line).to_have_count(0)
    esm.set(snapshot=shown(TRAINING, step=187))
    expect(esm.view().locator(".ll-run-step")).to_have_text("step 187 / 300")


def test_a_panel_that_goes_listens_to_no_kernel(esm_page: Make) -> None:
    esm = esm_page("header", {"chips": ["tiny"], "device": "CPU", "others": ""})
    esm.remove_view()
    esm.kernel("statusChanged", "dead")
    expect(esm.page.locator(".ll-gone")).to_have_count(0)
