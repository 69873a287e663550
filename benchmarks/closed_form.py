"""A forecast of GPT-3 175B: anatomy and price together, against building its 96 blocks on meta."""

from __future__ import annotations

import statistics

from benchmarks._measure import Row, alternate, median_ratio, print_table
from lora_lab.anatomy import anatomy
from lora_lab.anatomy.model_config import build_on_meta
from lora_lab.budget import budget
from lora_lab.configs import BottleneckConfig, LoraConfig, PrefixEmbedConfig
from lora_lab.models import model_config

REACH_S, ROUNDS = 0.05, 9
PLANS = {
    "LoRA, r=4, q and v": LoraConfig(r=4),
    "Adapter^H, r=8": BottleneckConfig("H", 8),
    "LoRA+PE": [LoraConfig(r=8), PrefixEmbedConfig(8, 4)],
}


def main() -> None:
    config = model_config("gpt3-175b")
    runs = {
        name: lambda plan=plan: budget(anatomy(config), plan, optimizer="adamw_8bit")
        for name, plan in PLANS.items()
    }
    seconds = alternate({**runs, "build": lambda: build_on_meta(config)}, ROUNDS)
    rows = []
    for name in PLANS:
        median = statistics.median(seconds[name])
        ratio = 1 / median_ratio(seconds[name], seconds["build"])
        note = f"{ratio:.0f}× quicker than building the model on meta"
        reach = f"≤ {1000 * REACH_S:.0f} ms"
        rows.append(Row(name, f"{1000 * median:.0f} ms", reach, median <= REACH_S, note))
    print_table("Forecast of GPT-3 175B, anatomy included", rows)


if __name__ == "__main__":
    main()
