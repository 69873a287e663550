"""A whole run, from its call to its saved adapter, against HF Trainer with PEFT on the same rows.

`python -m benchmarks.whole_run --steps 100 --rounds 1` is the run that a person waits for (q and v,
r = 8, batch 8), about 8 minutes on two quiet cores. With fewer steps both begin a run of 100 and
are stopped; our first step is the longest of all then, and our last has a checkpoint. Both read the
same rows, tokenize what they need, train, and save; PEFT's side tokenizes no row that its steps do
not reach. The data are looked for in `shared/data/e2e` beside the checkout; where there are none,
embedded ones of that form serve.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

import lora_lab as ll
from benchmarks._measure import Row, median_ratio, print_table

DATA = Path(__file__).parents[2] / "shared" / "data" / "e2e" / "trainset.csv"
REACH = 0.70
STEPS, BATCH, RATE, LENGTH, WARMUP = 100, 8, 2e-3, 128, 0.05
TARGETS = ("q_proj", "v_proj")


@dataclass
class Measured:
    """One run: its seconds, when its steps ended, and its losses by step."""

    cpu: float = 0.0
    wall: float = 0.0
    ends: list[float] = field(default_factory=list)  # CPU seconds
    losses: list[float] = field(default_factory=list)
    held_out: float = math.nan  # nats per learned token

    @property
    def step(self) -> float:
        """CPU seconds of a step, in the mean of all but the first."""
        return (self.ends[-1] - self.ends[0]) / max(1, len(self.ends) - 1)


@contextlib.contextmanager
def clocks(measured: Measured) -> Iterator[None]:
    """Measure the block."""
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    measured.cpu, measured.wall = time.process_time() - cpu, time.perf_counter() - wall


def encoded(lm: Any, task: Any, row: Any) -> dict[str, list[int]]:
    """Return a row's tokens and labels, without ours or PEFT's data code."""
    prompt = lm.tokenizer(task.prompt_text(row.prompt))["input_ids"]
    completion = [*lm.tokenizer(row.completion)["input_ids"], lm.tokenizer.eos_token_id]
    prompt = prompt[-(LENGTH - len(completion)) :]
    return {
        "input_ids": prompt + completion,
        "attention_mask": [1] * (len(prompt) + len(completion)),
        "labels": [-100] * len(prompt) + completion,
    }


@torch.no_grad()
def held_out_loss(lm: Any, task: Any, rows: int) -> float:
    """Return the mean cross-entropy of the learned tokens of held-out rows, one row at a time."""
    lm.model.eval()
    total, count = 0.0, 0
    for row in task.validation[:rows]:
        one = {key: torch.tensor([ids]) for key, ids in encoded(lm, task, row).items()}
        logits = lm.model(one["input_ids"]).logits[0, :-1].double()  # (T - 1, V)
        labels = one["labels"][0, 1:]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    return total / max(1, count)


def ours(lm: Any, task: Any, steps: int, seed: int, held_out: int) -> Measured:
    """Train with LoRA Lab."""
    measured = Measured()
    with tempfile.TemporaryDirectory() as folder:
        with clocks(measured):
            run = ll.train(
                lm,
                task,
                ll.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS),
                max_steps=max(steps, STEPS),
                per_device_train_batch_size=BATCH,
                learning_rate=RATE,
                max_length=LENGTH,
                warmup_steps=WARMUP,
                eval_examples=0,
                seed=seed,
                output_dir=folder,
            )
            seen = 0
            while not run.wait(0.02):
                if run.snapshot.step > seen:
                    seen = run.snapshot.step
                    measured.ends.append(time.process_time())
                    if steps - 1 <= seen < STEPS - 1:
                        run.stop()  # after the step under way
            run.result()
        measured.losses = [loss for _, loss in run.losses]
        measured.held_out = held_out_loss(lm, task, held_out)
    ll.detach(lm.model)
    return measured


class Clock(transformers.TrainerCallback):
    """Notes when each step ends, and stops after so many."""

    def __init__(self, measured: Measured, steps: int) -> None:
        self.measured = measured
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Note it."""
        self.measured.ends.append(time.process_time())
        control.should_training_stop = state.global_step >= self.steps


def theirs(lm: Any, task: Any, steps: int, seed: int, held_out: int) -> Measured:
    """Train with HF Trainer and PEFT."""
    import peft

    measured = Measured()
    tokenizer = lm.tokenizer
    rows = task.train

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, place: int) -> dict[str, list[int]]:
            return encoded(lm, task, rows[place])

    with tempfile.TemporaryDirectory() as folder, clocks(measured):
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=8, lora_alpha=16, target_modules=[*TARGETS], task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(lm.model, config)
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=max(steps, STEPS),
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            warmup_steps=WARMUP,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            logging_strategy="steps",
            logging_steps=1,
            disable_tqdm=True,
        )
        collator = transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=Rows(),
            data_collator=collator,
            callbacks=[Clock(measured, steps)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        model.save_pretrained(folder)
    measured.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    measured.held_out = held_out_loss(lm, task, held_out)
    model.unload()
    return measured


def data(path: Path) -> Any:
    """Return E2E's official training set, or the one of the same form that is embedded."""
    if path.is_file():
        return ll.load_task(path, prompt="mr", completion="ref")
    return ll.load_task("mini-e2e")


def rows_of(found: dict[str, list[Measured]], steps: int, held_out: int) -> list[Row]:
    """Return the table's lines."""
    mine, peer = found["ours"], found["theirs"]
    rows = []
    for what, name in (("cpu", "processor time"), ("wall", "on the clock")):
        pair = [[getattr(each, what) for each in side] for side in (mine, peer)]
        ratio = median_ratio(*pair)
        note = " against ".join(f"{statistics.median(side):.1f} s" for side in pair)
        rows.append(
            Row(f"{steps} steps, {name}", f"{ratio:.3f}×", f"≤ {REACH:.2f}×", ratio <= REACH, note)
        )
    pair = [[each.step for each in side] for side in (mine, peer)]
    note = " against ".join(f"{statistics.median(side):.2f} s" for side in pair)
    rows.append(Row("a steady step, processor time", f"{median_ratio(*pair):.3f}×", "", None, note))
    pair = [[each.cpu - steps * each.step for each in side] for side in (mine, peer)]
    note = " against ".join(f"{statistics.median(side):.2f} s" for side in pair)
    rows.append(Row("all but the steps, processor time", note, "", None))
    ends = [[each.held_out for each in side] for side in (mine, peer)]
    spread = max(ends[1]) - min(ends[1])
    note = " against ".join(", ".join(f"{end:.3f}" for end in side) for side in ends)
    apart = abs(statistics.fmean(ends[0]) - statistics.fmean(ends[1]))
    rows.append(
        Row(
            f"loss on {held_out} held-out rows, a seed a round", f"{apart:.3f} apart", "", None,
            f"{note}; PEFT's seeds are {spread:.3f} apart",
        )
    )  # fmt: skip
    return rows


def main(argv: list[str] | None = None) -> None:
    """Alternate whole runs of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--held-out", type=int, default=128, help="rows that the loss is over")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", type=Path, default=DATA, help="E2E's official trainset.csv")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    task = data(options.data)
    lm = ll.load_model("smollm2-135m")
    found: dict[str, list[Measured]] = {"ours": [], "theirs": []}
    for train in (ours, theirs):  # kernels and files are warm then
        train(lm, task, 2, 0, 0)
    for seed in range(options.rounds):
        for who, train in (("ours", ours), ("theirs", theirs)):
            found[who].append(train(lm, task, options.steps, seed, options.held_out))
    print_table(
        f"A whole run against HF Trainer with PEFT, SmolLM2-135M, {task.name}, q and v, r = 8, "
        f"batch {BATCH}",
        rows_of(found, options.steps, options.held_out),
    )


if __name__ == "__main__":
    main()
