import json
import math

import pytest

from lora_lab.analysis.capacity import Capacity, capacity, run_capacity
from lora_lab.errors import AdapterError, RunError
from lora_lab.training.api import train
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task


def test_two_bits_a_parameter_against_the_data_s_log_loss():
    found = capacity(1000, losses=[2.0, 1.0, 0.5], tokens=[100, 200, 50])
    bits = (2.0 * 100 + 1.0 * 200 + 0.5 * 50) / math.log(2)
    assert found.bits == 2000
    assert found.data_bits == pytest.approx(bits)
    assert found.tokens == 350
    assert found.used == pytest.approx(bits / 2000)
    assert capacity(7) == Capacity(7, 14.0, None, None, None)


def test_what_has_no_capacity_is_refused():
    with pytest.raises(AdapterError, match="no trainable parameters"):
        capacity(0)
    with pytest.raises(AdapterError, match="2 losses for 1 token counts"):
        capacity(10, [1.0, 2.0], [5])
    with pytest.raises(AdapterError, match="training diverged"):
        capacity(10, [math.nan], [5])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 10 steps over 20 examples, 3 a batch, 2 batches a step: four steps an epoch."""
    run = train(
        tiny_lm(),
        tiny_task(training=20),
        CONFIG,
        output_dir=tmp_path_factory.mktemp("runs"),
        max_steps=10,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        eval_examples=0,
        save_steps=0,
    )
    run.result()
    return run.folder


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def copied(folder, tmp_path, change=None, metrics=None):
    """The run's folder with another config.json or metrics.jsonl."""
    for name in ("config.json", "metrics.jsonl", "sites.json", "spectra.npy"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    if change:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (tmp_path / "config.json").write_text(json.dumps(config))
    if metrics is not None:
        (tmp_path / "metrics.jsonl").write_text(metrics)
    return tmp_path


def test_a_run_counts_its_first_epoch_only(folder):
    found = run_capacity(folder)
    first = rows(folder)[:4]
    # Every completion once: its bytes and the end-of-sequence token.
    tokens = sum(len(e.completion) + 1 for e in tiny_task(training=20).train)
    # 20 examples in steps of 6: the fourth step has two of them, and four of the next round.
    counted = [row["tokens"] * share for row, share in zip(first, (1, 1, 1, 1 / 3), strict=True)]
    assert found.tokens == tokens == round(sum(counted))
    bits = sum(row["loss"] * n for row, n in zip(first, counted, strict=True)) / math.log(2)
    assert found.data_bits == pytest.approx(bits)
    # 2 layers of a Llama 32 wide, 48 in the middle, keys and values 16; rank 4.
    sites = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
    assert found.parameters == 2 * 4 * sum(a + b for a, b in sites)
    assert found.bits == 2 * found.parameters
    assert found.used == pytest.approx(bits / found.bits)


def test_a_run_cut_off_counts_what_it_saw(folder, tmp_path):
    text = (folder / "metrics.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    cut = copied(folder, tmp_path, metrics="".join(lines[:2]) + lines[2][:20])
    assert run_capacity(cut).tokens == sum(row["tokens"] for row in rows(folder)[:2])
    (cut / "metrics.jsonl").unlink()
    assert run_capacity(cut).data_bits is None


def test_an_older_run_tells_its_parameters_only(folder, tmp_path):
    without = "".join(
        json.dumps({k: v for k, v in row.items() if k != "tokens"}) + "\n" for row in rows(folder)
    )
    found = run_capacity(copied(folder, tmp_path, metrics=without))
    assert (found.data_bits, found.tokens, found.used) == (None, None, None)
    assert found.parameters == run_capacity(folder).parameters
    found = run_capacity(copied(folder, tmp_path, lambda config: config["task"].pop("examples")))
    assert found.data_bits is None


def test_folders_that_cannot_be_read_are_named(folder, tmp_path):
    with pytest.raises(RunError, match="holds no spectra"):
        run_capacity(tmp_path / "nothing")
    broken = copied(folder, tmp_path, metrics="{}\n" + (folder / "metrics.jsonl").read_text())
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 1: .*copy the run's folder again"):
        run_capacity(broken)
    broken = copied(folder, tmp_path, lambda config: config.pop("task"))
    with pytest.raises(RunError, match=r"cannot read .*config\.json.*copy the run's folder again"):
        run_capacity(broken)
    (broken / "config.json").write_text("[1]")
    with pytest.raises(RunError, match=r"cannot read .*config\.json"):
        run_capacity(broken)
