"""AdaLoRA against LoRA at the same final budget, on real SST-2 (GLUE), with all-MiniLM-L6-v2.

`python -m benchmarks.adalora_sst2 --data FOLDER`, or `LORA_LAB_SST2=FOLDER` in the environment: a
folder with train.tsv, dev.tsv and test.tsv, columns `sentence` and `label`, GLUE's dev set as the
test. By default `shared/data/sst2` beside the checkout; where there is none, it says so and ends.

Both adapt all six matrices of every block. LoRA has rank 4, AdaLoRA starts at 6 and ends at a mean
of 4, with the same scale s = 2. Its schedule is that of Zhang et al. (2023), table 8 for SST-2, in
shares of the steps. Each method's learning rate is the best of one grid on the dev set, seed 0;
then each seed is trained once and scored once on the test set. Steps, batch and all else are equal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import lora_lab as ll
from benchmarks._measure import Row, print_table
from lora_lab.configs import MethodConfig
from lora_lab.tasks import ClassificationTask
from lora_lab.training.run import Run

DATA = Path(__file__).parents[2] / "shared" / "data" / "sst2"
ROLES = ("q", "k", "v", "o", "up", "down")
RANK, FIRST_RANK, SCALE = 4, 6, 2
RATES = (1e-3, 2e-3, 4e-3)
# Zhang et al. (2023), table 8, SST-2: 24 epochs of 67,349 examples in batches of 32.
PAPER_STEPS, PAPER_TINIT, PAPER_TFINAL, GAMMA = 24 * 67_349 / 32, 6000, 22_000, 0.1
CUTS = 20  # between the first and the last cut; the paper has more steps and so more of them
HELD_OUT = 872  # the size of GLUE's dev set, for tuning too


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LORA_LAB_SST2", DATA)))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    args = parser.parse_args(argv)
    missing = [p for p in ("train", "dev", "test") if not (args.data / f"{p}.tsv").exists()]
    if missing:
        print(
            f"ADALORA ON SST-2 SKIPPED: no {missing[0]}.tsv in {args.data}; name the folder with "
            "--data or LORA_LAB_SST2",
            flush=True,
        )
        return
    scores: dict[str, list[float]] = {}
    rows = []
    for config in (lora(), adalora(args.steps)):
        rate, tuned = _tuned(args, config)
        found = [accuracy(args, config, "test", rate, seed) for seed in range(args.seeds)]
        rows.append(_row(config.method, found, rate, tuned))
        scores[config.method] = found
    differences = [a - b for a, b in zip(scores["AdaLoRA"], scores["LoRA"], strict=True)]
    rows.append(
        Row(
            "AdaLoRA − LoRA, seed by seed",
            f"{statistics.fmean(differences):+.2f}",
            "",
            None,
            f"{_each(differences, '+.2f')}; the paper, DeBERTaV3-base at 0.3M: +0.85",
        )
    )
    title = f"AdaLoRA against LoRA on SST-2, MiniLM, {args.steps} steps of {args.batch}, accuracy"
    print_table(title, rows)


def _tuned(args: argparse.Namespace, config: MethodConfig) -> tuple[float, dict[float, float]]:
    """Return the best rate on the dev set, and each one's accuracy; of one rate, itself."""
    if len(args.rates) == 1:
        return args.rates[0], {}
    tuned = {rate: accuracy(args, config, "dev", rate, seed=0) for rate in args.rates}
    return max(tuned, key=lambda rate: tuned[rate]), tuned


def lora() -> MethodConfig:
    return ll.LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=ROLES)


def adalora(steps: int) -> MethodConfig:
    tinit = round(steps * PAPER_TINIT / PAPER_STEPS)
    tfinal = round(steps * PAPER_TFINAL / PAPER_STEPS)
    return ll.AdaLoraConfig(
        target_r=RANK,
        init_r=FIRST_RANK,
        tinit=tinit,
        tfinal=tfinal,
        deltaT=max(1, (steps - tinit - tfinal) // CUTS),
        orth_reg_weight=GAMMA,
        lora_alpha=SCALE * FIRST_RANK,
        target_modules=ROLES,
    )


def accuracy(
    args: argparse.Namespace, config: MethodConfig, part: str, rate: float, seed: int
) -> float:
    """Train once; return the accuracy in percent on dev.tsv's first rows, or all of test.tsv."""
    task = ll.load_task(
        args.data / "train.tsv",
        text="sentence",
        label="label",
        validation=args.data / f"{part}.tsv",
    )
    assert isinstance(task, ClassificationTask)
    lm = ll.load_model("minilm-l6", labels=task.labels, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        run = ll.train(
            lm,
            task,
            config,
            output_dir=folder,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            learning_rate=rate,
            warmup_steps=args.steps // 10,
            eval_examples=HELD_OUT,
            save_steps=0,
            seed=seed,
        )
        found = run.result().metrics["accuracy_after"]
    _say(run, part, rate, seed, found)
    return found


def _say(run: Run, part: str, rate: float, seed: int, found: float) -> None:
    assert run.adapter is not None
    print(
        f"{run.configs[0].method} at {rate:g}, seed {seed}: {found:.2f} % on {part}.tsv, "
        f"{run.adapter.trainable:,} parameters at the end with the head, "
        f"{run.snapshot.elapsed_seconds:.0f} s",
        flush=True,
    )


def _row(name: str, found: Sequence[float], rate: float, tuned: dict[float, float]) -> Row:
    grid = ", ".join(f"{rate:g}: {value:.1f}" for rate, value in tuned.items())
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return Row(
        f"{name}, learning rate {rate:g}",
        f"{statistics.fmean(found):.2f}{spread} %",
        "",
        None,
        f"seeds {_each(found, '.2f')}; " + (f"tuned on dev: {grid}" if grid else "rate not tuned"),
    )


def _each(values: Sequence[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


if __name__ == "__main__":
    main()
