"""What `import lora_lab` costs on top of `import torch`, each in a fresh interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks._measure import Row, alternate, print_table

REACH_S, ROUNDS = 0.3, 7


def main(rounds: int = ROUNDS) -> None:
    """Print the table."""
    runs = {
        name: lambda name=name: subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
        for name in ("torch", "lora_lab", "peft")
    }
    # The first one has the files read; a single round is not worth that.
    seconds = alternate(runs, rounds, warmup=int(rounds > 1))

    def over_torch(name: str) -> float:
        pairs = zip(seconds[name], seconds["torch"], strict=True)
        return statistics.median(ours - torchs for ours, torchs in pairs)

    ours = over_torch("lora_lab")
    print_table(
        "Import, over `import torch`",
        [
            Row(
                "lora_lab", f"+{ours:.2f} s", f"≤ +{REACH_S} s", ours <= REACH_S, "median of pairs"
            ),
            Row("peft", f"+{over_torch('peft'):.2f} s", "", None),
        ],
    )


if __name__ == "__main__":
    main()
