"""LoRA's entry in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_lab.methods.config import words
from lora_lab.methods.descriptor import Field, Method, register
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.init import INITIALIZATIONS
from lora_lab.methods.lora.targets import config_from_ranks, ranks

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy

TARGETS = Field(
    "target_modules", "targets", 'roles or modules, or "all-linear"', tuple, "targets", painted=True
)
FACTORS = (
    Field("lora_alpha", "α", "ΔW is scaled by α / r", flag="alpha"),
    Field("lora_dropout", "dropout", "on the way into A, from 0 to below 1", flag="dropout"),
)
MODULES_TO_SAVE = Field(
    "modules_to_save",
    "modules to save",
    "trained whole beside the method, parted by commas, such as lm_head",
    tuple,
    flag=None,
    automatic=True,
    more=True,
)
_TITLES = {"pissa": "PiSSA", "olora": "OLoRA", "eva": "EVA", "corda": "CorDA"}


def starts() -> dict[str, Any]:
    """Return {what people read: value of `init_lora_weights`}, those of a notebook's own too."""
    names = [name for name in INITIALIZATIONS if isinstance(name, str) and not name.endswith("_N")]
    named = {_TITLES.get(name, name): name for name in names}
    return {"B = 0": True, **named, "A and B random": False}


_PAINTED = (
    *("r", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern"),
    *("exclude_modules", "layers_to_transform", "layers_pattern"),
)


def _rank_fields(
    anatomy: Anatomy, painted: Mapping[str, int], config: LoraConfig
) -> dict[str, Any]:
    made = config_from_ranks(anatomy, painted, config)
    return {name: getattr(made, name) for name in _PAINTED}


register(
    Method(
        name="LoRA",
        key="lora",
        config=LoraConfig,
        adapter="lora_lab.methods.lora.adapter:LoraAdapter",
        cost="lora_lab.methods.lora.cost:lora_cost",
        fields=(
            Field("r", "r", "rank of every target, width of adapters", int, painted=True),
            TARGETS,
            *FACTORS,
            Field("use_rslora", "rsLoRA", "scale by α/√r, not α/r", bool, flag=None, more=True),
            Field(
                "use_dora",
                "DoRA",
                "learn the length of every output row too",
                bool,
                flag=None,
                more=True,
            ),
            Field(
                "init_lora_weights",
                "init",
                "how A and B start: B = 0 leaves ΔW at 0, PiSSA, OLoRA and CorDA start from W₀, "
                "EVA and CorDA from the run's first examples",
                str,
                flag=None,
                choices=starts,
                more=True,
            ),
            MODULES_TO_SAVE,
        ),
        about="ΔW = α/r · BA on every painted matrix; W₀ stays as it is",
        setting=lambda config: f"r = {config.r}, {words(config.target_modules)}",
        size=lambda config: f"r {config.r}",
        rank="r",
        rate_from="for some hundred steps; the paper has 2e-4 for GPT-2 (Table 11)",
        small_rate=1e-2,
        ranks=ranks,
        rank_fields=_rank_fields,
        peft_form=True,
        order=10,
    )
)
