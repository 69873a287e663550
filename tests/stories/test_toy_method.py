"""A method that is defined here, in one place, and is known everywhere from then on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.anatomy.api import anatomy
from lora_lab.cli.main import main
from lora_lab.errors import ConfigError
from lora_lab.methods.base import Adapter
from lora_lab.methods.config import MethodConfig, need_positive
from lora_lab.methods.cost import MethodCost
from lora_lab.methods.descriptor import METHODS, Field, Method, register
from lora_lab.methods.lora.targets import select
from lora_lab.methods.submodules import add_submodule, remove_submodule
from lora_lab_widgets import Workbench
from lora_lab_widgets.lab_views.base import run_label
from tests.helpers.tiny_chat import tiny_chat_model
from tests.helpers.tiny_run import tiny_lm, tiny_task

# The method, in less than 60 lines of code -------------------------------------------------------


@dataclass(frozen=True)
class ScaleConfig(MethodConfig):
    """Every output of the target layers is multiplied by a learned number."""

    target_modules: Sequence[str] | str = ("q", "v")
    start: float = 1.0
    method = "Scale"

    def __post_init__(self):
        need_positive("start", self.start)


class ScaleAdapter(Adapter):
    def __init__(self, model, config, name):
        self.method, self.name, self.config, self.hooks = config.method, name, config, []
        sites = select(anatomy(model), config.target_modules)
        self.layers = {site.module: model.get_submodule(site.module) for site in sites}
        starts = {p: torch.full_like(m.weight[:, 0], config.start) for p, m in self.layers.items()}
        self.scales = {path: nn.Parameter(start) for path, start in starts.items()}

    def insert(self, active):
        for path, layer in self.layers.items():
            add_submodule(layer, f"{self.name}:scale", nn.ParameterList([self.scales[path]]))
            self.hooks.append(layer.register_forward_hook(partial(self.scaled, path, active)))

    def remove(self):
        while self.hooks:
            self.hooks.pop().remove()
        for layer in self.layers.values():
            remove_submodule(layer, f"{self.name}:scale")

    def scaled(self, path, active, _layer, _inputs, y):
        return y * self.scales[path] if active.name == self.name else y

    def conflicts(self):
        return self.layers

    def merged_weights(self, dtype=None):
        for path, layer in self.layers.items():
            merged = layer.weight * self.scales[path][:, None]
            yield layer.weight, merged.detach().to(dtype or layer.weight.dtype)

    def parameters(self):
        return iter(self.scales.values())

    def parameters_by_location(self):
        return {path: [scale] for path, scale in self.scales.items()}

    def state(self):
        return self.scales


def scale_cost(anatomy, config, price):
    cost = MethodCost(estimated=True)
    for site in select(anatomy, config.target_modules):
        at = price["sites"][site.name]
        cost.first = min(cost.first, at["order"])
        cost.train(at["row"], (site.out_features,))
        cost.kept[at["row"]] += at["tokens"] * site.out_features * price["element"]
        cost.conflicts.add(site.name)
    return cost


FIELDS = (
    Field("target_modules", "targets", "the layers", tuple, "targets"),
    Field("start", "start", "every number at first"),
)
ABOUT = "outputs are multiplied by learned numbers"
SCALE = Method("Scale", ScaleConfig, ScaleAdapter, scale_cost, "toy", fields=FIELDS, about=ABOUT)


# What it can do then -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(METHODS, SCALE.name, None)  # and out again afterwards
    register(SCALE)


TARGETS = ["q", "down"]
CONFIG = ScaleConfig(TARGETS, start=0.9)
QUICK = {"max_steps": 6, "max_length": 64, "learning_rate": 0.02, "eval_examples": 4}


def logits(model):
    with torch.no_grad():
        return model(torch.arange(12).view(2, 6) + 3).logits


def count(lm):
    sites = lm.anatomy.sites if hasattr(lm, "anatomy") else ll.anatomy(lm.model).sites
    return sum(s.out_features for s in sites if s.role in TARGETS)


def test_it_trains_saves_loads_and_merges(tmp_path):
    lm = tiny_lm()
    before = logits(lm.model)
    run = ll.train(lm, tiny_task(), CONFIG, output_dir=tmp_path, **QUICK)
    result = run.result(120)
    assert result.metrics["loss_after"] < result.metrics["loss_before"]
    assert run.adapter.trainable == count(lm)
    after = logits(lm.model)
    assert not torch.allclose(after, before, atol=1e-3)
    ll.merge(lm.model)
    torch.testing.assert_close(logits(lm.model), after, rtol=1e-4, atol=1e-5)
    ll.detach(lm.model)
    assert torch.equal(logits(lm.model), before)
    loaded = ll.load_adapter(lm.model, result.adapter_folder)
    assert loaded.config == CONFIG
    assert torch.equal(logits(lm.model), after)
    (record,) = ll.list_runs(tmp_path)
    assert record.config["method"] == "Scale"
    from lora_lab.analysis import compare_methods

    (row,) = compare_methods([record]).rows
    assert (row.method, row.setting) == ("Scale", "targets q down · start 0.9")
    assert run_label(record).startswith("Scale targets q down · start 0.9 · lr 0.02 · seed ")


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(tmp_path):
    settings = {**QUICK, "save_steps": 3, "output_dir": tmp_path / "whole"}
    whole = ll.train(tiny_lm(), tiny_task(), CONFIG, **settings)
    whole.result(120)
    cut = shutil.copytree(whole.folder, tmp_path / "cut" / whole.id)
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "adapter")
    later = [path for path in (cut / "checkpoints").iterdir() if path.name != "step-3"]
    for path in later:
        shutil.rmtree(path)
    again = ll.resume(cut, tiny_lm(), tiny_task())
    again.result(120)
    assert [step for step, _ in again.steps_before] == [1, 2, 3]
    assert again.losses == whole.losses
    for path, scale in whole.adapter.scales.items():
        assert torch.equal(again.adapter.scales[path], scale)


def test_it_is_priced_and_measured(capsys):
    lm = tiny_lm()
    found = ll.budget(lm.model, CONFIG)
    assert found.parameters_trainable == count(lm)
    assert found.checkpoint_bytes == 4 * count(lm)
    measured = ll.dry_run(lm.model, CONFIG, batch_size=8, sequence_length=128)
    assert found.adapted.total == pytest.approx(measured.peak, rel=0.1)
    for options in ([], ["--targets", "q,v,o", "--start", "0.5"]):
        assert main(["budget", "smollm2-135m", "--method", "toy", "--json", *options]) == 0
    out = capsys.readouterr().out
    first, second = (json.loads(part) for part in out.replace("}\n{", "}\0{").split("\0"))
    d, kv, layers = 576, 192, 30  # SmolLM2-135M's own config
    assert first["parameters"]["trainable"] == layers * (d + kv)
    assert second["parameters"]["trainable"] == layers * (d + kv + d)
    assert first["method"] == "Scale"


def test_it_stands_in_the_workbenchs_drop_down_with_its_fields(tmp_path):
    wb = Workbench(*tiny_chat_model(), output_dir=tmp_path, max_steps=2, eval_examples=0)
    (entry,) = (m for m in wb.panel.methods if m["name"] == "Scale")
    own = {"fields": ["target_modules", "start"], "terms": []}  # of the glossary: none is its own
    assert entry == {"name": "Scale", "text": "Scale", **own}
    shown = {f["name"]: (f["label"], f["help"]) for f in wb.panel.fields}
    assert shown["start"] == ("start", "every number at first")
    changes = {"method": "Scale", "start": 0.5, "target_modules": "q, up"}
    wb.panel._handle({"type": "settings", "seq": "s", "settings": changes})
    assert wb.config == ScaleConfig(["q", "up"], start=0.5)
    assert wb.panel.plan["line"] == "outputs are multiplied by learned numbers"
    assert wb.grid.inert == "Scale has no ranks; the grid is LoRA's"
    assert wb.savings.budget.parameters_trainable == 4 * (64 + 128)
    wb.start().result(120)
    assert wb.run.adapter.method == "Scale"
    wb.panel._handle({"type": "settings", "seq": "s", "settings": {"start": -1}})
    assert wb.panel.plan["line"] == "start is -1; it must be a positive number"


def test_a_sweep_varies_its_field_and_a_combination_has_it(tmp_path):
    lm, task = tiny_lm(), tiny_task()
    grid = {"configs": [CONFIG, ll.LoraConfig(r=2)], "start": [0.8, 1.2]}
    sweep = ll.sweep(lm, task, grid=grid, output_dir=tmp_path, **{**QUICK, "max_steps": 2})
    assert {result.state for result in sweep.results(240).values()} == {"done"}
    assert [str(cell) for cell in sweep.cells] == [
        "method Scale, start 0.8",
        "method Scale, start 1.2",
        "method LoRA",
    ]
    both = ll.attach(lm.model, [CONFIG, ll.LoraConfig(r=2, target_modules=["v"])])
    assert both.method == "Scale+LoRA"
    with pytest.raises(ConfigError, match=r"both claim model\.layers\.0\.self_attn\.q_proj"):
        ll.attach(lm.model, [CONFIG, ll.LoraConfig(target_modules=["q"])], "other")
