"""The share of padding in a run's batches: against the masks of the batches themselves."""

from __future__ import annotations

import json
from typing import Any

import pytest

import lora_lab as ll
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.families.base import Lengths
from lora_lab.training.padding import Padding
from tests.helpers.several_processes import ragged_task
from tests.helpers.stopped_at import trained
from tests.helpers.tiny_run import CONFIG, tiny_lm
from tests.helpers.tiny_seq2seq import tiny_seq2seq, uneven_task


def test_both_sides_are_counted():
    padding = Padding()
    assert padding.share is None
    padding.add([Lengths(3, 2), Lengths(5, 1)])  # 5 + 5 and 2 + 2 computed
    assert padding.share == pytest.approx(3 / 14)
    padding.add([Lengths(4), Lengths(4)])
    assert padding.share == pytest.approx(3 / 22)
    again = Padding()
    again.load_state(json.loads(json.dumps(padding.state())))
    assert again == padding


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
@pytest.mark.parametrize(
    ("make_lm", "make_task"), [(tiny_lm, ragged_task), (tiny_seq2seq, uneven_task)]
)
def test_a_runs_share_is_that_of_its_masks(tmp_path, monkeypatch, make_lm, make_task, strategy):
    lm, task, batches = make_lm(), make_task(), []
    family = family_of(task, lm)
    collate = family.collate

    def kept(self: Any, rows: Any) -> Any:
        batches.append(collate(self, rows))
        return dict(batches[-1])

    monkeypatch.setattr(family, "collate", kept)
    settings: dict[str, Any] = {"max_steps": 5, "per_device_train_batch_size": 4}
    settings |= {"gradient_accumulation_steps": 2, "eval_examples": 0, "save_steps": 0}
    run = ll.train(
        lm, task, CONFIG, output_dir=tmp_path, train_sampling_strategy=strategy, **settings
    )
    run.result(60)
    batches = batches[-10:]  # before them a batch that the model's input is looked at with
    assert len({batch["input_ids"].shape[0] for batch in batches}) == 1
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    padded = sum(batch["attention_mask"].numel() for batch in batches)
    if "decoder_input_ids" in batches[0]:  # as many as labels, of which padding alone is -100
        tokens += sum(int((batch["labels"] != -100).sum()) for batch in batches)
        padded += sum(batch["labels"].numel() for batch in batches)
    assert run.snapshot.padding == pytest.approx(1 - tokens / padded, abs=1e-12)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["padding"] == pytest.approx(1 - tokens / padded, abs=5e-5)


def test_steps_of_like_length_are_padded_less(tmp_path):
    found = {}
    for strategy in ("group_by_length", "random"):
        run = trained(
            tiny_lm(), ragged_task(), CONFIG, tmp_path, None, max_steps=8, eval_examples=0,
            train_sampling_strategy=strategy,
        )  # fmt: skip
        found[strategy] = run.snapshot.padding
    assert found["group_by_length"] < found["random"]


def test_a_resumed_run_counts_what_the_whole_one_does(tmp_path):
    options: dict[str, Any] = {"max_steps": 6, "eval_examples": 0}
    whole = trained(tiny_lm(), ragged_task(), CONFIG, tmp_path / "a", None, **options)
    stopped = trained(tiny_lm(), ragged_task(), CONFIG, tmp_path / "b", 3, **options)
    assert stopped.snapshot.padding != whole.snapshot.padding
    resumed = ll.resume(stopped.folder, tiny_lm(), ragged_task())
    resumed.result(60)
    assert resumed.snapshot.padding == whole.snapshot.padding
    assert [loss for _, loss in resumed.losses] == [loss for _, loss in whole.losses]
