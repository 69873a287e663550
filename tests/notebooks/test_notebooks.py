"""Every committed notebook runs from top to bottom, and is small and clean in the repository."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# What makes a notebook quick enough for a test: the source as it stands, and in its place.
QUICKER = {
    "00_workbench.ipynb": (
        'Workbench("smollm2-135m")',
        'Workbench("smollm2-135m", max_steps=3, per_device_train_batch_size=2, max_length=96)',
    )
}


@pytest.mark.real_model
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    before, after = QUICKER[path.name]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(before in cell.source for cell in code) == 1
    for cell in code:
        cell.source = cell.source.replace(before, after)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").exists()
    shown = code[0].outputs[-1]["data"]
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert "<table>" in shown["text/html"], "GitHub shows the fallback"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_committed_without_outputs_or_widget_state(path):
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    assert path.stat().st_size < 1_000_000
    for cell in notebook.cells:
        assert not cell.get("outputs")
