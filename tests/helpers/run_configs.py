"""A run's config.json as somebody else wrote it, with its checkpoints' copies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Have `change` alter a run's config.json and the copies of it."""
    for path in (folder / "config.json", *folder.glob("checkpoints/*/run_config.json")):
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
