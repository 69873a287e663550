"""A page that is reloaded, opened twice or cut off while a run trains: is its bench there again?

A real JupyterLab and a real Chromium; processes that only burn keep every core busy beside them.
A bench is there if each view of the page shows the workbench, and its steps go on.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._measure import Row, print_table

WAIT = 180  # seconds until a bench is given up
# Which outputs a page has lost on its way; it shows them again by itself.
SEEN = """
window.lost = 0;
new MutationObserver(() => {
    for (const node of document.querySelectorAll(".jupyter-widgets"))
        if (node.textContent === "Error displaying widget: model not found") window.lost = 1;
}).observe(document, { subtree: true, childList: true });
"""
STEPS = "() => [...document.querySelectorAll('.ll-run')].map(each => +each.dataset.llStep)"


@dataclass
class Tries:
    """What became of the benches of one way to lose them."""

    what: str
    seconds: list[float] = field(default_factory=list)  # until a bench was there and live
    gone: list[str] = field(default_factory=list)  # what a page without one said
    lost: int = 0  # pages that had lost outputs on the way

    def row(self) -> Row:
        """Return the table's line."""
        there, tried = len(self.seconds), len(self.seconds) + len(self.gone)
        note = ""
        if self.seconds:
            median, most = statistics.median(self.seconds), max(self.seconds)
            note = f"live after {median:.0f} s (median), {most:.0f} s at most"
        if self.lost:
            note += f"; {self.lost} had said that the model was not found"
        if self.gone:
            note += f"; without: {', '.join(sorted(set(self.gone)))}"
        measured = f"{there} of {tried} benches"
        return Row(self.what, measured, f"{tried} of {tried}", there == tried, note)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50, help="of each way")
    cores = os.cpu_count() or 1
    parser.add_argument("--burning", type=int, default=cores, help="processes beside")
    names = ("reload", "second", "lid")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="WAY")
    args = parser.parse_args(argv)
    try:
        from tests.browser.bench_page import button, wait_for_state
        from tests.browser.lab import Notebook, small_bench
    except ImportError as error:
        sys.exit(f"this benchmark drives JupyterLab; install the extra `test` ({error})")

    with opened() as (page, line):
        lab = f"http://127.0.0.1:{line.port}/lab/tree/test.ipynb?reset"
        notebook = Notebook(page)
        page.goto(lab)
        notebook.wait_until_ready()
        notebook.replace([small_bench(10_000_000), "wb"])
        notebook.run(0, seconds=WAIT)
        notebook.run(1, seconds=WAIT)
        button(page, "Start").click()
        wait_for_state(page, "running")
        notebook.save()
        ways = {
            "reload": (lambda _: reload(page), "reloaded"),
            "second": (lambda _: second(page, lab), "opened in a second tab"),
            "lid": (lambda pause: lid(page, line, pause), "frozen and cut off for 1 to 10 s"),
        }
        with burning(args.burning):
            rows = [tries(*ways[name], args.times).row() for name in args.only]
    load = os.getloadavg()[2]
    print_table(
        f"A page of a JupyterLab whose kernel trains, load {load:.0f} on {cores} cores", rows
    )


def tries(way: Callable[[float], Any], what: str, times: int) -> Tries:
    """Lose the bench so often, and see whether it is there again."""
    pauses = random.Random(0)
    all_ = Tries(what)
    for done in range(times):
        start = time.monotonic()
        page = way(pauses.uniform(1, 10))
        problem = wait(page)
        if problem:
            all_.gone.append(problem)
        else:
            all_.seconds.append(time.monotonic() - start)
        with contextlib.suppress(Exception):  # the page of a bench that is gone
            all_.lost += page.evaluate("window.lost ?? 0")
        if what.startswith("opened"):
            page.close()
        elif problem:
            reload(page)
        print(f"  {what}, {done + 1} of {times}: {all_.row().measured}", flush=True)
    return all_


def wait(page: Any) -> str:
    """Wait until both views of a page live; returns what the page says where they do not."""
    from playwright.sync_api import Error

    end, first = time.monotonic() + WAIT, None
    while time.monotonic() < end:
        with contextlib.suppress(Error):  # the page is between two documents
            steps = page.evaluate(STEPS)
            if len(steps) == 2 and all(steps):
                first = first or steps
                if min(now - then for now, then in zip(steps, first, strict=True)) > 0:
                    return ""
        time.sleep(0.1)
        page.wait_for_timeout(100)
    text = page.evaluate("document.querySelector('.jp-OutputArea-output')?.innerText ?? ''")
    return str(text.strip().splitlines()[0][:60]) if text.strip() else "nothing"


def reload(page: Any) -> Any:
    """Reload the page."""
    page.reload(wait_until="commit")
    return page


def second(page: Any, lab: str) -> Any:
    """Open the notebook in another tab."""
    other = page.context.new_page()
    other.goto(lab, wait_until="commit")
    return other


def lid(page: Any, line: Any, pause: float) -> Any:
    """Close the lid of the laptop for so many seconds."""
    state = page.context.new_cdp_session(page)
    state.send("Page.setWebLifecycleState", {"state": "frozen"})
    line.cut()
    time.sleep(pause)
    line.mend()
    state.send("Page.setWebLifecycleState", {"state": "active"})
    state.detach()
    return page


@contextlib.contextmanager
def opened() -> Iterator[tuple[Any, Any]]:
    """Yield a page of a browser, and the line to a lab that has an empty notebook."""
    from playwright.sync_api import sync_playwright

    from tests.browser.chromium import LAUNCH_ARGS, MISSING, find
    from tests.browser.lab import JupyterLab, blank_notebook
    from tests.browser.line import Line

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        path = find(playwright.chromium.executable_path)
        if path is None:
            sys.exit(MISSING)
        browser = playwright.chromium.launch(executable_path=path, args=list(LAUNCH_ARGS))
        with JupyterLab(Path(scratch)) as lab, Line(lab.port) as line:
            (Path(scratch) / "test.ipynb").write_text(blank_notebook(), encoding="utf-8")
            context = browser.new_context(viewport={"width": 1400, "height": 1500})
            context.set_default_timeout(WAIT * 1000)
            context.add_init_script(SEEN)
            page = context.new_page()
            page.on("dialog", lambda dialog: dialog.accept())
            yield page, line
        browser.close()


@contextlib.contextmanager
def burning(count: int) -> Iterator[None]:
    """Keep so many processes at work that do nothing."""
    processes = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def _burn() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
