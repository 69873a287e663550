"""What the configs of IA3 and OFT share; the names are PEFT's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_lab.errors import ConfigError
from lora_lab.methods.config import as_names
from lora_lab.methods.lora.peft_fields import PeftConfig, task_name


@dataclass(frozen=True)
class LayerConfig(PeftConfig):
    """Which layers are changed, and what is trained beside them.

    Attributes:
        target_modules, exclude_modules, modules_to_save, task_type, inference_mode: as in
            `LoraConfig`.
        fan_in_fan_out: PEFT's field; a layer tells itself how its weight is stored.
    """

    target_modules: Sequence[str] | str = ("q", "v")
    exclude_modules: Sequence[str] | str | None = None
    modules_to_save: Sequence[str] | None = None
    task_type: str | None = None
    inference_mode: bool = False
    fan_in_fan_out: bool = False

    def __post_init__(self) -> None:
        if not self.target_modules:
            raise ConfigError('target_modules is empty; name at least one, such as ["k", "v"]')
        if isinstance(saved := self.modules_to_save, str):
            raise ConfigError(f"modules_to_save is {saved!r}; it must be a list: [{saved!r}]")
        object.__setattr__(self, "target_modules", as_names("target_modules", self.target_modules))
        for name in ("exclude_modules", "modules_to_save"):
            object.__setattr__(self, name, as_names(name, getattr(self, name)) or None)
        object.__setattr__(self, "task_type", task_name(self.task_type))

    def check_steps(self, total: int) -> None:  # noqa: ARG002
        """Refuse to train what is there for inference alone; see `MethodConfig.check_steps`."""
        if self.inference_mode:
            raise ConfigError("inference_mode=True trains nothing; set inference_mode=False")
