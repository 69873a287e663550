"""Methods at their own rates on real data: MiniLM on four sets of classes, SmolLM2-135M on E2E.

`python -m benchmarks.real_data --data FOLDER --runs FOLDER`: the data in their official layouts,
FOLDER/sst2/train.tsv and test.tsv, cola/in_domain_train.tsv, …, rte/train.tsv, banking77/train.csv,
e2e/trainset.csv, …; where one is missing it is said and passed over. `--only sst2 e2e` takes some
of the studies. What is cut off goes on with the same command, cell by cell.

A study takes one method after the other, each by two calls of `ll.compare` under one name. The
first tries the method's rates with one seed and chooses on one half of the held-out rows; the
second trains the other seeds at the chosen rate, and all seeds are scored on the other half. After
each method the outcome so far is kept in benchmarks/real_data/NAME.json, with what is missing, and
benchmarks/REAL_DATA.md is written of those that are there; `--tables` writes it and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lora_lab as ll
from benchmarks._measure import machine
from benchmarks._real_data_tables import write_tables
from lora_lab.analysis.choices import Choices, remarks
from lora_lab.anatomy import anatomy
from lora_lab.configs import MethodConfig
from lora_lab.sweeps.store import SweepStore
from lora_lab.tasks import ClassificationTask, Task

KEPT = Path(__file__).parent / "real_data"
TABLES = Path(__file__).parent / "REAL_DATA.md"

LORA_QV = ll.LoraConfig(r=4, lora_alpha=8, target_modules=("q", "v"))
LORA_ALL = ll.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
Tried = tuple[tuple[MethodConfig, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Study:
    """One model on one set of data.

    Attributes:
        model: its name in the catalogue.
        files: those that it reads, below the data's folder.
        task: the folder → the task; its validation part is what is halved.
        tried: each method with its rates.
        metric: what chooses the rate, and is reported first.
        goal_by: the metrics by which the goal is judged.
        train_examples: how many training rows are drawn, once for all.
        seeds: how many at the chosen rate.
        training: fields of `TrainingConfig`.
    """

    model: str
    files: tuple[str, ...]
    task: Callable[[Path], Task]
    tried: Tried
    metric: str
    goal_by: tuple[str, ...]
    train_examples: int
    seeds: int
    training: dict[str, Any]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs go")
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--tables", action="store_true", help="train nothing, write REAL_DATA.md")
    args = parser.parse_args(argv)
    if not args.tables and args.data is None:
        parser.error("--data says where the data sets are")
    for name in () if args.tables else args.only:
        study = STUDIES[name]
        if missing := [file for file in study.files if not (args.data / file).exists()]:
            print(f"{name} SKIPPED: no {missing[0]} in {args.data}", flush=True)
            continue
        measure(name, study, args.data, args.runs)
    write_all_tables()


def write_all_tables() -> None:
    """Write REAL_DATA.md of the outcomes that are kept."""
    kept = [KEPT / f"{name}.json" for name in STUDIES]
    write_tables([json.loads(p.read_text("utf-8")) for p in kept if p.exists()], TABLES)


def measure(name: str, study: Study, data: Path, runs: Path) -> None:
    """Train what has not been trained yet, and keep the outcome after each method."""
    task = study.task(data)
    labels = task.labels if isinstance(task, ClassificationTask) else None
    lm = ll.load_model(study.model, labels=labels)

    def compared(config: MethodConfig, rates: Any, seeds: int) -> Choices:
        made = ll.compare(
            lm,
            task,
            [config],
            rates=rates,
            seeds=seeds,
            metric=study.metric,
            train_examples=study.train_examples,
            output_dir=runs,
            name=name,
            **study.training,
        )
        return made.results()

    found: list[tuple[Choices, Choices]] = []
    for config, rates in study.tried:
        with spent(runs / f"{name}-spent.json") as seconds:
            chosen = compared(config, rates, seeds=1)
            found.append((chosen, compared(config, chosen.own_rates(), seeds=study.seeds)))
        kept = {
            "name": name,
            "machine": machine(),
            "cpu_minutes": round(sum(seconds) / 60, 1),
            "parameters": lm.card.parameters,
            "width": anatomy(lm.model).shape.hidden_size,
            "train_rows": len(task.train),
            "train_examples": study.train_examples,
            "training": study.training,
            "seeds": study.seeds,
            "goal_by": study.goal_by,
            "kept_before": kept_before(runs / f"{name}-{study.train_examples}"),
            "majority": majority(task, study.training["eval_examples"]),
            "missing": [own.method for own, _ in study.tried[len(found) :]],
            "chosen": joined([first for first, _ in found]).to_json(),
            "found": joined([second for _, second in found]).to_json(),
        }
        KEPT.mkdir(exist_ok=True)
        (KEPT / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        write_all_tables()
        print(f"{name}\n{found[-1][1]}\n", flush=True)


def joined(found: Sequence[Choices]) -> Choices:
    """Return the rows of several comparisons that differ in their methods, as one."""
    rows = tuple(replace(own.rows[0], place=place) for place, own in enumerate(found))
    return replace(found[0], rows=rows, note="; ".join(remarks(rows)))


@contextmanager
def spent(path: Path) -> Iterator[list[float]]:
    """Yield the processor seconds of each earlier call; this one's join them, however it ends."""
    known: list[float] = json.loads(path.read_text("utf-8")) if path.exists() else []
    began = time.process_time()
    try:
        yield known
    finally:
        known.append(time.process_time() - began)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known), "utf-8")


def kept_before(folder: Path) -> float | None:
    """Return the model's own loss on the texts that it wrote, the same in all runs; None: none."""
    before = (cell.metrics.get("kept_loss_before") for cell in SweepStore(folder).ended().values())
    return next((loss for loss in before if loss is not None), None)


def majority(task: Task, held_out: int) -> float | None:
    """Return the accuracy on the reporting half of one who always names its commonest class."""
    if not isinstance(task, ClassificationTask):
        return None
    half = [task.reference(example) for example in task.validation[:held_out][1::2]]
    return 100 * Counter(half).most_common(1)[0][1] / len(half)


def _glue(folder: str, train: str, *held_out: str) -> Callable[[Path], Task]:
    def load(data: Path) -> Task:
        files = [data / folder / name for name in held_out]
        return ll.load_task(data / folder / train, validation=files if files[1:] else files[0])

    return load


def _classes(files: tuple[str, ...], metric: str, **training: Any) -> Study:
    folder, _, train = files[0].partition("/")
    return Study(
        model="minilm-l6",
        files=files,
        task=_glue(folder, train, *(file.partition("/")[2] for file in files[1:])),
        tried=(
            (LORA_QV, (1e-3, 3e-3, 1e-2, 3e-2)),
            (ll.FullConfig(), (3e-5, 1e-4, 3e-4, 1e-3)),
            (LORA_ALL, (3e-4, 1e-3, 3e-3, 1e-2)),
            (ll.BitFitConfig(), (1e-3, 3e-3, 1e-2, 3e-2)),
            (ll.BottleneckConfig("H", r=8), (3e-4, 1e-3, 3e-3, 1e-2)),
        ),
        metric=metric,
        goal_by=(metric,),
        train_examples=2000,
        seeds=3,
        training={"head_learning_rate": 3e-3, "save_steps": 0, "kept_texts": 0, **training},
    )


STUDIES = {
    "sst2": _classes(
        ("sst2/train.tsv", "sst2/test.tsv"),
        "accuracy",
        max_steps=60,
        per_device_train_batch_size=8,
        eval_examples=400,
    ),
    "cola": _classes(
        ("cola/in_domain_train.tsv", "cola/in_domain_dev.tsv", "cola/out_of_domain_dev.tsv"),
        "matthews",
        max_steps=30,
        per_device_train_batch_size=16,
        eval_examples=400,
    ),
    "rte": _classes(
        ("rte/train.tsv", "rte/dev.tsv"),
        "accuracy",
        max_steps=60,
        per_device_train_batch_size=8,
        eval_examples=276,
    ),
    "banking77": _classes(
        ("banking77/train.csv", "banking77/test.csv"),
        "accuracy",
        max_steps=40,
        per_device_train_batch_size=32,
        eval_examples=400,
    ),
    "e2e": Study(
        model="smollm2-135m",
        files=("e2e/trainset.csv", "e2e/testset_w_refs.csv"),
        task=_glue("e2e", "trainset.csv", "testset_w_refs.csv"),
        tried=(
            (LORA_QV, (1e-3, 3e-3, 1e-2, 3e-2)),
            (ll.FullConfig(), (3e-5, 1e-4, 3e-4, 1e-3)),
            (LORA_ALL, (3e-4, 1e-3, 3e-3, 1e-2)),
            (ll.BottleneckConfig("H", r=8), (1e-3, 3e-3, 1e-2, 3e-2)),
            (ll.PrefixLayerConfig(prefix_length=8, infix_length=8), (3e-3, 1e-2, 3e-2, 1e-1)),
        ),
        metric="loss",
        goal_by=("loss", "bleu_lowercase"),
        train_examples=2000,
        seeds=2,
        training={
            "max_steps": 15,
            "per_device_train_batch_size": 4,
            "eval_examples": 32,
            "kept_texts": 8,
            "save_steps": 0,
        },
    ),
}

if __name__ == "__main__":
    main()
