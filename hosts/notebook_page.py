"""The workbench in Notebook 6, whose page draws the widgets of ipywidgets 7, in a real browser."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path

from playwright.sync_api import Error, Locator, Page, expect

from hosts.server import browser_page, environment_of, server
from tests.browser.lab import blank_notebook

CELLS = (
    "from lora_lab_widgets import Workbench\n"
    "wb = Workbench('mini-llama', max_steps=12, per_device_train_batch_size=2, eval_examples=2)\n"
    "wb",
    "run = wb.run or wb.start()\nprint(run.result().metrics['loss_after'])\nwb.save('adapter')",
)


def try_workbench(python: Path, picture: Path | None = None) -> str:
    """Open the workbench in a server of that environment, train, and return a line on it."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "bench.ipynb").write_text(blank_notebook(), encoding="utf-8")
            command = [str(python), "-m", "notebook", "--NotebookApp.token="]
            env = environment_of(python, folder / ".home")
            with server(command, folder, env) as (address, _), browser_page(picture) as (page, of):
                page.goto(f"{address}/notebooks/bench.ipynb")
                _use(page)
    except (AssertionError, Error, RuntimeError) as error:
        return f"browser: FAILED: {str(error).strip().splitlines()[0]}"
    return (
        f"browser: Notebook 6 in Chromium {of}: opened, a column painted, Start, ΔW drawn, trained "
        "to the end; its adapter downloaded, its report opened in a tab; a cell that waits for the "
        "run and saves"
    )


def _use(page: Page) -> None:
    page.wait_for_function("() => window.Jupyter?.notebook?.kernel?.is_connected()")
    # A page that has just opened asks the kernel for its widgets, and draws each output anew when
    # that is answered; widgetsnbextension 3.6 leaves empty what was drawn before. Answers come in
    # their order, so that a second question ends after the page's own.
    page.evaluate("() => Jupyter.notebook.kernel.widget_manager._loadFromKernel()")
    _run_cell(page, CELLS[0])
    bench = page.locator(".ll-workbench").first
    expect(bench).to_be_visible()
    bench.get_by_role("grid").first.get_by_role("columnheader", name="down").click()
    bench.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator(".ll-run").first).to_have_attribute("data-ll-state", "done")
    expect(page.locator(".ll-delta-spectrum .js-plotly-plot").first).to_be_visible()
    _keep(page, bench)
    _run_cell(page, CELLS[1])
    outputs = page.evaluate("() => Jupyter.notebook.get_cell(-1).output_area.toJSON()")
    assert not [each for each in outputs if each["output_type"] == "error"], outputs


def _keep(page: Page, bench: Locator) -> None:
    """Fetch the adapter as a zip, and open the report by its link."""
    bench.get_by_role("button", name="save it").click()
    keep = bench.locator(".ll-keep").first
    with page.expect_download() as coming:
        keep.get_by_role("button", name="Download").click()
    assert zipfile.is_zipfile(coming.value.path()), "what was downloaded is no zip"
    keep.get_by_role("button", name="Report", exact=True).click()
    link = keep.get_by_role("link", name="Open the report")
    expect(link).to_be_visible()
    with page.context.expect_page() as opening:
        link.click()
    expect(opening.value.locator(".js-plotly-plot").first).to_be_visible()
    opening.value.close()


def _run_cell(page: Page, code: str) -> None:
    """Run a new last cell, and wait until it has ended."""
    page.evaluate(
        f"""() => {{
            const cell = Jupyter.notebook.insert_cell_at_bottom("code");
            cell.set_text({json.dumps(code)});
            cell.execute();
        }}"""
    )
    page.wait_for_function(
        "() => typeof Jupyter.notebook.get_cell(-1).input_prompt_number === 'number'"
    )
