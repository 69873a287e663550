"""Setting up says what it is at, and takes no CUDA where there is no GPU. pip is a made-up one."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from hosts import set_up
from hosts.pip import Pip, PipError

FAKE = """\
#!{python}
import pathlib, sys
said = pathlib.Path({said!r})
if sys.argv[1] == "-c":
    print({{"pip": "26.0"}}.get(sys.argv[3], {torch!r}) or "")
    sys.exit()
with said.open("a") as file:
    print(*sys.argv[3:], file=file)
wanted = sys.argv[-1]
if wanted in {missing!r}:
    print("ERROR: No matching distribution found for", wanted)
    sys.exit(1)
print("Collecting", wanted)
print("  Downloading", wanted + "-1.0-py3-none-any.whl", "(3.0 MB)")
print("Progress 0 of 3000000")
if wanted in {broken!r}:
    print("ERROR: the connection broke")
    sys.exit(2)
print("Progress 3000000 of 3000000")
print("Installing collected packages:", wanted)
"""


@pytest.fixture
def fake(tmp_path: Path):
    def make(*missing: str, torch: str = "", broken: str = "") -> tuple[Pip, Path]:
        python, said = tmp_path / "bin" / "python", tmp_path / "said"
        python.parent.mkdir()
        names = {"missing": missing, "broken": [broken], "torch": torch}
        text = FAKE.format(python=sys.executable, said=str(said), **names)
        python.write_text(text)
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        return Pip(python), said

    return make


def test_what_comes_is_told_with_its_size_and_the_time(fake, capsys) -> None:
    pip, said = fake()
    pip.install("a package", "thing")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("] a package")
    assert lines[-1].endswith(" s] a package: done, 3.0 MB downloaded")
    assert said.read_text().split() == (
        ["install", "--no-input", "--disable-pip-version-check", "--progress-bar", "raw", "thing"]
    )


def test_on_a_terminal_one_line_is_drawn_over(fake, capsys) -> None:
    pip, _ = fake()
    pip._terminal = True
    pip.install("a package", "thing")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.count("\r\x1b[K") >= 2


def test_what_fails_says_what_pip_said(fake) -> None:
    pip, _ = fake("thing")
    with pytest.raises(PipError, match="a package could not be installed:\nERROR: No matching"):
        pip.install("a package", "thing")


def test_the_cpu_build_is_looked_for_in_pips_own_places_first(fake, monkeypatch, capsys) -> None:
    monkeypatch.setattr(set_up, "wants_cpu_build", lambda: True)
    pip, said = fake()
    set_up.install_torch(pip)
    (asked,) = said.read_text().splitlines()
    assert asked.endswith(f"--no-deps --only-binary :all: torch=={set_up.pinned('torch')}+cpu")
    assert "CUDA" not in capsys.readouterr().out


def test_without_one_it_says_what_comes_and_how_to_avoid_it(fake, monkeypatch, capsys) -> None:
    monkeypatch.setattr(set_up, "wants_cpu_build", lambda: True)
    version = f"torch=={set_up.pinned('torch')}+cpu"
    pip, said = fake(version)
    set_up.install_torch(pip)
    own, index = said.read_text().splitlines()
    assert set_up.CPU_INDEX not in own
    assert f"--index-url {set_up.CPU_INDEX}" in index
    assert own.endswith(version), "no other spelling is asked for: it might be a CUDA build"
    assert index.endswith(version)
    out = capsys.readouterr().out
    assert "2.7 GB of CUDA" in out
    assert "press Ctrl-C" in out


def test_a_download_that_breaks_off_is_tried_again_and_is_no_build_that_is_missing(
    fake, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(set_up, "wants_cpu_build", lambda: True)
    pip, said = fake(broken=f"torch=={set_up.pinned('torch')}+cpu")
    with pytest.raises(PipError, match="its download broke off 3 times; the same command tries"):
        set_up.install_torch(pip)
    assert len(said.read_text().splitlines()) == 3
    out = capsys.readouterr().out
    assert "broke off" in out
    assert "No CPU build" not in out


@pytest.mark.parametrize(("wants", "torch"), [(False, ""), (True, "2.13.0")])
def test_a_gpu_or_a_torch_that_is_there_leaves_torch_alone(fake, monkeypatch, wants, torch) -> None:
    monkeypatch.setattr(set_up, "wants_cpu_build", lambda: wants)
    pip, said = fake(torch=torch)
    set_up.install_torch(pip)
    assert not said.exists()


@pytest.mark.parametrize(
    ("system", "gpu", "wants"),
    [("Linux", False, True), ("Linux", True, False), ("Darwin", False, False)],
)
def test_who_wants_the_cpu_build(monkeypatch, system: str, gpu: bool, wants: bool) -> None:
    monkeypatch.setattr(set_up.platform, "system", lambda: system)
    monkeypatch.setattr(set_up, "has_gpu", lambda: gpu)
    assert set_up.wants_cpu_build() is wants


def test_an_old_python_is_told_which_one_is_needed(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(set_up.sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or later.*make lab PYTHON="):
        set_up.main(str(tmp_path / "none"), "lab")
    assert not (tmp_path / "none").exists()


def test_an_interrupt_ends_it_in_a_line(fake, monkeypatch, tmp_path: Path) -> None:
    def interrupted(_pip: Pip) -> None:
        raise KeyboardInterrupt

    fake()  # whose environment is this folder
    monkeypatch.setattr(set_up, "install_torch", interrupted)
    with pytest.raises(SystemExit, match="Interrupted; the same command goes on with what is"):
        set_up.main(str(tmp_path), "lab")
