"""What training keeps of the base model: its loss on text that the base wrote, and on data named.

Oracle: −ln p of each token in float64, one text at a time, of the model with its adapter and
without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_lab.checkpoint import load_adapter
from lora_lab.configs import AdaLoraConfig, FullConfig, LoraConfig, PrefixEmbedConfig
from lora_lab.errors import ConfigError, RunError, TaskError
from lora_lab.methods.api import detach
from lora_lab.methods.attached import activate
from lora_lab.runs.metrics import read_evaluations
from lora_lab.runs.records import list_runs
from lora_lab.tasks import intervals
from lora_lab.tasks.load import load_task
from lora_lab.tasks.metrics import changes, sureness
from lora_lab.training import kept, trackers
from lora_lab.training.resume import resume
from tests.helpers.run_configs import rewrite
from tests.helpers.stopped_at import trained
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import CONFIG, logits, tiny_lm, tiny_task
from tests.helpers.tiny_seq2seq import tiny_seq2seq

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"max_steps": 4, "max_length": 64, "eval_examples": 3}
DROPS = LoraConfig(r=2, lora_dropout=0.3)
CONFIGS = {
    "LoRA": DROPS,
    "AdaLoRA": AdaLoraConfig(target_r=2, init_r=4, tinit=1, tfinal=2, deltaT=1),
    "FT": FullConfig(top_layers=1),
    "LoRA+PE": [DROPS, PrefixEmbedConfig(3, 2)],
}


def costs(model: Any, ids: list[int]) -> list[float]:
    with torch.no_grad():
        labels = torch.tensor([[-100, *ids[1:]]])  # learned tokens stand before the first one
        logits = model(torch.tensor([ids]), labels=labels).logits[0]
    p = torch.log_softmax(logits.double(), -1)
    return [-float(p[i - 1, ids[i]]) for i in range(1, len(ids))]


def mean_cost(model: Any, texts: list[list[int]]) -> float:
    return float(np.mean([cost for text in texts for cost in costs(model, text)]))


def texts_of(run: Any) -> list[list[int]]:
    return [row["input_ids"] for row in run.kept["kept_loss"].rows]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts were written, each time that some were."""
    counts: list[int] = []
    whole: Callable = kept.write_texts

    def counted(*args: Any) -> Any:
        counts.append(args[2])
        return whole(*args)

    monkeypatch.setattr(kept, "write_texts", counted)
    return counts


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_it_is_the_loss_on_what_the_base_wrote_before_during_and_after(begin, config):
    run = begin(config=config, **QUICK, eval_steps=2, learning_rate=3e-2, kept_texts=5)
    found, texts = run.result(60), texts_of(run)
    assert len(texts) == 5
    assert {len(text) for text in texts} <= {*range(2, 34)}
    after = mean_cost(run.model, texts)
    activate(run.model, None)
    before = mean_cost(run.model, texts)
    assert found.metrics["kept_loss_before"] == pytest.approx(before, rel=1e-5)
    assert found.metrics["kept_loss_after"] == pytest.approx(after, rel=1e-5)
    assert after > before, "what it learned is not what the base would say"
    assert [row["step"] for row in found.evaluations] == [2, 4]
    assert found.evaluations[-1]["kept_loss"] == found.metrics["kept_loss_after"]
    assert read_evaluations(run.folder) == list(found.evaluations)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["kept"] == {"texts": 5, "tokens": sum(len(text) - 1 for text in texts)}
    assert summary["metrics"] == found.metrics
    assert [change.metric.title for change in changes(found.metrics)][-1] == (
        "kept loss (nats per token)"
    )


def test_its_spread_and_that_of_the_rise_are_those_of_the_texts(begin):
    run = begin(**QUICK, learning_rate=3e-2, kept_texts=6)
    found, texts = run.result(60), texts_of(run)
    after = [costs(run.model, text) for text in texts]
    activate(run.model, None)
    before = [costs(run.model, text) for text in texts]
    rows, sizes = intervals.drawn(6), np.array(list(map(len, texts))) - 1
    means = [
        np.array(list(map(sum, each)))[rows].sum(1) / sizes[rows].sum(1) for each in (before, after)
    ]
    expected = {
        "kept_loss_before": means[0], "kept_loss_after": means[1],
        "kept_loss_rise": means[1] - means[0],
    }  # fmt: skip
    for name, values in expected.items():
        quantiles = np.quantile(values, (0.025, 0.975))
        assert found.intervals[name] == pytest.approx(quantiles, rel=1e-4, abs=1e-5)
    low, high = found.intervals["kept_loss_rise"]
    whole = found.intervals["kept_loss_after"]
    assert high - low < whole[1] - whole[0]
    assert "against the base model)" in sureness(found.intervals, found.evaluated)


@pytest.mark.parametrize("config", [CONFIGS["LoRA"], CONFIGS["AdaLoRA"]], ids=["LoRA", "AdaLoRA"])
def test_no_bit_of_the_run_is_another_one_for_it_nor_any_random_number(begin, config):
    models = {count: tiny_lm() for count in (0, 9)}
    torch.manual_seed(5)
    random = torch.random.get_rng_state()
    runs = [
        begin(lm, config=config, **QUICK, eval_steps=2, kept_texts=count).result(60)
        for count, lm in models.items()
    ]
    assert torch.equal(torch.random.get_rng_state(), random)
    without, measured = runs
    assert without.losses == measured.losses
    assert "kept_loss_after" not in without.metrics
    own = {name: v for name, v in measured.metrics.items() if not name.startswith("kept")}
    assert own == without.metrics
    adapters = [load_adapter(tiny_lm().model, each.adapter_folder) for each in runs]
    states = [adapter.state() for adapter in adapters]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_runs_of_one_base_are_measured_on_one_text_which_is_remembered(begin, written):
    lm = tiny_lm()
    runs = [begin(lm, **QUICK)]
    for settings in ({"seed": 3}, {"learning_rate": 1e-1}):
        runs[-1].wait(60)
        detach(lm.model, "default")
        runs.append(begin(lm, config=CONFIG.replace(r=2), **QUICK, **settings))
    alone = begin(**QUICK)
    found = [run.result(60) for run in (*runs, alone)]
    assert written == [16, 16]
    assert texts_of(runs[0]) == texts_of(runs[1]) == texts_of(runs[2]) == texts_of(alone)
    assert len({each.metrics["kept_loss_before"] for each in found}) == 1
    assert all("kept_loss_rise" in each.intervals for each in found)
    detach(lm.model, "default")
    with torch.no_grad():
        lm.model.model.norm.weight.mul_(1.5)
    other = begin(lm, **QUICK, kept_texts=16).result(60)
    assert written == [16, 16, 16]
    assert other.metrics["kept_loss_before"] != found[0].metrics["kept_loss_before"]
    detach(lm.model, "default")
    begin(lm, **QUICK, kept_texts=3).result(60)
    assert written[3:] == [3]


@pytest.mark.parametrize("stop_at", [2, 3])
def test_a_resumed_run_measures_on_the_text_that_it_has(tmp_path, monkeypatch, stop_at):
    data = tmp_path / "other.jsonl"
    rows = [{"prompt": f"{i} >", "completion": "yes ."} for i in range(6)]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    quick = {**QUICK, "max_steps": 6, "eval_steps": 2, "kept_data": str(data)}
    whole = trained(tiny_lm(), tiny_task(), DROPS, tmp_path / "a", None, **quick)
    cut = trained(tiny_lm(), tiny_task(), DROPS, tmp_path / "b", stop_at, **quick)
    monkeypatch.setattr(kept, "write_texts", None)
    again = resume(cut.folder, tiny_lm(), tiny_task())
    found, expected = again.result(60), whole.result()
    assert found.metrics == expected.metrics
    assert found.intervals == expected.intervals
    assert found.evaluations == expected.evaluations
    assert torch.equal(logits(again.model), logits(whole.model))
    (record,) = list_runs(tmp_path / "b")
    told = json.loads((whole.folder / "summary.json").read_text())["kept"]
    assert record.summary["kept"] == told
    assert told["data"] == "other.jsonl"
    assert (told["examples"], told["of"]) == (6, 6)


@pytest.mark.parametrize("change", ["other rows", "gone"])
def test_data_that_has_changed_is_not_measured_any_more_and_the_run_goes_on(tmp_path, change):
    data = tmp_path / "other.jsonl"
    lines = [json.dumps({"prompt": f"{i} >", "completion": "yes ."}) for i in range(4)]
    data.write_text("\n".join(lines[:3]))
    quick = {**QUICK, "kept_data": str(data)}
    cut = trained(tiny_lm(), tiny_task(), CONFIG, tmp_path / "b", 2, **quick)
    if change == "gone":
        data.unlink()
    else:
        data.write_text("\n".join(lines))
    again = resume(cut.folder, tiny_lm(), tiny_task())
    metrics = again.result(60).metrics
    assert "kept_loss_after" in metrics
    assert "kept_data_loss_after" not in metrics
    assert any("kept_data=" in note and "not measured any more" in note for note in again.notes)


@pytest.mark.parametrize("whose", ["one's own", "a stranger's", "one's own, changed"])
def test_a_file_that_a_strangers_run_names_is_not_opened(tmp_path, monkeypatch, whose):
    data = tmp_path / "other.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": c, "completion": "y"}) for c in "abcd"))
    named = "mini-e2e" if whose == "one's own, changed" else str(data)
    quick = {**QUICK, "kept_data": named}
    cut = trained(tiny_lm(), tiny_task(), CONFIG, tmp_path / "b", 2, **quick)
    if whose == "a stranger's":
        monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache of somebody else"))
    elif whose == "one's own, changed":
        rewrite(cut.folder, lambda told: told["training"].update(kept_data=str(data)))
    if whose != "one's own":
        monkeypatch.setattr(kept, "load_task", lambda *_: pytest.fail("it was opened"))
    again = resume(cut.folder, tiny_lm(), tiny_task())
    metrics = again.result(60).metrics
    assert "kept_loss_after" in metrics
    assert ("kept_data_loss_after" in metrics) == (whose == "one's own")
    assert sum("is not opened unasked" in note for note in again.notes) == (whose != "one's own")


def test_a_run_that_measured_nothing_goes_on_measuring_nothing(tmp_path, written):
    """As those of earlier versions, whose checkpoints have nothing of it."""
    cut = trained(tiny_lm(), tiny_task(), CONFIG, tmp_path, 2, **QUICK)
    for path in cut.folder.glob("checkpoints/*/state.pt"):
        state = torch.load(path, weights_only=True)
        del state["kept"]
        torch.save(state, path)
    metrics = resume(cut.folder, tiny_lm(), tiny_task()).result(60).metrics
    assert "loss_after" in metrics
    assert "kept_loss_after" not in metrics
    assert len(written) == 1


def test_a_checkpoint_with_no_texts_measures_nothing(tmp_path):
    cut = trained(tiny_lm(), tiny_task(), CONFIG, tmp_path, 2, **QUICK)
    for path in cut.folder.glob("checkpoints/*/state.pt"):
        state = torch.load(path, weights_only=True)
        state["kept"]["kept_loss"] |= {"texts": [], "before": []}
        torch.save(state, path)
    metrics = resume(cut.folder, tiny_lm(), tiny_task()).result(60).metrics
    assert "loss_after" in metrics
    assert "kept_loss_after" not in metrics


def test_texts_in_a_checkpoint_that_the_model_cannot_read_are_refused(tmp_path):
    cut = trained(tiny_lm(), tiny_task(), CONFIG, tmp_path, 2, **QUICK)
    for path in cut.folder.glob("checkpoints/*/state.pt"):
        state = torch.load(path, weights_only=True)
        state["kept"]["kept_loss"]["texts"][0][1] = 10**6
        torch.save(state, path)
    with pytest.raises(RunError, match=r"checkpoint of step 2 .* tokens that it does not know"):
        resume(cut.folder, tiny_lm(), tiny_task()).result(60)


def test_a_model_that_writes_nothing_says_so_unless_data_is_named(begin, tmp_path):
    run = begin(tiny_classifier(), task=tiny_classes(), **QUICK)
    assert "kept_loss_after" not in run.result(60).metrics
    line = "what training keeps of the base model is not measured: BertForSequenceClassification"
    assert sum(note.startswith(line) for note in run.notes) == 1
    assert json.loads((run.folder / "summary.json").read_text()).get("kept") is None

    data = tmp_path / "more.csv"
    texts = ["abcabc", "xyzzy", "bcdbcd", "uvwxyz"]
    data.write_text("text,label\n" + "".join(f"{t},{('early', 'late')[t > 'm']}\n" for t in texts))
    run = begin(tiny_classifier(), task=tiny_classes(), **QUICK, kept_data=str(data))
    found = run.result(60)
    assert not any(note.startswith("what training keeps") for note in run.notes)
    rows = load_task(str(data))
    ids = {row.text: run.lm.tokenizer(row.text) for row in (*rows.train, *rows.validation)}
    names = ("early", "late")
    total = 0.0
    for row in (*rows.train, *rows.validation):
        batch = {name: torch.tensor([values]) for name, values in ids[row.text].items()}
        with torch.no_grad():
            p = torch.log_softmax(run.model(**batch).logits[0].double(), -1)
        total -= float(p[names.index(row.label)])
    assert found.metrics["kept_data_loss_after"] == pytest.approx(total / 4, rel=1e-5)
    assert found.metrics["kept_data_loss_before"] != found.metrics["kept_data_loss_after"]


def test_an_encoder_decoder_writes_nothing_by_itself(begin):
    run = begin(tiny_seq2seq(), **QUICK)
    run.result(60)
    assert any("writes no text from left to right" in note for note in run.notes)


def test_data_may_be_any_that_the_model_can_be_trained_on(begin, tmp_path):
    """Texts without answers too, here in a file of lines."""
    lines = tmp_path / "prose.txt"
    lines.write_text("".join(f"to be or not to be, {word}\n" for word in "abcdefgh"))
    run = begin(**QUICK, kept_data=str(lines), kept_texts=0)
    found = run.result(60).metrics
    rows = [row["input_ids"] for row in run.kept["kept_data_loss"].rows]
    assert found["kept_data_loss_after"] == pytest.approx(mean_cost(run.model, rows), rel=1e-5)
    assert "kept_loss_after" not in found


def test_what_cannot_be_measured_is_refused_before_anything_is_there(tmp_path, begin):
    classes = tmp_path / "classes.csv"
    classes.write_text("text,label\n" + "".join(f"one {i},x\ntwo {i},y\n" for i in range(4)))
    long = tmp_path / "long.jsonl"
    rows = [{"prompt": f"{i}", "completion": "word " * 60} for i in range(4)]
    long.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for settings, error, line in [
        ({"kept_data": "no-such-file.jsonl"}, TaskError, "kept_data='no-such-file.jsonl': "),
        ({"kept_data": str(classes)}, ConfigError, "kept_data='.*classes.csv': "),
        ({"kept_data": "mini-e2e", "eval_examples": 0}, ConfigError, "eval_examples is 0"),
        ({"kept_data": str(long)}, TaskError, "none of its first 4 examples fits max_length=64"),
        ({"kept_data": 3}, ConfigError, "kept_data is 3; it is the name of a file"),
        ({"kept_texts": -1}, ConfigError, "kept_texts is -1"),
        ({"kept_texts": 5000}, ConfigError, "kept_texts is 5000; it must be at most 1,000"),
    ]:
        with pytest.raises(error, match=line):
            begin(**{**QUICK, **settings})
    assert sorted(tmp_path.iterdir()) == [classes, long]


def test_without_held_out_examples_nothing_is_measured(begin, written):
    assert begin(**{**QUICK, "eval_examples": 0}).result(60).metrics == {}
    assert written == []


def test_a_base_whose_logits_are_no_numbers_where_it_writes_is_noted(begin, monkeypatch):
    def fails(*_: Any) -> Any:
        raise TaskError("the model's logits are NaN or infinite where it writes text")

    monkeypatch.setattr(kept, "write_texts", fails)
    run = begin(**QUICK)
    metrics = run.result(60).metrics
    assert "loss_after" in metrics
    assert "kept_loss_after" not in metrics
    assert any("logits are NaN" in note for note in run.notes)


def test_the_next_run_on_a_base_that_cannot_write_notes_it_too(begin, monkeypatch):
    def fails(*_: Any) -> Any:
        raise TaskError("the model's logits are NaN or infinite where it writes text")

    monkeypatch.setattr(kept, "write_texts", fails)
    lm = tiny_lm()
    for _ in range(2):
        run = begin(lm, **QUICK)
        run.result(60)
        assert sum("logits are NaN" in note for note in run.notes) == 1
        detach(lm.model, "default")


def test_a_run_that_is_stopped_while_the_base_writes_ends_there(begin, monkeypatch):
    run_of: list[Any] = []
    whole = kept.write_texts

    def stopped(*args: Any) -> Any:
        run_of[0].stop()
        return whole(*args)

    monkeypatch.setattr(kept, "write_texts", stopped)
    run = begin(**QUICK, start=False)
    run_of.append(run)
    assert run.start().result(60).losses == ()
    assert run.state == "done"
    assert run.snapshot.metrics == {}


def test_trackers_hear_of_it(begin, monkeypatch):
    told: list[dict[str, float]] = []
    monkeypatch.setattr(
        trackers.Trackers, "log_evaluation", lambda _self, _step, scores: told.append(dict(scores))
    )
    found = begin(**QUICK, eval_steps=4).result(60)
    assert told[0]["eval_kept_loss"] == found.metrics["kept_loss_after"]


def test_settings_that_are_left_alone_are_in_no_record(begin):
    run = begin(**QUICK)
    config = json.loads((run.folder / "config.json").read_text())
    assert not {"kept_texts", "kept_data"} & config["training"].keys()
    run.result(60)
    assert math.isfinite(run.snapshot.metrics["kept_loss_after"])
    assert Path(run.folder, "summary.json").is_file()
