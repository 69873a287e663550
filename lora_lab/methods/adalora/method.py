"""AdaLoRA's entry in the registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_lab.methods.adalora.config import AdaLoraConfig
from lora_lab.methods.descriptor import Field, Method, Plan, register
from lora_lab.methods.lora.method import FACTORS, TARGETS
from lora_lab.methods.lora.targets import config_from_ranks, ranks

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def _ranks(anatomy: Anatomy, config: AdaLoraConfig) -> dict[str, int]:
    return dict.fromkeys(ranks(anatomy, config.at_start()), config.target_r)


def _with_ranks(
    anatomy: Anatomy, painted: Mapping[str, int], config: AdaLoraConfig
) -> AdaLoraConfig:
    """Return a config of the rank that most targets have: the budget is one for all of them."""
    (target, _), *_ = Counter(r for r in painted.values() if r).most_common(1) or [(1, 0)]
    same = {name: target for name, r in painted.items() if r}
    targets = config_from_ranks(anatomy, same).target_modules
    return config.replace(target_r=target, target_modules=targets)


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


def _about(config: AdaLoraConfig) -> str:
    return (
        f"rank {config.init_r} at the start, a mean of {config.target_r} at the end: memory is the "
        "start's, the checkpoint the end's"
    )


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
                "rank of every target at the start; empty: 1.5 times the last one",
                int,
                automatic=True,
            ),
            Field("tinit", "tinit", "steps before the first cut; empty: 13 %", int, automatic=True),
            Field("tfinal", "tfinal", "steps after the last cut; empty: 48 %", int, automatic=True),
            Field(
                "deltaT",
                "deltaT",
                "steps from one cut to the next; empty: 0.2 % of all, at least 1",
                int,
                "delta-t",
                automatic=True,
            ),
        ),
        about=_about,
        numbers=_numbers,
        rank="target_r",
        ranks=_ranks,
        with_ranks=_with_ranks,
        automatic=_automatic,
        peft_form=True,
        order=20,
    )
)
