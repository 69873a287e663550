"""What a model takes, known from its config alone: before it is loaded, or even fetched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab._util.dtypes import DTYPES, dtype_name
from lora_lab._util.format import format_bytes, format_count
from lora_lab._util.hardware import hardware
from lora_lab._util.host_memory import available_memory
from lora_lab.anatomy.model_config import build_on_meta
from lora_lab.errors import ModelError
from lora_lab.models.choices import in_hub_cache, license_in, weights_in
from lora_lab.models.download import hub_files
from lora_lab.models.embedded import find_wheel_file
from lora_lab.models.entries import CATALOGUE
from lora_lab.models.load import model_config
from lora_lab.models.places import find_model, read_config

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class ModelNeeds:
    """What a model takes.

    Attributes:
        name: what `load_model` takes.
        kind: of model, such as "llama".
        license: of the weights; None where nothing states it.
        parameters: how many there are, tied ones counted once.
        packed: bytes of weights that are loaded as they lie on the disk, which are quantized; None
            where they are loaded in the dtype asked for.
        download: bytes that come from the hub first; 0: all is here, None: the hub does not say.
        hub_id: of what comes from the hub.
    """

    name: str
    kind: str
    license: str | None
    parameters: int
    packed: int | None = None
    download: int | None = 0
    hub_id: str | None = None

    def weights(self, dtype: torch.dtype | str) -> int:
        """Return the bytes that its weights take once they are loaded."""
        return self.packed or self.parameters * DTYPES[dtype_name(dtype)].size

    def lines(self, device: torch.device, dtype: torch.dtype | str) -> list[str]:
        """Return what people want to know before they load it."""
        about = [f"{format_count(self.parameters)} parameters", self.kind]
        about.append(f"license: {self.license or 'not stated'}")
        if self.download:
            about.append(f"{format_bytes(self.download)} to download")
        have = " and ".join(f"{format_bytes(free)} {where}" for where, free in _rooms(device))
        needs = f"its weights need {format_bytes(self.weights(dtype))} in {dtype_name(dtype)}"
        return [" · ".join(about), needs + (f", you have {have}" if have else "")]

    def check(self, device: torch.device, dtype: torch.dtype | str) -> None:
        """Refuse what would not fit into memory; training takes more, which a plan's price tells.

        Raises:
            ModelError: it does not fit; the line names both figures.
        """
        needed = self.weights(dtype)
        for where, free in _rooms(device):
            if needed > free:
                raise ModelError(
                    f"{self.name} needs {format_bytes(needed)} for its weights in "
                    f"{dtype_name(dtype)}, and you have {format_bytes(free)} {where}; take a "
                    "smaller model, a dtype of fewer bytes, or free memory"
                )


def model_needs(name: str) -> ModelNeeds:
    """Return what a model takes; its config is read, from the hub where it is not here.

    Raises:
        ModelError: as `load_model`, as far as the config tells.
    """
    entry = CATALOGUE.get(name)
    if entry is not None and entry.wheel is not None and find_wheel_file(entry.wheel):
        config = model_config(name)
        return ModelNeeds(name, config.model_type, entry.license, _parameters(config))
    place = find_model(name)
    config = read_config(place)
    here = in_hub_cache(place.location) if place.source == "hub" else Path(place.location)
    files = weights_in(here) if here else {}
    license_ = place.license or (license_in(here) if here else None)
    download, hub_id = (0 if files else None), None
    if place.source == "hub" and not files:
        hub_id = place.location
        if (on_hub := hub_files(hub_id)) is not None:
            files, download = on_hub.weights, on_hub.size
            license_ = license_ or on_hub.license
    is_packed = getattr(config, "quantization_config", None) is not None
    packed = sum(files.values()) if files and is_packed else None
    kind, parameters = config.model_type, _parameters(config)
    return ModelNeeds(name, kind, license_, parameters, packed, download, hub_id)


def _parameters(config: PretrainedConfig) -> int:
    return sum(parameter.numel() for parameter in build_on_meta(config).parameters())


def _rooms(device: torch.device) -> Iterator[tuple[str, int]]:
    """Yield where weights lie while they are loaded, and how many bytes are free there.

    What goes to a GPU is read into the computer's memory first.
    """
    if (free := available_memory()) is not None:
        yield "free in memory", free
    here = hardware(device)
    if (room := here.free_and_total()) is not None:
        yield f"free on the {here.name() or device.type.upper()}", room[0]
