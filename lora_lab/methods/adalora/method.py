"""AdaLoRA's entry in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_lab.errors import ConfigError
from lora_lab.methods.adalora.config import AdaLoraConfig
from lora_lab.methods.config import words
from lora_lab.methods.descriptor import Field, Method, Plan, register
from lora_lab.methods.lora.method import FACTORS, TARGETS
from lora_lab.methods.lora.targets import common_rank, config_from_ranks, ranks

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def _ranks(anatomy: Anatomy, config: AdaLoraConfig) -> dict[str, int]:
    start = ranks(anatomy, config.at_start())
    return {name: min(r, config.target_r) for name, r in start.items()}


def _rank_fields(
    anatomy: Anatomy, painted: Mapping[str, int], _config: AdaLoraConfig
) -> dict[str, Any]:
    """Return the rank that most targets have, for the budget is one for all of them."""
    target = common_rank(painted)
    same = {name: target for name, r in painted.items() if r}
    if held := [name for name in same if name in anatomy.parameters_by_name]:
        raise ConfigError(
            f"AdaLoRA has no target_parameters, and {held[0]} is one; clear its cell, or paint it "
            "with LoRA"
        )
    return {"target_r": target, "target_modules": config_from_ranks(anatomy, same).target_modules}


def _automatic(plan: Plan) -> dict[str, int]:
    """Return the start's rank and the schedule.

    init_r is 1.5 times the final rank, as in the paper, and no more than the smallest matrix has
    room for. The schedule has the medians of the paper's Table 8 (eight tasks of GLUE, their steps
    counted): t_i 13 % of all steps, t_f 48 %, Δ_T 0.2 %.
    """
    wanted = (3 * plan.rank + 1) // 2
    found = {"init_r": max(plan.rank, min(wanted, plan.limit or wanted))}
    if (steps := plan.steps) is not None:
        found |= {
            "tinit": round(0.13 * steps),
            "tfinal": max(0, min(round(0.48 * steps), steps - 2)),  # a cut needs two steps
            "deltaT": max(1, round(0.002 * steps)),
        }
    return found


def _schedule(name: str, text: str) -> Field:
    return Field(name, name, text, int, flag=None, automatic=True)  # it costs nothing


def _about(config: AdaLoraConfig) -> str:
    return (
        f"rank {config.init_r} at the start, a mean of {config.target_r} at the end: memory is the "
        "start's, the checkpoint the end's"
    )


def _setting(config: AdaLoraConfig) -> str:
    return f"r = {config.init_r} → {config.target_r}, {words(config.target_modules)}"


def _numbers(config: AdaLoraConfig) -> str:
    return (
        f"r {config.init_r} → {config.target_r} · α {config.lora_alpha:g} · "
        f"dropout {config.lora_dropout:g}"
    )


register(
    Method(
        name="AdaLoRA",
        key="adalora",
        config=AdaLoraConfig,
        adapter="lora_lab.methods.adalora.adapter:AdaLoraAdapter",
        cost="lora_lab.methods.adalora.cost:adalora_cost",
        fields=(
            Field("target_r", "r", "mean rank of the targets at the end", int, "r", painted=True),
            TARGETS,
            *FACTORS,
            Field(
                "init_r",
                "init_r",
                "rank of every target at the start; by default 1.5 times the last one",
                int,
                automatic=True,
            ),
            _schedule("tinit", "steps before the first cut; by default 13 % of all"),
            _schedule("tfinal", "steps after the last cut; by default 48 % of all"),
            _schedule("deltaT", "steps from one cut to the next; by default 0.2 % of all"),
        ),
        about=_about,
        numbers=_numbers,
        setting=_setting,
        size=lambda config: f"r {config.init_r}→{config.target_r}",
        rank="target_r",
        rate_from="as LoRA's; 5e-4 to 2.2e-3 in its paper's Table 8",
        small_rate=1e-2,
        ranks=_ranks,
        rank_fields=_rank_fields,
        automatic=_automatic,
        peft_form=True,
        order=20,
    )
)
