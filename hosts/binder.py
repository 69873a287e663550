"""Builds binder/ as repo2docker does, in a clean folder, and opens it as Binder does.

    python -m hosts.binder

repo2docker's steps by hand: a new environment of the Python in runtime.txt, requirements.txt,
postBuild, then JupyterLab by way of start; no docker is needed. In a browser the default notebook
is run from top to bottom; what the kernel and the server took is written to docs/hosts-binder.md.
LoRA Lab is told of Binder's limit, which no container tells it here, and which nothing enforces.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import urllib.request
from datetime import date
from pathlib import Path

from playwright.sync_api import expect

from hosts.pip import Pip, PipError
from hosts.server import PATIENCE, browser_page, environment_of, server
from hosts.set_up import CPU_INDEX, ROOT
from tests.browser.lab import Notebook

MOST_MB = 1500  # of Binder's 2,000, for the kernel with the default notebook
TOLD = ("torch", "transformers", "numpy", "jupyterlab", "ipykernel", "ipywidgets", "anywidget")
NOTEBOOK = "notebooks/00_workbench.ipynb"
# Run as a kernel starts. A container's figures count what its processes have, without files' pages.
LIMIT = """
import os
from pathlib import Path

from lora_lab._util import host_memory


def _left():
    texts = (Path(f"/proc/{pid}/status").read_text() for pid in ("self", os.getppid()))
    taken = sum(int(text.partition("RssAnon:")[2].split()[0]) for text in texts)
    yield max(0, 2_000_000_000 - 1024 * taken)


host_memory._left_of_limits = _left
"""


def main() -> None:
    """Build, run, and write down what came out."""
    with tempfile.TemporaryDirectory() as scratch:
        source = checkout(Path(scratch, "home"))
        try:
            python, env = build(source, Path(scratch, "env"))
        except (PipError, subprocess.CalledProcessError) as error:
            sys.exit(f"binder/ does not build: {error}")
        line, fits = run(source, python, env)
        versions = Pip(python).versions()
    page = written(line, {name.lower(): version for name, version in versions.items()})
    (ROOT / "docs" / "hosts-binder.md").write_text(page, encoding="utf-8")
    print(page)
    sys.exit(not fits)


def written(line: str, versions: dict[str, str]) -> str:
    """Return what came out, and with which versions, as Markdown."""
    when = f"`make binder-check`, {date.today():%Y-%m-%d}, repo2docker's steps by hand."
    rows = "".join(f"| {name} | {versions[name]} |\n" for name in TOLD)
    return f"# Binder\n\n{when}\n\n- {line}\n\n| package | version |\n| --- | --- |\n{rows}"


def checkout(folder: Path) -> Path:
    """Copy what git has, or will have, of this repository."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(source: Path, place: Path) -> tuple[Path, dict[str, str]]:
    """Take repo2docker's steps; return the environment's interpreter and its variables.

    Raises:
        PipError, CalledProcessError: one of them fails.
    """
    version = (source / "binder" / "runtime.txt").read_text(encoding="ascii").strip()
    name = version.replace("-", "")
    subprocess.run([shutil.which(name) or sys.executable, "-m", "venv", str(place)], check=True)
    python = place / "bin" / "python"
    env = environment_of(python, source / ".home")
    env |= {"HOME": str(source), "LORA_LAB_CACHE": str(source / ".cache" / "lora-lab")}
    requirements = source / "binder" / "requirements.txt"
    if not reached(CPU_INDEX):  # pip would ask it for every package again
        text = requirements.read_text(encoding="utf-8")
        requirements.write_text(text.replace(f"--extra-index-url {CPU_INDEX}\n", ""))
    pip = Pip(python, source)
    pip.install("pip itself", "--upgrade", "pip>=24.1")
    pip.install("binder/requirements.txt", "-r", "binder/requirements.txt")
    subprocess.run(["bash", "binder/postBuild"], cwd=source, env=env, check=True)
    startup = Path(env["IPYTHONDIR"], "profile_default", "startup", "limit.py")
    startup.parent.mkdir(parents=True)
    startup.write_text(LIMIT, encoding="utf-8")
    return python, env


def reached(address: str) -> bool:
    """Whether somebody answers there."""
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


def run(source: Path, python: Path, env: dict[str, str]) -> tuple[str, bool]:
    """Open the default notebook as Binder does, run it, and return a line, and whether it fits."""
    command = ["bash", "binder/start", str(python), "-m", "jupyterlab"]
    command += ["--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    with server(command, source, env) as (address, process), browser_page() as (page, chromium):
        page.goto(f"{address}/lab/tree/{NOTEBOOK}")
        notebook = Notebook(page)
        notebook.wait_until_ready(PATIENCE / 1000)
        count = page.evaluate("jupyterapp.shell.currentWidget.content.widgets.length")
        notebook.start_all()
        expect(page.locator(".ll-workbench").first).to_be_visible()
        page.wait_for_function(
            "() => jupyterapp.shell.currentWidget.content.widgets"
            ".filter(cell => cell.model.type === 'code').at(-1).model.executionCount !== null",
            timeout=3_600_000,
        )
        for index in range(count):
            errors = [out for out in _outputs(notebook, index) if out["output_type"] == "error"]
            assert not errors, errors
        kernel = next(pid for pid in children(process.pid) if "ipykernel" in command_of(pid))
        peaks = {what: peak_mb(pid) for what, pid in (("kernel", kernel), ("server", process.pid))}
    fits = peaks["kernel"] <= MOST_MB
    return (
        f"{'' if fits else 'FAILED: '}builds, opens on {NOTEBOOK} in Chromium {chromium}, every "
        f"cell ran; at their peaks the kernel took {peaks['kernel']:,} MB (of {MOST_MB:,}) and the "
        f"server {peaks['server']:,} MB"
    ), fits


def _outputs(notebook: Notebook, index: int) -> list[dict[str, object]]:
    kind = notebook.page.evaluate(
        "i => jupyterapp.shell.currentWidget.content.widgets[i].model.type", index
    )
    return notebook.outputs(index) if kind == "code" else []


def children(pid: int) -> list[int]:
    """Return the processes below one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(path.parent.name), *children(int(path.parent.name))]
    return found


def command_of(pid: int) -> str:
    """Return a process's command."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def peak_mb(pid: int) -> int:
    """Return the most memory that a process had, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return round(kibibytes * 1024 / 1e6)


if __name__ == "__main__":
    main()
