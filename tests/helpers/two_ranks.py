"""Two ranks of a helper's script, forks of one process that has imported what they need.

    python -m tests.helpers.two_ranks SCRIPT FOLDER

ends with 0 if both did. Where they meet is in the environment, as a launcher sets it.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from pathlib import Path

RANKS = range(2)


def main(script: str, folder: str) -> int:
    """Run the script as each rank; return the exit status."""
    importlib.import_module(f"tests.helpers.{Path(script).stem}")
    children = []
    for rank in RANKS:
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            sys.argv = [script, folder]
            runpy.run_path(str(Path(__file__).with_name(script)), run_name="__main__")
            return 0
        children.append(child)
    ended = [os.waitpid(child, 0)[1] for child in children]
    return int(any(ended))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
