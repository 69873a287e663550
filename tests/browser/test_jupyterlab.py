"""The workbench in a real JupyterLab: what a newcomer does, from painting to a saved adapter."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browser.bench_page import button, live_on, show, wait_for_state, wait_for_step
from tests.browser.lab import JupyterLab, busy_until, small_bench
from tests.helpers.tiny_run import until

REAL = """\
from lora_lab_widgets import Workbench
few = dict(max_steps=8, per_device_train_batch_size=2, eval_examples=2, kept_texts=0)
wb = Workbench("smollm2-135m", learning_rate=3e-3, **few)
wb"""


@pytest.mark.browser
@pytest.mark.usefixtures("fresh_kernel")
def test_the_panel_lives_from_the_first_after_run_all(lab, page):
    """The next cell is at work before the page has said a word; ipykernel must not mind."""
    cells = [
        small_bench(100_000),
        "wb.start(); wb.run.result(); print(wb.run.snapshot.step, wb.delta_w.selected)",
    ]
    notebook = lab.open(page, cells)
    notebook.start_all()
    wait_for_state(page, "running", seconds=120)
    live_on(page)
    assert not notebook.outputs(1), "the cell waits for the run"
    expect(page.locator(".ll-delta-spectrum .js-plotly-plot").first).to_be_visible()
    page.locator(".widget-dropdown select").first.select_option("layer 1 · v")
    expect(page.locator(".ll-map-caption").first).to_contain_text("layer 1 · v")
    button(page, "Stop").click()
    wait_for_state(page, "done")
    notebook.wait_for(1)
    step, site = notebook.output(1).split()
    assert 0 < int(step) < 100_000
    assert site == "model.layers.1.self_attn.v_proj", "chosen while the cell was at work"


@pytest.mark.browser
@pytest.mark.real_model
@pytest.mark.timeout(1200)  # a real model's steps, on whatever machine
def test_from_paint_to_an_adapter_that_peft_loads(lab, page, tmp_path):
    """Paint → start → loss falls → ΔW shown → save → PEFT gives the same logits."""
    check = f"""\
import json, copy, torch, lora_lab as ll
from peft import PeftModel
wb.save({str(tmp_path / "adapter")!r})
ids = wb.lm.tokenizer("name[Blue Spice], area[riverside]", return_tensors="pt")
model = wb.lm.model.eval()
with torch.no_grad():
    ours = model(**ids).logits
    base = ll.load_model("smollm2-135m").model.eval()
    bare = base(**ids).logits
    theirs = PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r})(**ids).logits
print(json.dumps({{
    "apart": float((ours - theirs).abs().max()), "moved": float((ours - bare).abs().max()),
    "losses": [loss for _, loss in wb.run.losses], "ranks": len(wb.grid.ranks),
    "down": wb.config.to_dict()["rank_pattern"], "metrics": wb.run.result().metrics}}))"""
    notebook = lab.open(page, [REAL, check])
    notebook.run(0, seconds=600)
    grid = page.get_by_role("grid").first
    before = page.locator(".ll-savings").first.inner_text()
    grid.get_by_role("columnheader", name="down").click()
    cells = grid.get_by_role("gridcell")
    expect(cells.filter(has_text="8").first).to_be_visible()
    assert page.locator(".ll-savings").first.inner_text() != before, "the price moves with paint"

    button(page, "Start").click()
    wait_for_state(page, "running", seconds=300)
    expect(page.locator(".ll-delta-spectrum .js-plotly-plot").first).to_be_visible(timeout=600_000)
    wait_for_state(page, "done", seconds=600)
    notebook.run(1, seconds=300)
    printed = notebook.output(1).splitlines()  # PEFT and transformers warn beside it
    seen = json.loads(next(line for line in printed if line.startswith("{")))
    assert seen["apart"] < 1e-3 < 0.1 < seen["moved"]
    assert seen["ranks"] == 90
    assert sum(seen["losses"][-3:]) < sum(seen["losses"][:3])
    assert seen["metrics"]["loss_after"] < seen["metrics"]["loss_before"]


@pytest.mark.browser
def test_a_busy_cell_runs_and_stop_still_stops(lab, page):
    notebook = show(lab, page, busy_until("stopped"), steps=100_000)
    button(page, "Start").click()
    wait_for_state(page, "running")
    wait_for_step(page, 1)
    notebook.start(1)
    live_on(page)
    button(page, "Pause").click()
    wait_for_state(page, "paused")
    button(page, "Resume").click()
    wait_for_state(page, "running")
    button(page, "Stop").click()
    wait_for_state(page, "done")
    assert not notebook.outputs(1), "the cell is still at work"
    (lab.folder / "stopped").touch()
    notebook.wait_for(1)
    assert notebook.output(1) == "ran to its end"


@pytest.mark.browser
def test_shown_twice_and_after_a_reload_every_view_says_the_same(lab, page):
    notebook = show(lab, page, "wb", steps=100_000, hurries=True)
    notebook.run(1)
    expect(page.locator(".ll-workbench")).to_have_count(2)
    button(page, "clear").click()
    for grid in page.get_by_role("grid").all():
        expect(grid.get_by_role("gridcell").filter(has_text=re.compile(r"^\d+$"))).to_have_count(0)
    page.locator(".ll-workbench").nth(1).get_by_role("button", name="all linear").click()
    button(page, "Start").click()
    wait_for_state(page, "running")
    states = page.locator(".ll-run")
    expect(states.nth(1)).to_have_attribute("data-ll-state", re.compile("running"))

    notebook.save()
    page.reload()
    notebook.wait_until_ready()
    expect(page.locator(".ll-workbench").first).to_be_visible(timeout=60_000)
    wait_for_state(page, "running")
    live_on(page)
    button(page, "Stop").click()
    wait_for_state(page, "done")
    for state in states.all():
        expect(state).to_have_attribute("data-ll-state", "done")


@pytest.mark.browser
def test_another_method_one_drop_down(lab, page):
    """BitFit on a model without biases: refused at once, mended, trained; then AdaLoRA's ranks."""
    notebook = show(lab, page, "wb.config, wb.run.adapter.method", steps=12)
    chooser = page.get_by_role("combobox", name="method").first
    line = page.locator(".ll-method-line").first
    chooser.select_option("BitFit")
    expect(line).to_contain_text("tick “new zero biases”")
    expect(page.locator(".ll-ranks").first).to_contain_text("the grid is LoRA's")
    page.get_by_role("checkbox", name="new zero biases").first.check()
    expect(line).to_have_text("the bias vectors are trained, nothing else")
    button(page, "Start").click()
    wait_for_state(page, "done", seconds=120)
    expect(page.get_by_text("BitFit has no low-rank ΔW").first).to_be_visible()
    notebook.run(1)
    assert notebook.output(1) == "(BitFitConfig(new_biases=True), 'BitFit')"

    chooser.select_option("AdaLoRA")
    expect(page.get_by_role("textbox", name="init_r").first).to_have_attribute("placeholder", "12")
    button(page, "Start").click()
    expect(page.locator(".ll-rank-live").first).to_have_text(
        "final ranks, step 12, budget 64 of 96", timeout=120_000
    )
    cells = page.get_by_role("grid").first.get_by_role("gridcell").all_inner_texts()
    assert sum(int(text) for text in cells if text.strip()) == 64


@pytest.mark.browser
def test_settings_that_cannot_work_are_said_in_the_strip(lab, page):
    show(lab, page)
    button(page, "clear").click()
    button(page, "Start").click()
    strip = page.locator(".ll-workbench").first.get_by_role("alert").filter(has_text="rank")
    expect(strip.first).to_contain_text("no rank is painted; give at least one matrix a rank")


@pytest.mark.browser
def test_start_trains_what_the_page_shows_also_beside_a_busy_cell(lab, page):
    """What was painted may wait for a busy kernel; Start brings it along."""
    trained = "wb.run.config.r, wb.run.config.target_modules, wb.grid.summary()"
    notebook = show(lab, page, busy_until("trained"), trained)
    notebook.start(1)
    expect(notebook.cell(1)).to_contain_text("[*]")
    button(page, "clear").click()
    button(page, "Start").click()
    strip = page.locator(".ll-workbench").first.get_by_role("alert").filter(has_text="rank")
    expect(strip.first).to_contain_text("no rank is painted")
    page.get_by_role("columnheader", name="down").first.click()
    page.keyboard.press("2")
    button(page, "Start").click()
    wait_for_state(page, "running")
    assert "[*]" in notebook.cell(1).inner_text()
    (lab.folder / "trained").touch()
    notebook.wait_for(1)
    notebook.run(2)
    assert notebook.output(2) == "(2, ('down',), '4 of 28 matrices, r 2')"


@pytest.mark.browser
def test_base_and_adapted_answers_stand_side_by_side(lab, page):
    notebook = show(lab, page, "wb.try_it.answers", steps=30)
    button(page, "Start").click()
    wait_for_state(page, "done", seconds=120)
    page.get_by_role("button", name="Compare", exact=True).first.click()
    answer = page.get_by_role("region", name="answer of the adapted model").first
    done = page.locator(".ll-try[data-ll-state=done]").first
    expect(done).to_be_visible(timeout=60_000)
    expect(answer).not_to_be_empty()
    notebook.run(1)
    answers = eval(notebook.output(1))
    assert answers["adapted"] is not None
    assert answers["prompt"]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1000, 600])
def test_nothing_is_wider_than_its_place(lab, page, width):
    show(lab, page)
    page.set_viewport_size({"width": width + 60, "height": 1000})
    page.evaluate("jupyterapp.shell.collapseLeft()")
    page.wait_for_timeout(1_000)
    overflow = page.evaluate(
        """() => {
            const bench = document.querySelector(".ll-workbench");
            const edge = bench.getBoundingClientRect().right + 1;
            return [...bench.querySelectorAll("*")]
                .filter(n => n.getBoundingClientRect().width && !n.closest(".js-plotly-plot"))
                .filter(n => !n.closest("[class*=hidden], [class*=sr-only]"))
                .filter(n => n.getBoundingClientRect().right > edge)
                .map(n => n.className?.toString() || n.tagName).slice(0, 5);
        }"""
    )
    assert overflow == []


@pytest.mark.browser
def test_closing_the_page_stalls_nothing(lab, page, chromium):
    notebook = show(lab, page, "wb.run.snapshot.step, wb.run.id", steps=100_000)
    button(page, "Start").click()
    wait_for_state(page, "running")
    wait_for_step(page, 1)
    run = page.locator(".ll-run-foot .ll-run-id").first.inner_text()
    notebook.save()
    page.close()
    closed = steps_on_disk(lab, run)
    until(lambda: steps_on_disk(lab, run) > closed + 20)
    context = chromium.new_context(viewport={"width": 1400, "height": 1300})
    other = context.new_page()
    other.on("dialog", lambda dialog: dialog.accept())
    notebook = lab.visit(other, "test.ipynb")
    opened = steps_on_disk(lab, run)
    until(lambda: steps_on_disk(lab, run) > opened + 20)
    notebook.run(1)
    step, seen = eval(notebook.output(1))
    assert step > opened + 20
    assert seen == run
    context.close()


def steps_on_disk(lab: JupyterLab, run: str) -> int:
    return len((lab.folder / "runs" / run / "metrics.jsonl").read_text().splitlines())
