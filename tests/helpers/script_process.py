"""A helper's script in a process of its own, and what it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HELPERS = Path(__file__).parent


def answer_of(script: str, folder: Path) -> Any:
    """Run `python script folder` on one thread, offline; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, HELPERS / script, folder],
        capture_output=True,
        text=True,
        timeout=600,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(HELPERS.parents[1]), *sys.path]),
        },
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)
