"""The workbench in marimo: `marimo run notebooks/marimo_workbench.py`, or `marimo edit`."""

import marimo

app = marimo.App(width="full")


@app.cell
def _():
    from lora_lab_widgets import Workbench

    wb = Workbench("smollm2-135m", task="mini-e2e")
    wb
    return (wb,)


if __name__ == "__main__":
    app.run()
