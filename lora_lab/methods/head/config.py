"""A classifier's head, trained whole beside a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_lab.errors import ConfigError
from lora_lab.methods.config import MethodConfig


@dataclass(frozen=True)
class HeadConfig(MethodConfig):
    """The model's head is trained whole: it starts at random, so every method needs it.

    The paper's counts of trainable parameters leave heads out. `train` adds this to what it is
    given where the task has classes; LoRA has `modules_to_save` for it, as in PEFT.

    Attributes:
        modules: whole paths of modules, or their ends; None: those of a
            …ForSequenceClassification outside of the model that reads the text.
    """

    modules: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(given := self.modules, str):
            raise ConfigError(f"modules is {given!r}; it must be a list: [{given!r}]")
        if given is not None:
            if not given:
                raise ConfigError("modules is empty; name at least one, or leave it out")
            object.__setattr__(self, "modules", tuple(given))

    @property
    def method(self) -> str:
        """What is trained; the paper has no name for it."""
        return "Head"


def head_names(config: HeadConfig, found: Sequence[str]) -> Sequence[str]:
    """Return what a config names, or else a classifier's head.

    Args:
        config: whose `modules` may be None.
        found: what `head_modules` returned of the model.

    Raises:
        ConfigError: it names nothing, and the model has no head.
    """
    names = found if config.modules is None else config.modules
    if not names:
        raise ConfigError(
            "this model has no classification head; name its modules, such as "
            "HeadConfig(modules=['classifier'])"
        )
    return names
