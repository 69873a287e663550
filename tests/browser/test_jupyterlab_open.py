"""A workbench that nobody has told anything: a model and data are picked on the page."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.bench_page import button, wait_for_state
from tests.browser.lab import ROOT, JupyterLab
from tests.helpers.tiny_files import tiny_model_folder, tiny_task_file

BARE = """\
import sys; sys.path[:0] = [{here!r}]
import torch; torch.set_num_threads(1)
from lora_lab_widgets import Workbench
wb = Workbench(max_steps=400, per_device_train_batch_size=2, max_length=32, eval_examples=0)
wb"""


@pytest.mark.browser
def test_from_nothing_to_a_run_and_to_another_model(lab: JupyterLab, page: Page) -> None:
    tiny_model_folder(lab.folder / "small")
    data = tiny_task_file(lab.folder / "letters.csv")
    notebook = lab.open(page, [BARE.format(here=str(ROOT))])
    notebook.run(0, seconds=120)
    pickers = page.locator(".ll-chooser")
    expect(pickers).to_be_visible()
    expect(page.locator(".ll-run")).to_have_count(0)
    pickers.get_by_role("radio", name="./small").check()
    pickers.locator("input[type=file]").set_input_files(data)
    expect(pickers.get_by_text("read as prompts with completions")).to_be_visible()
    expect(pickers.get_by_text("its weights need")).to_be_visible()
    pickers.get_by_role("button", name="Open").click()
    expect(page.locator(".ll-run")).to_be_visible()
    expect(pickers).to_be_hidden()
    expect(page.locator(".ll-header")).to_contain_text("letters.csv")
    button(page, "Start").click()
    wait_for_state(page, "running")
    change = page.get_by_role("button", name="change the model or the data")
    change.click()
    pickers.get_by_label("dtype", exact=True).select_option("bfloat16")
    pickers.get_by_role("button", name="Open").click()
    expect(pickers.get_by_role("alert")).to_contain_text("stop it to open another model")
    button(page, "Stop").click()
    wait_for_state(page, "stopped", "done")
    pickers.get_by_role("button", name="Open").click()
    expect(page.locator(".ll-header-device")).to_have_text(re.compile("bfloat16"))
    expect(page.locator(".ll-run")).to_have_count(1)
    expect(pickers).to_be_hidden()
    button(page, "Start").click()
    wait_for_state(page, "running")
