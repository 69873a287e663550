"""The peak of a training step whose logits are made for labels alone, against all of them.

`python -m benchmarks.loss_peak` takes about a minute and 5 GiB. Bytes are those of live tensors,
the same on every machine; the run in README's picture is the default one on the embedded model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

import lora_lab as ll
from benchmarks._large_vocabulary import adapted, words
from benchmarks._measure import Row, print_table
from lora_lab.budget.meter import Meter
from lora_lab.tasks import label_logits
from lora_lab.tasks.label_logits import label_logits as of_labels

PICTURE, BEFORE, LARGE = 0.70, 1.81, 0.60  # the second in GiB: what README's picture showed
BATCH, LENGTH, LEARNED = 8, 128, 48  # of the large vocabulary


def picture(whole: bool, steps: int) -> int:
    """Return the peak of a few steps of the default run, bytes; with all logits if `whole`."""
    lm, task = ll.load_model("smollm2-135m"), ll.load_task("mini-e2e")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(
            label_logits,
            "output_layer",
            (lambda _: (None, "")) if whole else label_logits.output_layer,
        ),
    ):
        run = ll.train(
            lm,
            task,
            ll.LoraConfig(r=8, target_modules=["q", "v"]),
            max_steps=steps,
            eval_examples=0,
            output_dir=folder,
        )
        run.result()
        assert run.snapshot.memory is not None
        return run.snapshot.memory.peak


def step_peak(model: Any, loss_of: Callable[..., torch.Tensor]) -> int:
    """Return the peak of the second of two steps of a model, bytes."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, fused=True)
    meter = Meter(model, optimizer)
    ids = torch.randint(5, 1000, (BATCH, LENGTH))
    labels = ids.where(torch.arange(LENGTH) >= LENGTH - LEARNED, -100)
    for _ in range(2):
        with meter.measure(ids.numel()):
            loss = loss_of(model, input_ids=ids, labels=labels, use_cache=False)
            meter.sample()
            loss.backward()
        with meter.measure_update():
            optimizer.step()
        optimizer.zero_grad()
    return meter.reading().peak


def ours(model: Any, **batch: Any) -> torch.Tensor:
    """Return the loss as runs compute it."""
    with of_labels(model, BATCH * LEARNED):
        loss: torch.Tensor = model(**batch).loss
    return loss


def large() -> tuple[int, int]:
    """Return our peak and PEFT's."""
    return step_peak(adapted(ours=True), ours), step_peak(
        adapted(ours=False), lambda model, **batch: model(**batch).loss
    )


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="of the run in README's picture")
    steps = parser.parse_args(argv).steps
    now, whole = picture(whole=False, steps=steps), picture(whole=True, steps=steps)
    mine, theirs = large()
    gib, sizes = 2**30, f"{BATCH} × {LENGTH} tokens, {LEARNED} learned"
    rows = [
        Row(
            "the run in README's picture, against what it showed",
            f"{now / gib / BEFORE:.2f}×",
            f"≤ {PICTURE:.2f}×",
            now / gib / BEFORE <= PICTURE,
            f"{now / gib:.2f} GiB; with all logits, today, {whole / gib:.2f} GiB",
        ),
        Row(
            f"{words():,} words, 2 layers, {sizes}, against PEFT",
            f"{mine / theirs:.2f}×",
            f"≤ {LARGE:.2f}×",
            mine / theirs <= LARGE,
            f"{mine / gib:.2f} against {theirs / gib:.2f} GiB",
        ),
    ]
    print_table("Peak memory of training, q and v, r = 8", rows)


if __name__ == "__main__":
    main()
