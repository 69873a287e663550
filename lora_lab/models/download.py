"""A model's files from the hub, fetched by a process of its own: it tells how far, and can end."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lora_lab.errors import ModelError
from lora_lab.redaction import redacted

# What transformers reads of a repository's top folder: no pickles, no other library's weights.
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
UNWANTED = ("*/*", "consolidated*")
_PAUSE = 0.25  # seconds between two looks at how far it is
# -P: nothing is imported from the working folder, which may be a stranger's.
# The pipe ends with whoever fetches, also where that is killed: a kernel that is restarted.
_ENDS_WITH_US = """\
import os, threading
threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
"""
_FETCH = f"""\
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], allow_patterns={list(WANTED)}, ignore_patterns={list(UNWANTED)})
"""


@dataclass(frozen=True)
class HubFiles:
    """The files of a hub repository that a model is loaded from.

    Attributes:
        weights: {file of weights: its bytes}.
        size: bytes of all that is fetched.
        license: what its card states; None where it states nothing.
    """

    weights: dict[str, int]
    size: int
    license: str | None


def hub_files(hub_id: str) -> HubFiles | None:
    """Return what would be fetched of a hub repository; None where the hub does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    try:
        info = HfApi().model_info(hub_id, files_metadata=True)
    except Exception:  # the transport's, or a gate's: reading the config has said which
        return None
    every = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    kept = filter_repo_objects(every, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED))
    sizes = {name: every[name] for name in kept}
    weights = {name: size for name, size in sizes.items() if name.endswith(".safetensors")}
    stated = getattr(info.card_data, "license", None)
    return HubFiles(weights, sum(sizes.values()), stated if isinstance(stated, str) else None)


def download(hub_id: str, told: Callable[[int], None], ended: threading.Event) -> None:
    """Fetch a model's files into the hub's cache, where `load_model` finds them.

    Args:
        hub_id: of the form owner/name.
        told: called four times a second or so, with the bytes that have come.
        ended: set by whoever no longer wants them; what has come stays for the next time.

    Raises:
        ModelError: they do not come; the line is the hub client's.
    """
    before = _bytes_of(hub_id)
    fetching = subprocess.Popen(
        [sys.executable, "-P", "-c", _ENDS_WITH_US + _FETCH, hub_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    said: list[str] = []
    reading = threading.Thread(target=lambda: said.extend(fetching.stderr or ()), daemon=True)
    reading.start()
    try:
        while fetching.poll() is None and not ended.is_set():
            told(max(0, _bytes_of(hub_id) - before))
            ended.wait(_PAUSE)
    finally:
        if fetching.poll() is None:
            fetching.terminate()
        code = fetching.wait()
        if fetching.stdin is not None:
            fetching.stdin.close()
    reading.join()
    if code and not ended.is_set():
        why = next((line.strip() for line in reversed(said) if line.strip()), f"exit code {code}")
        raise ModelError(redacted(f"{hub_id} cannot be downloaded: {why}"))


def _bytes_of(hub_id: str) -> int:
    """Return the bytes of a repository in the hub's cache, those that are on their way too."""
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}" / "blobs"
    size = 0
    for path in blobs.glob("*"):
        with contextlib.suppress(OSError):  # renamed since
            size += path.stat().st_size
    return size
