"""Widgets that the page's own libraries have given up are on show again, and live."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.bench_page import button, live_on, show, wait_for_state
from tests.browser.lab import JupyterLab
from tests.browser.line import Line

# The renderers of outputs sleep 100 ms between looks for their model, for two seconds in all. What
# the kernel says of its widgets, the first large message, comes when both of them sleep. A sleep is
# known by where it is asked for: others of the page sleep as long.
PARK = """
const set = window.setTimeout, parked = [];
window.setTimeout = (act, ms, ...more) => {
    if (ms !== 100 || !Error().stack.includes("get_model")) return set(act, ms, ...more);
    parked.push(() => act(...more));
    return 0;
};
window.release = () => {
    const now = Date.now;
    Date.now = () => now() + 2_000;
    window.setTimeout = set;
    for (const act of parked) act();
};
const heard = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage");
const asleep = (done) => parked.length < 2 ? set(asleep, 10, done) : done();
Object.defineProperty(WebSocket.prototype, "onmessage", { ...heard, set(act) {
    let line = null;
    heard.set.call(this, act && ((event) => {
        if (!line && !(event.data.byteLength > 200_000)) return act(event);
        line = (line ?? new Promise(asleep)).then(() => act(event));
    }));
} });
"""
HAVE_COME = """async () => {
    const kind = "application/vnd.jupyter.widget-view+json";
    const { content } = jupyterapp.shell.currentWidget;
    const manager = await content.rendermime.createRenderer(kind)._manager.promise;
    const output = content.widgets[0].model.outputs.toJSON().find(({ data }) => data?.[kind]);
    while (!manager.restoredStatus || !manager.has_model(output.data[kind].model_id)) {
        await new Promise(requestAnimationFrame);
    }
}"""
SEEN = """
window.seen = new Set();
new MutationObserver((records) => {  // what has gone again by now, too
    for (const { addedNodes } of records) for (const { textContent } of addedNodes)
        seen.add(textContent);
}).observe(document, { subtree: true, childList: true });
"""
CONNECTED = """wanted => {
    const { kernel } = jupyterapp.shell.currentWidget.sessionContext.session;
    return (kernel.connectionStatus === "connected") === wanted;
}"""
# A module is asked for, and anywidget's two seconds are over before it has come.
LATE_MODULES = """
const timeout = AbortSignal.timeout;
AbortSignal.timeout = (ms) => timeout.call(AbortSignal, ms === 2_000 ? 0 : ms);
"""


@pytest.mark.browser
def test_an_output_whose_model_came_in_the_last_moment_is_shown_again(
    lab: JupyterLab, page: Page
) -> None:
    notebook = show(lab, page, "wb", steps=100_000, hurries=True)
    notebook.run(1)
    button(page, "Start").click()
    wait_for_state(page, "running")
    notebook.save()
    page.add_init_script(SEEN + PARK)
    page.reload()
    notebook.wait_until_ready()
    page.evaluate(HAVE_COME)
    page.evaluate("release()")
    expect(page.locator(".ll-workbench")).to_have_count(2)
    assert page.evaluate("seen.has('Error displaying widget: model not found')"), "nothing was lost"
    live_on(page)
    expect(page.locator(".ll-delta-spectrum .js-plotly-plot").first).to_be_visible()
    assert not page.evaluate("jupyterapp.shell.currentWidget.context.model.dirty")
    button(page, "Stop").click()
    for state in page.locator(".ll-run").all():
        expect(state).to_have_attribute("data-ll-state", "done")
    page.close()


@pytest.mark.browser
def test_a_panel_whose_module_came_late_hears_the_run(lab: JupyterLab, page: Page) -> None:
    page.add_init_script(LATE_MODULES)
    show(lab, page, steps=100_000)
    button(page, "Start").click()
    wait_for_state(page, "running")
    live_on(page)
    expect(page.locator(".ll-delta-spectrum .js-plotly-plot").first).to_be_visible()
    page.close()


@pytest.mark.browser
def test_a_second_tab_has_the_bench_and_so_it_has_after_its_lid_was_closed(
    lab: JupyterLab, page: Page
) -> None:
    notebook = show(lab, page, steps=100_000)
    button(page, "Start").click()
    wait_for_state(page, "running")
    notebook.save()
    other = page.context.new_page()
    other.on("dialog", lambda dialog: dialog.accept())
    # JupyterLab says that its server is not to be reached, if it asked while the line was cut.
    other.add_locator_handler(
        other.locator("dialog.jp-Dialog"), lambda said: said.get_by_role("button").last.click()
    )
    with Line(lab.port) as line:
        lab.visit(other, "test.ipynb", line.port)
        expect(other.locator(".ll-workbench")).to_be_visible(timeout=120_000)
        live_on(other)
        live_on(page)
        line.cut()
        other.wait_for_function(CONNECTED, arg=False)
        line.mend()
        other.wait_for_function(CONNECTED, arg=True, timeout=120_000)
        live_on(other)
        button(other, "Stop").click()
        for each in (page, other):
            wait_for_state(each, "done")
    other.close()
