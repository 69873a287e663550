"""What the workbench would train now: the method chosen, its settings, the ranks painted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_lab.anatomy.types import Anatomy
from lora_lab.configs import MethodConfig
from lora_lab.methods.adalora.config import AdaLoraConfig
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import Config
from lora_lab.methods.lora.config import LoraConfig
from lora_lab_widgets.methods import (
    Method,
    Values,
    choices,
    configs_of,
    method_called,
    method_of,
    ranks_of,
    values_of,
)


class Plans:
    """Turns settings and painted ranks into configs, and configs into settings and ranks.

    Args:
        anatomy: of the model.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._templates: dict[type, Config] = {}
        # Set from Python, and what no method of the drop-down can show.
        self._given: tuple[Method, tuple[MethodConfig, ...]] | None = None

    def take(self, configs: Sequence[MethodConfig]) -> tuple[dict[str, Any], dict[str, int] | None]:
        """Return the settings and the ranks that show these configs; None: they have no ranks.

        What no setting shows is kept for `configs`.

        Raises:
            ConfigError: what is no config of a method, or does not fit the model.
        """
        as_config(configs)
        method = method_of(configs)
        painted = ranks_of(self._anatomy, configs) if method.parts else None
        if method.parts:
            kept = (LoraConfig, AdaLoraConfig)  # the others have no field that no setting shows
            self._templates |= {type(c): c for c in configs if isinstance(c, kept)}
        else:
            self._given = method, tuple(configs)
        return values_of(method, configs), painted

    def method(self, values: Values) -> Method:
        """Return the chosen method.

        Raises:
            ConfigError: there is none of that name.
        """
        if self._given and values["method"] == self._given[0].name:
            return self._given[0]
        return method_called(values["method"])

    def choices(self, values: Values) -> list[dict[str, Any]]:
        """Return the entries of the drop-down."""
        return choices(values, self._given[0] if self._given else None)

    def configs(
        self, values: Values, painted: Mapping[str, int], max_steps: int
    ) -> tuple[MethodConfig, ...]:
        """Return what would be trained.

        Raises:
            ConfigError: nothing is painted, or a setting that cannot be.
        """
        method = self.method(values)
        if not method.parts:
            assert self._given
            return self._given[1]
        return configs_of(method, values, self._anatomy, painted, self._templates, max_steps)

    def lora(self, dropout: Any) -> LoraConfig:
        """Return LoRA as it is priced: with the options that no setting shows."""
        template = self._templates.get(LoraConfig, LoraConfig())
        assert isinstance(template, LoraConfig)
        return template.replace(lora_dropout=dropout)

    def is_lora(self, values: Values) -> bool:
        """Return whether the painted ranks are the whole plan."""
        return values["method"] == "LoRA"
