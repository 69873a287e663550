"""What is installed here and what is missing, with the command that brings it."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

from lora_lab._util.format import format_bytes
from lora_lab.models.embedded import find_wheel_file
from lora_lab.models.entries import CATALOGUE

_PACKAGES = (
    "lora-lab",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "safetensors",
    "numpy",
    "gguf",
    "sacrebleu",
    "scikit-learn",
    "ipywidgets",
    "anywidget",
    "plotly",
    "jupyterlab",
)
_WIDGETS = "lora_lab_widgets.workbench"


def examine() -> dict[str, Any]:
    """Return `versions`, `devices`, `models` and `widgets` as plain JSON."""
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "devices": _devices(),
        "models": [
            {
                "name": entry.name,
                "found": find_wheel_file(entry.wheel) is not None,
                "install": entry.wheel.install_command,
            }
            for entry in CATALOGUE.values()
            if entry.wheel
        ],
        "widgets": _widgets(),
    }


def as_text(found: dict[str, Any]) -> str:
    """Return the same for people: one line a thing, a fix where something is missing."""
    lines = [
        f"  {name:<14}{version or f'missing; run: pip install {name}'}"
        for name, version in found["versions"].items()
    ]
    devices = [
        f"  {device['name']}" + (f", {format_bytes(device['memory'])}" if device["memory"] else "")
        for device in found["devices"]
    ]
    models = [
        f"  {model['name']:<14}"
        + ("found" if model["found"] else f"not installed; run: {model['install']}")
        for model in found["models"]
    ]
    widgets = found["widgets"]
    state = "ready" if widgets["importable"] else f"cannot be imported: {widgets['error']}"
    return "\n".join(
        [
            "versions",
            *lines,
            "devices",
            *devices,
            "embedded models",
            *models,
            "widgets",
            f"  {state}",
        ]
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [
        {"name": f"CPU, {torch.get_num_threads()} threads", "memory": None}
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {"name": f"cuda:{index} {properties.name}", "memory": properties.total_memory}
        )
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "memory": torch.mps.recommended_max_memory()})
    return devices


def _widgets() -> dict[str, Any]:
    """Try in another process: the core imports nothing of the notebook's."""
    tried = subprocess.run(
        [sys.executable, "-I", "-c", f"import {_WIDGETS}"],
        capture_output=True,
        text=True,
        check=False,
    )
    last = (tried.stderr.strip().splitlines() or [""])[-1]
    return {"importable": tried.returncode == 0, "error": last if tried.returncode else None}
