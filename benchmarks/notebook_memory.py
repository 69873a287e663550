"""The most memory that the default notebook's kernel takes on Binder: notebook 00, top to bottom.

A fresh kernel, started as binder/start does, runs every cell with the settings that a first plan
has where 1.5 GB are free (it recomputes blocks), but for the number of steps, and says after each
what it has taken at most (VmHWM, which Linux tells): Python, its libraries, the embedded model, the
workbench, a run with its scores before and after, and PEFT, which reads the adapter. The model has
been loaded before. Two minutes on a quiet core.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._measure import Row, print_table

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "00_workbench.ipynb"
OPENS = 'Workbench("smollm2-135m")'
REACH_MB = 1500
BINDER = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # binder/start
FREE = "import lora_lab_widgets.defaults as d; d.available_memory = lambda: 1_500_000_000"
# A line a cell: what was read of /proc after it.
PEAK = "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')))"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args(argv).steps
    if not Path("/proc/self/status").exists():
        sys.exit("the most memory of a process is read from /proc, which this computer has not")
    try:
        import nbclient
        import nbformat
    except ImportError as error:
        sys.exit(f"this benchmark runs a notebook; install the extra `test` ({error})")

    import lora_lab as ll

    ll.load_model("smollm2-135m", device="cpu")  # into the cache
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    made = nbformat.v4.new_code_cell
    notebook.cells = [made(FREE), *with_peaks(notebook.cells, steps, made)]
    os.environ.update(BINDER)
    with tempfile.TemporaryDirectory() as scratch:
        where = {"metadata": {"path": scratch}}
        nbclient.NotebookClient(notebook, timeout=None, resources=where).execute()
    print_table("The default notebook's memory", rows(peaks_mb(notebook.cells)))


def with_peaks(cells: list[Any], steps: int, made: Any) -> list[Any]:
    """Return the code cells, each with one behind it that says what was taken at most."""
    code = [cell for cell in cells if cell.cell_type == "code"]
    first = next(cell for cell in code if OPENS in cell.source)
    first.source = first.source.replace(OPENS, f"{OPENS[:-1]}, max_steps={steps})")
    return [each for cell in code for each in (cell, made(PEAK))]


def peaks_mb(cells: list[Any]) -> list[float]:
    """Return the most memory up to the end of each of the notebook's cells, in MB."""
    text = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    return [1.024 * int(kib) / 1000 for kib in re.findall(r"VmHWM:\s+(\d+) kB", text)]


def rows(peaks: list[float]) -> list[Row]:
    """Return the table: when the workbench is open, before PEFT's cell, and at the end."""
    opened, trained, most = peaks[0], peaks[-2], peaks[-1]
    each = "up to the end of each cell: " + ", ".join(f"{peak:,.0f}" for peak in peaks)

    def row(what: str, peak: float, note: str = "") -> Row:
        return Row(what, f"{peak:,.0f} MB", f"≤ {REACH_MB:,} MB", peak <= REACH_MB, note)

    return [
        Row("the kernel, once the workbench is open", f"{opened:,.0f} MB", "", None),
        row("its peak, up to the run and its scores", trained),
        row("its peak, all cells run", most, each),
    ]


if __name__ == "__main__":
    main()
