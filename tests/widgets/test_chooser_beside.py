"""What happens beside the pickers: late answers, other uploads, and what a cell opens."""
# ruff: noqa: F811 (fixtures of another file)

from __future__ import annotations

import base64
import threading
from pathlib import Path
from typing import Any

import pytest

from lora_lab import BottleneckConfig, LoadedModel, LoraConfig, load_model
from lora_lab.tasks import ClassificationTask
from lora_lab_widgets import Workbench, chooser, loading, opening
from tests.widgets.test_chooser import (  # noqa: F401
    bare,
    news,
    only_what_is_here,
    open_small,
    place,
    say,
)


def test_an_answer_about_other_data_comes_too_late(
    bare: Workbench, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"what is {n} times two,it is {2 * n} of course" for n in range(40)]
    (place / "slow.csv").write_text("\n".join(["Frage,Antwort", *rows]))
    let, answered = threading.Event(), threading.Event()
    propose = chooser.propose

    def slow(*given: Any) -> Any:
        let.wait(60)
        answered.set()
        return propose(*given)

    monkeypatch.setattr(chooser, "propose", slow)
    say(bare, "choose", data="slow.csv")
    say(bare, "choose", data="mini-e2e")
    let.set()
    assert answered.wait(60)
    news(bare)
    assert bare.chooser.data == {}
    assert bare.chooser.chosen["options"] == {}


def test_what_a_cell_has_opened_meanwhile_stays(
    bare: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_small(bare)
    let, load = threading.Event(), opening.load_task
    monkeypatch.setattr(opening, "load_task", lambda *a, **k: let.wait(60) and load(*a, **k))
    say(bare, "choose", data="more.csv")
    say(bare, "open")
    bare.open("./small", task="mini-sum")
    let.set()
    news(bare)
    assert "a cell has opened something else meanwhile" in bare.chooser.problem["message"]
    assert (bare.task.name, list(bare.plan.tasks)) == ("mini-sum", ["mini-sum"])


def test_a_wrong_entry_is_said_before_another_model_is_loaded(
    bare: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_small(bare)
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    bare.plan.merge({"max_steps": "many"})
    say(bare, "choose", dtype="bfloat16")
    say(bare, "open")
    news(bare)
    assert bare.chooser.problem["message"].startswith("max_steps is 'many'")


def test_models_that_cannot_be_listed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> Any:
        raise OSError("no such disk")

    monkeypatch.setattr(chooser, "model_choices", refused)
    bench = Workbench()
    news(bench)
    assert "no such disk" in bench.chooser.problem["message"]


def test_pieces_of_another_upload_are_no_part_of_this_one(bare: Workbench, tmp_path: Path) -> None:
    say(bare, "upload", name="one.csv", data=base64.b64encode(b"a,b\n").decode(), first=True)
    say(bare, "upload", name="two.csv", data=base64.b64encode(b"c,d\n").decode(), first=True)
    say(bare, "upload", name="one.csv", data=base64.b64encode(b"1,2\n").decode())
    assert "the upload was broken off" in bare.chooser.problem["message"]
    say(bare, "upload", name="two.csv", data=base64.b64encode(b"3,4\n").decode(), last=True)
    assert bare.chooser.problem is None
    assert (tmp_path / "runs" / "uploads" / "two.csv").read_bytes() == b"c,d\n3,4\n"


def test_a_damaged_upload_is_not_gone_on_with(bare: Workbench, tmp_path: Path) -> None:
    say(bare, "upload", name="mine.csv", data="eA==", first=True)
    say(bare, "upload", name="mine.csv", data="no base64!")
    assert "mine.csv came damaged" in bare.chooser.problem["message"]
    say(bare, "upload", name="mine.csv", data="eA==", last=True)
    assert "broken off" in bare.chooser.problem["message"]
    assert not (tmp_path / "runs").exists()


def test_from_python_what_is_left_out_stays_as_it_is(bare: Workbench) -> None:
    lm = load_model("./small", dtype="bfloat16")
    bare.open(lm, task="letters.csv", config=BottleneckConfig(r=3))
    bare.plan.merge({"learning_rate": 0.5, "max_steps": 7})
    bare.open(task="more.csv")
    assert bare.config == BottleneckConfig(r=3)
    assert (bare.plan.training()["learning_rate"], bare.plan.training()["max_steps"]) == (0.5, 7)
    bare.open(task="mini-nli")
    assert isinstance(bare.task, ClassificationTask)
    assert bare.lm.model.config.num_labels == len(bare.task.labels)
    assert bare.lm.card.dtype == "bfloat16"
    assert bare.config == BottleneckConfig(r=3)


def test_a_config_that_does_not_fit_the_other_model_gives_way_and_says_so(bare: Workbench) -> None:
    given = LoraConfig(r=2, target_modules="model.layers.1.mlp.up_proj")
    bare.open("./small", task="letters.csv", config=given)
    bare.lm.model.config.num_hidden_layers = 1
    other = type(bare.lm.model)(bare.lm.model.config)
    with pytest.warns(UserWarning, match="was on show does not fit one-layer: .* begins anew"):
        bare.open(LoadedModel.given(other, bare.lm.tokenizer, "one-layer"))
    assert bare.config != given
    assert bare.task.name == "letters.csv"
