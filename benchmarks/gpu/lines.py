"""The lines of the table: what is looked at, what is expected, and who looks. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.packages import BASE


@dataclass(frozen=True)
class Place:
    """Where a line is run.

    Attributes:
        device: "cuda", or "cpu" in a rehearsal.
        folder: for what it writes.
        small: sizes of a rehearsal.
    """

    device: str
    folder: Path
    small: bool


@dataclass(frozen=True)
class Line:
    """One subject of the table.

    Attributes:
        name: for `--only`.
        what: what people read where it could not be run, and in docs/gpu.md.
        expected: in one phrase.
        check: "module:function", (Place) → rows.
        seconds: that it may take.
        needs: packages beside `BASE`.
    """

    name: str
    what: str
    expected: str
    check: str
    seconds: int
    needs: tuple[str, ...] = ()

    @property
    def packages(self) -> tuple[str, ...]:
        """All packages that it needs."""
        return BASE + self.needs


# In the order in which they are run: what is quick and tells most comes first.
LINES = (
    Line(
        "fused",
        "A fused AdamW step and the parameter's version",
        "unchanged: nothing may rest on it",
        "benchmarks.gpu.learning:fused_version",
        10,
    ),
    Line(
        "dora",
        "DoRA after 60 fused steps: live = reloaded = merged",
        "logits within 1e-4; merged within 1e-3",
        "benchmarks.gpu.learning:dora",
        40,
    ),
    Line(
        "methods",
        "Each method, 5 steps: with gradient checkpointing as without, on the GPU as on the CPU",
        "losses within 1e-4; the CPU's within 1e-3",
        "benchmarks.gpu.learning:methods",
        90,
    ),
    Line(
        "resumed",
        "A run with dropout: left alone = paused with an answer in between = stopped and resumed",
        "losses within 1e-5",
        "benchmarks.gpu.learning:resumed",
        60,
    ),
    Line(
        "scores",
        "Answers scored before and after a run",
        "BLEU rises",
        "benchmarks.gpu.learning:scores",
        30,
        ("sacrebleu",),
    ),
    Line(
        "waits",
        "Synchronizations with the host in steps 5 to 10",
        "at most 1 a step, beside transformers' own",
        "benchmarks.gpu.waits:waits",
        40,
    ),
    Line(
        "kernels",
        "The kernel that attention takes, against the forecast's table, in 240 calls",
        "the same in all",
        "benchmarks.gpu.kernels:kernels",
        20,
    ),
    Line(
        "gradients",
        "Gradients of float16 (with its loss scale) and bfloat16 bases against float32's",
        "float16 within 1 %, bfloat16 within 5 %",
        "benchmarks.gpu.precision:gradients",
        60,
    ),
    Line(
        "memory",
        "Out of memory: one line, all of it given back, and the batch that is proposed fits",
        "as said",
        "benchmarks.gpu.memory:spent",
        60,
    ),
    Line(
        "dry-run",
        "The dry run against the allocator's peak, at 6 shapes",
        "within 5 %",
        "benchmarks.gpu.memory:dry_runs",
        60,
    ),
    Line(
        "peft",
        "A step's time and peak memory against PEFT's, 1B shape, bfloat16",
        "at most 0.80× and 0.75×",
        "benchmarks.gpu.speed:against_peft",
        90,
        ("peft",),
    ),
    Line(
        "labels",
        "The loss of labels alone: as the model's own, and its peak and time at 151,936 words",
        "within 1e-5; at most 0.60× and 0.80× of PEFT's",
        "benchmarks.gpu.labels:labels",
        60,
        ("peft",),
    ),
    Line(
        "optimizer",
        "AdamW's step over the factors of 210 matrices, the run's against torch's by default",
        "not slower",
        "benchmarks.gpu.speed:optimizer",
        20,
    ),
    Line(
        "tokens",
        "Tokens a second, end to end, 1B shape, bfloat16",
        "at least 0.90× of the bare steps",
        "benchmarks.gpu.speed:tokens",
        60,
    ),
    Line(
        "spectra",
        "ΔW's spectrum at 210 matrices, on the GPU and on the CPU",
        "the same within 1e-5 of σ₁",
        "benchmarks.gpu.speed:spectra",
        30,
    ),
    Line(
        "tests",
        "tests/gpu",
        "all pass, none skips",
        "benchmarks.gpu.tests:gpu_tests",
        150,
        ("pytest", "hypothesis"),
    ),
)
