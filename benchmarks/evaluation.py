"""What scoring the held-out examples takes of a default run's time, before and after training.

`python -m benchmarks.evaluation` trains SmolLM2-135M on mini-e2e twice for a few steps, as by
default but for their number; the scores' seconds are measured whole, and so are the steps' but the
first, of which a default run takes 100. The second run has the base model's score from the first.
About two minutes on two cores; `--steps 100` measures the whole run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import lora_lab as ll
from benchmarks._measure import Row, print_table
from lora_lab.configs import TrainingConfig

REACH = 0.15


def phases(run: Any) -> dict[str, float]:
    """Train; return the seconds of each phase, and of a step under "step"."""
    seconds: dict[str, float] = {}
    ends: list[float] = []
    publish, now, since = run.publish, "", time.perf_counter()

    def timed(**changes: Any) -> None:
        nonlocal now, since
        publish(**changes)
        at = time.perf_counter()
        if "phase" in changes:
            seconds[now] = seconds.get(now, 0.0) + at - since
            now, since = changes["phase"].partition(",")[0], at
        if changes.get("loss") is not None and changes.get("step"):
            ends.append(at)

    run.publish = timed
    run.start().result()
    return seconds | {"step": (ends[-1] - ends[0]) / max(1, len(ends) - 1)}


def main(argv: list[str] | None = None) -> None:
    """Measure both runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = TrainingConfig()
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument(
        "--prompts",
        type=int,
        default=default.eval_examples,
        help="scored; of fewer than the default's the seconds are taken in proportion",
    )
    options = parser.parse_args(argv)
    share_of_prompts = options.prompts / default.eval_examples
    few = {
        "eval_examples": options.prompts,
        "kept_texts": round(default.kept_texts * share_of_prompts),
    }
    lm, task = ll.load_model("smollm2-135m"), ll.load_task("mini-e2e")
    rows = []
    for name, reach in (("a default run", REACH), ("the next on the same model", REACH)):
        with tempfile.TemporaryDirectory() as folder:
            run = ll.train(lm, task, output_dir=folder, max_steps=options.steps, start=False, **few)
            found = phases(run)
        ll.detach(lm.model)
        before = found.get("evaluating the base model", 0.0) / share_of_prompts
        after = found.get("evaluating", 0.0) / share_of_prompts
        whole = default.max_steps * found["step"] + before + after
        share = (before + after) / whole
        note = (
            f"{before:.1f} s before and {after:.1f} s after, for {default.eval_examples} prompts"
            f"{f' by {options.prompts}' if share_of_prompts < 1 else ''}; "
            f"{found['step']:.2f} s a step"
        )
        what = f"scores' share of {name}, {default.max_steps} steps"
        rows.append(Row(what, f"{share:.3f}", f"≤ {reach:.2f}", share <= reach, note))
    print_table("Evaluation before and after training", rows)


if __name__ == "__main__":
    main()
