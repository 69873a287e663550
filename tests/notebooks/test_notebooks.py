"""Every committed notebook runs from top to bottom, and is small and clean in the repository."""

from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

from tests.helpers.clear_kernel import CLEAR
from tests.helpers.tiny_chat import tiny_chat_model

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WORKBENCH = FOLDER / "00_workbench.ipynb"
CLAIMS = FOLDER / "01_paper_claims.ipynb"
INSIDE = FOLDER / "02_inside_delta_w.ipynb"
METHODS = FOLDER / "03_methods.ipynb"

PAPERS_METHODS = (
    *("FT", "FT-Top2", "BitFit", "PreEmbed", "PreLayer"),
    *("Adapter^H", "Adapter^L", "Adapter^P", "Adapter^D"),
    *("LoRA", "LoRA+PE", "LoRA+PL", "AdaLoRA"),
)


# What a kernel that has just started has not, but for the modules that are imported.
AFRESH = f"""\
{CLEAR}
get_ipython().run_line_magic("reset", "-f")
__import__("os").chdir({{folder!r}})
__import__("gc").collect()"""


@pytest.fixture(scope="module")
def kernel():
    """A kernel for one notebook after the other: to import all takes it half of a play's time."""
    manager = AsyncKernelManager(kernel_name="python3")
    yield manager
    if manager.has_kernel:
        run_sync(manager.shutdown_kernel)(now=True)


def run(notebook, folder, kernel):
    before = nbformat.v4.new_notebook()
    before.cells = [nbformat.v4.new_code_cell(AFRESH.format(folder=str(folder)))]
    for each in (before, notebook):
        client = NotebookClient(
            each,
            km=kernel,
            timeout=None,
            coalesce_streams=True,  # what is printed comes in as many pieces as the machine likes
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute()
        client.kc.stop_channels()


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook):
    """Return what the cells show, as text and as HTML."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.get("text") or dict(output["data"]) for output in outputs]


def shorten(notebook, changes):
    """Make it quick enough for a test: {source as it stands, once: what takes its place}."""
    for before, after in changes.items():
        assert sum(before in cell.source for cell in code_cells(notebook)) == 1
        for cell in code_cells(notebook):
            cell.source = cell.source.replace(before, after)


@pytest.mark.real_model
def test_the_workbench_runs(tmp_path, kernel):
    notebook = nbformat.read(WORKBENCH, as_version=4)
    small = "max_steps=3, per_device_train_batch_size=2, max_length=96, eval_examples=1"
    small += ", kept_texts=0"
    short = f'Workbench("smollm2-135m", {small})'
    shorten(notebook, {'Workbench("smollm2-135m")': short})
    run(notebook, tmp_path, kernel)
    code = code_cells(notebook)
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").exists()
    first = code[0].outputs[-1]["data"]
    assert "application/vnd.jupyter.widget-view+json" in first
    assert "<table" in first["text/html"], "GitHub shows the fallback"
    assert "PEFT has put it on 60 modules" in str(shown(notebook))


# The story's cells below the workbench, by number, and what is pressed before them.
PLAYS = {
    "backwards": ([6, 5, 4, 3, 2, 1], "START, THEN NOTHING"),
    "a button before every cell": ([2, 3, 1, 4, 6, 5], "START"),
    "after a stop": ([4, 3, 6, 2, 1, 5], "START AND STOP"),
    "paused": ([1, 3, 2, 4, 5, 6], "START AND PAUSE"),
    "no button, twice": ([3, 3, 6, 6, 1, 2, 2, 4, 5, 5], ""),
    "another method": ([6, 3, 4, 1, 5, 2], "BITFIT"),
}
PRESS = {
    "": "",
    "START, THEN NOTHING": "press('start')",
    "START": "press('start')",
    "START AND STOP": "press('start'); press('stop'); wb.run.wait(60)",
    "START AND PAUSE": "press('start'); press('pause')",
    "BITFIT": "wb.config = ll.BitFitConfig(new_biases=True); press('start')",
}
BUTTONS = """\
def press(name):
    wb.panel._handle({"type": "command", "name": name, "settings": {}, "seq": "1"})
    assert wb.panel.snapshot["problem"] is None, wb.panel.snapshot["problem"]
def look():
    return dict(wb.grid.ranks), {**wb.panel.settings}
before = None"""


@pytest.mark.parametrize("play", PLAYS)
def test_the_workbenchs_cells_may_be_run_in_any_order(play, tmp_path, kernel):
    model, tokenizer = tiny_chat_model()
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    notebook = nbformat.read(WORKBENCH, as_version=4)
    small = "max_steps=12, per_device_train_batch_size=2, max_length=96, eval_examples=1"
    name = 'Workbench("smollm2-135m")'
    shorten(notebook, {name: f'Workbench("tiny", {small}, kept_texts=0)'})
    cells = code_cells(notebook)
    order, pressed = PLAYS[play]
    # What a reader has painted and set, which no cell may change.
    setup = ["wb.grid.ranks = {n: 2 for n in list(wb.grid.ranks)[:1]}", BUTTONS, PRESS[pressed]]
    setup.append("before = look()")
    end = "assert look() == before, (look(), before)"
    sources = [cells[0].source, *setup, *(cells[index].source for index in order), end]
    played = nbformat.v4.new_notebook()
    played.cells = [nbformat.v4.new_code_cell(source) for source in sources if source]
    run(played, tmp_path, kernel)  # an error in any cell is an error here


def test_the_papers_claims_show_what_they_show_in_the_repository(tmp_path, kernel):
    notebook = nbformat.read(CLAIMS, as_version=4)
    committed = shown(notebook)
    run(notebook, tmp_path, kernel)
    assert shown(notebook) == committed
    text = str(committed)
    for printed in ("350 GB", "1.2 TB", "35 MB", "10,000×", "3×", "does not reproduce"):
        assert printed in text


@pytest.mark.real_model
@pytest.mark.timeout(1200)  # four short trainings, on whatever machine
def test_section_7_runs(tmp_path, kernel):
    notebook = nbformat.read(INSIDE, as_version=4)
    small = "per_device_train_batch_size=2, eval_examples=0"  # the looks need no answers
    shorten(
        notebook,
        {
            "STEPS = 20": "STEPS = 2",
            "seed=seed, eval_examples=4": f"seed=seed, {small}",
            "learning_rate=2e-2, eval_examples=4": f"learning_rate=2e-2, {small}",
        },
    )
    run(notebook, tmp_path, kernel)
    assert len(list((tmp_path / "runs").iterdir())) == 4
    text = str(shown(notebook))
    for said in ("r=8 against r=64", "seed 0 against seed 1", "random directions", "Step 2 of 2"):
        assert said in text
    figures = [o for cell in code_cells(notebook) for o in cell.outputs if "data" in o]
    assert sum("application/vnd.plotly.v1+json" in figure["data"] for figure in figures) == 5


@pytest.mark.real_model
@pytest.mark.timeout(1800)  # twenty-six short trainings, on whatever machine
def test_every_method_is_compared(tmp_path, kernel):
    # Every method on a real language model takes minutes; notebook 02 and the demo train that one.
    model, tokenizer = tiny_chat_model()
    model.save_pretrained(tmp_path / "smollm2-135m-tiny")
    tokenizer.save_pretrained(tmp_path / "smollm2-135m-tiny")
    notebook = nbformat.read(METHODS, as_version=4)
    committed = str(shown(notebook))
    shorten(
        notebook,
        {
            'll.load_model("smollm2-135m")': 'll.load_model("smollm2-135m-tiny")',
            "STEPS, BATCH, HELD_OUT = 20, 4, 8": "STEPS, BATCH, HELD_OUT = 3, 1, 1",
            "= 60, 8, 60": "= 3, 2, 6",
            # As in tests/conftest.py: a run collects garbage twice.
            "\nruns = train_all(": "\nimport gc\ngc.freeze()\nruns = train_all(",
        },
    )
    run(notebook, tmp_path, kernel)
    text = str(shown(notebook))
    for model in ("e2e", "rating"):
        assert len(list((tmp_path / "runs" / model).iterdir())) == 13
    for method in PAPERS_METHODS:
        assert f">{method}</th>" in text
        assert f">{method}</td>" in committed
    figures = [o for cell in code_cells(notebook) for o in cell.outputs if "data" in o]
    assert sum("application/vnd.plotly.v1+json" in figure["data"] for figure in figures) == 2
    assert "Held-out loss of 13 methods after 3 steps of mini-e2e on smollm2-135m" in text
    assert "Accuracy of 13 methods after 3 steps of mini-rating on minilm-l6" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_committed_small_and_without_widget_state(path):
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    assert path.stat().st_size < 1_000_000
    if path in (WORKBENCH, INSIDE):  # widgets and figures, which GitHub does not show anyway
        assert not any(cell.outputs for cell in code_cells(notebook))
    else:
        counts = [cell.execution_count for cell in code_cells(notebook)]
        assert counts == list(range(1, len(counts) + 1)), "run it from top to bottom"


def test_every_notebook_is_run_here():
    assert NOTEBOOKS == [WORKBENCH, CLAIMS, INSIDE, METHODS]
