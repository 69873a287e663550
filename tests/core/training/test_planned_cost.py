"""The forecast of a run: at the longest batch that can come, and at the longest that will."""

from __future__ import annotations

from pathlib import Path

import pytest

import lora_lab as ll
from lora_lab.budget import budget
from lora_lab.budget.reading import MemoryReading, measured_text
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks import Example, GenerationTask
from lora_lab.training import processes
from lora_lab.training.data import RunData
from lora_lab.training.planned_cost import longest_drawn, longest_of_task, planned_cost
from tests.helpers.tiny_run import CONFIG, tiny_lm

LENGTHS = (*(8 + i % 5 for i in range(59)), 90)  # letters of the prompts: the last is far longer
FEW = TrainingConfig(max_steps=3, per_device_train_batch_size=4, eval_examples=0, seed=0)


def task() -> GenerationTask:
    train = [Example("a" * length, "b", ("b",)) for length in LENGTHS]
    return GenerationTask("lengths", True, train, train[:2])


def tokens(letters: int) -> int:
    """A letter is a token, and so are what parts prompt from completion, the b and the end."""
    lm, one = tiny_lm(), Example("a" * letters, "b", ("b",))
    alone = GenerationTask("one", True, [one], [one])
    return longest_of_task(lm, alone, 128).lengths.read


@pytest.mark.parametrize("seed", range(6))
def test_what_is_expected_is_what_the_run_draws(seed: int) -> None:
    lm, training = tiny_lm(), FEW.__class__(**{**vars(FEW), "seed": seed})
    data = RunData(lm, task(), training, [])
    drawn = data.training_examples()
    assert len(drawn) == 12
    longest = max(len(item["input_ids"]) for item in drawn)
    found = longest_drawn(lm, task(), training)
    assert found is not None
    assert found.lengths.read == longest
    assert found.text == f"{longest} tokens, the longest of the 12 examples that the steps draw"
    most = longest_of_task(lm, task(), training.max_length)
    assert most.lengths.read == tokens(90) == tokens(8) + 82


def test_processes_that_train_together_draw_as_many_times_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "count", lambda: 3)
    data = RunData(tiny_lm(), task(), FEW, [])
    longest = max(len(item["input_ids"]) for item in data.training_examples())
    found = longest_drawn(tiny_lm(), task(), FEW)
    assert found is not None
    assert found.text == f"{longest} tokens, the longest of the 36 examples that the steps draw"
    monkeypatch.setattr(processes, "count", lambda: 5)  # 5 × 4 × 3 = all 60 of them
    assert longest_drawn(tiny_lm(), task(), FEW) is None


def test_a_run_of_every_example_expects_the_longest() -> None:
    every = TrainingConfig(num_train_epochs=1, per_device_train_batch_size=4)
    many = TrainingConfig(
        max_steps=15, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    for training in (every, many):
        assert longest_drawn(tiny_lm(), task(), training) is None
        found = planned_cost(tiny_lm(), task(), CONFIG, training)
        assert found.expected is None
        assert found.forecast_text().startswith("at most ")
        assert "expected" not in str(found)
        assert "expected" not in found.to_json()["memory"]


def test_at_most_and_expected_are_told_apart() -> None:
    lm = tiny_lm()
    found = planned_cost(lm, task(), CONFIG, FEW)
    long, short = (
        budget(
            lm.model,
            CONFIG,
            batch_size=4,
            sequence_length=length,
            label_length=2,  # b, and the end
            dtype="float32",
            padding_mask=True,
        )
        for length in (tokens(90), tokens(12))
    )
    assert (found.adapted, found.full, found.expected) == (long.adapted, long.full, short.adapted)
    assert f"longest batch: {tokens(90)} tokens, the longest example" in str(found)
    assert "this plan, at most" in str(found)
    assert found.to_json()["memory"]["expected"] == short.adapted.to_json()
    reading = MemoryReading(1, short.adapted.total, "tensor bytes on the CPU")
    assert measured_text(found, reading).endswith("0 % against expected")


def test_the_measured_peak_is_the_expected_one_and_far_below_the_longest(tmp_path: Path) -> None:
    """What read as a forecast that was wrong: no step saw the longest example."""
    lm = tiny_lm()
    run = ll.train(
        lm, task(), CONFIG, output_dir=tmp_path, max_steps=3, per_device_train_batch_size=4,
        eval_examples=0, kept_texts=0,
    )  # fmt: skip
    run.result()
    found = planned_cost(lm, task(), CONFIG, run.training)
    reading = run.snapshot.memory
    assert reading is not None
    assert found.expected is not None
    assert reading.peak == pytest.approx(found.expected.total, rel=0.05)
    assert reading.peak < 0.8 * found.adapted.total
