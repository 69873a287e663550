"""Every method in the workbench: its settings, its config there and back, its price, its errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import lora_lab as ll
from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    FullConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PrefixEmbedConfig,
    PrefixLayerConfig,
)
from lora_lab.errors import ConfigError
from lora_lab_widgets import Workbench
from lora_lab_widgets.lab_views.base import run_label
from lora_lab_widgets.methods import automatic, entries
from tests.helpers.tiny_chat import tiny_chat_model

QUICK = {"max_steps": 4, "per_device_train_batch_size": 2, "max_length": 96, "eval_examples": 0}
LORA = LoraConfig(r=4, lora_alpha=2, lora_dropout=0.1, target_modules=["q", "down"])
CONFIGS: dict[str, Any] = {
    "LoRA": LORA,
    "AdaLoRA": AdaLoraConfig(
        target_r=2, init_r=5, tinit=1, tfinal=1, deltaT=2, beta1=0.5, target_modules=["v", "up"]
    ),
    "IA3": IA3Config(["k", "up"], feedforward_modules=["up"]),
    "OFT": OFTConfig(oft_block_size=8, module_dropout=0.25, target_modules=["k", "up"], coft=True),
    "FT": FullConfig(),
    "FT-Top2": FullConfig(top_layers=3),
    "BitFit": BitFitConfig(new_biases=True),
    "PreEmbed": PrefixEmbedConfig(3, 0),
    "PreLayer": PrefixLayerConfig(0, 5),
    "Adapter^H": BottleneckConfig("H", 3),
    "Adapter^L": BottleneckConfig("L", 3),
    "Adapter^P": BottleneckConfig("P", 3),
    "Adapter^D": BottleneckConfig("D", 3, drop_layers=2),
    "LoRA+PE": (LORA, PrefixEmbedConfig(2, 1)),
    "LoRA+PL": (LORA, PrefixLayerConfig(2, 1)),
}


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    return tiny_chat_model()


@pytest.fixture
def wb(parts: tuple[Any, Any], tmp_path: Path) -> Workbench:
    return Workbench(*parts, output_dir=tmp_path, **QUICK)


def choose(wb: Workbench, method: str, **settings: Any) -> None:
    """Do what the drop-down does."""
    changes = {"method": method, **settings}
    wb.panel._handle({"type": "settings", "seq": "s", "settings": changes})


def shown_fields(wb: Workbench) -> list[str]:
    chosen = wb.panel.settings["method"]
    return next(m["fields"] for m in wb.panel.methods if m["name"] == chosen)


def test_the_drop_down_has_the_papers_methods_and_adalora(wb: Workbench) -> None:
    assert [m["name"] for m in wb.panel.methods] == list(CONFIGS) == list(entries())


@pytest.mark.parametrize("method", CONFIGS)
def test_a_config_goes_there_and_back_as_python_too(wb: Workbench, method: str) -> None:
    config = CONFIGS[method]
    wb.config = config
    assert wb.config == config
    assert wb.panel.settings["method"] == method
    assert wb.panel.plan["bad"] is False
    told: dict[str, Any] = {}
    exec(wb.grid.code, told)
    written = told["config"]
    assert (tuple(written) if isinstance(written, list) else written) == config
    json.dumps(wb.panel.settings)


@pytest.mark.parametrize("method", CONFIGS)
def test_the_price_is_the_budget_and_the_title_names_the_method(wb: Workbench, method: str) -> None:
    wb.config = CONFIGS[method]
    expected = ll.budget(wb.anatomy, wb.config, **wb.plan.planned.price.inputs)
    shown = wb.savings.budget
    assert shown is not None
    assert shown.parameters_trainable == expected.parameters_trainable > 0
    assert shown.checkpoint_bytes == expected.checkpoint_bytes
    assert shown.adapted == expected.adapted
    name = "FT-Top3" if method == "FT-Top2" else method
    assert wb.header.chips[1] == name
    assert name in wb.fallback_html() or method == "LoRA"


@pytest.mark.parametrize("method", CONFIGS)
def test_the_grid_is_for_methods_with_ranks(wb: Workbench, method: str) -> None:
    painted = dict(wb.grid.ranks)
    choose(wb, method)
    has_ranks = method in ("LoRA", "AdaLoRA", "LoRA+PE", "LoRA+PL")
    assert bool(wb.grid.inert) is not has_ranks
    assert wb.grid.inert == "" or wb.grid.inert.endswith("; the grid is LoRA's")
    assert wb.grid.ranks == painted, "what is painted is not lost"


def test_each_method_shows_its_own_settings_alone(wb: Workbench) -> None:
    choose(wb, "BitFit")
    assert shown_fields(wb) == ["new_biases"]
    choose(wb, "AdaLoRA")
    assert shown_fields(wb)[:2] == ["lora_alpha", "lora_dropout"]
    choose(wb, "LoRA+PL")
    assert shown_fields(wb) == ["lora_alpha", "lora_dropout", "prefix_length", "infix_length"]
    choose(wb, "FT")
    assert shown_fields(wb) == []


def test_a_method_can_be_given_at_the_start_and_the_paint_waits(parts: tuple[Any, Any]) -> None:
    wb = Workbench(*parts, config=BitFitConfig(new_biases=True))
    assert wb.config == BitFitConfig(new_biases=True)
    choose(wb, "LoRA")
    assert wb.config == LoraConfig(r=8, lora_alpha=16, target_modules=["q", "v"])
    with pytest.raises(ConfigError, match="BitFit trains bias vectors and this model has none"):
        Workbench(*parts, config=BitFitConfig())


def test_what_no_entry_shows_is_kept_as_it_was_given(wb: Workbench) -> None:
    config = [LORA, BitFitConfig(new_biases=True)]
    wb.config = config
    assert wb.config == tuple(config)
    own = {"name": "LoRA+BitFit", "text": "LoRA+BitFit", "fields": [], "terms": []}
    assert wb.panel.methods[-1] == own
    assert wb.grid.inert == "LoRA+BitFit was set from Python; the grid is LoRA's"
    choose(wb, "PreEmbed")
    choose(wb, "LoRA+BitFit")
    assert wb.config == tuple(config)


def test_fields_that_no_setting_shows_survive(wb: Workbench) -> None:
    wb.config = CONFIGS["AdaLoRA"]
    choose(wb, "LoRA")
    choose(wb, "AdaLoRA")
    assert wb.config.beta1 == 0.5


def test_adaloras_empty_settings_follow_the_paint_and_the_steps(wb: Workbench) -> None:
    choose(wb, "AdaLoRA", max_steps=1000)
    # 1.5 × 8; the medians of Table 8: 13 %, 48 % and 0.2 % of 1,000 steps.
    own = {"init_r": 12, "tinit": 130, "tfinal": 480, "deltaT": 2}
    assert {name: wb.panel.plan["automatic"][name] for name in own} == own
    assert wb.config == AdaLoraConfig(target_r=8, lora_alpha=16, **own)
    wb.grid.ranks = dict.fromkeys(wb.grid.ranks, 3)
    assert (wb.config.target_r, wb.config.init_r) == (3, 5)  # 4.5, rounded up
    choose(wb, "AdaLoRA", tinit=7)
    assert (wb.config.tinit, wb.config.tfinal) == (7, 480)


def test_adaloras_empty_settings_fit_every_number_of_steps(wb: Workbench) -> None:
    for steps in range(2, 40):
        free = automatic(wb.anatomy, wb.grid.ranks, steps)
        del free["drop_layers"]
        AdaLoraConfig(target_r=8, **free).check_steps(steps)


def test_adalora_starts_no_higher_than_the_smallest_matrix(wb: Workbench) -> None:
    choose(wb, "AdaLoRA")
    wb.grid.ranks = {"model.layers.0.self_attn.k_proj": 30}  # 32 × 64
    assert wb.config.init_r == 32


def test_the_usable_sequence_length_is_said(wb: Workbench) -> None:
    line = "usable sequence length: 2,048 − 16 = 2,032 tokens"
    for method in ("PreEmbed", "PreLayer", "LoRA+PE", "LoRA+PL"):
        choose(wb, method)
        assert wb.panel.plan["line"].endswith(line), method
    choose(wb, "BitFit", new_biases=True)
    assert "sequence length" not in wb.panel.plan["line"]


@pytest.mark.parametrize(
    ("method", "settings", "line"),
    [
        ("PreEmbed", {"prefix_length": 2040}, "do not fit the model's 2048 positions"),
        ("PreLayer", {"prefix_length": 0, "infix_length": 0}, "are both 0; give one a token"),
        ("Adapter^P", {"r": 65}, "r is 65 and the model is 64 wide; use an r of at most 64"),
        ("Adapter^D", {"drop_layers": 4}, "use a drop layers of at most 3"),
        ("AdaLoRA", {"tinit": 3, "tfinal": 1}, "leave none of the 4 steps for pruning"),
        ("AdaLoRA", {"init_r": 40}, "is above min(out, in); use at most 32"),
        ("AdaLoRA", {"init_r": 2}, "target_r is 8 and init_r 2; AdaLoRA only prunes"),
        ("BitFit", {}, "this model has none; tick “new zero biases”"),
        ("FT-Top2", {"top_layers": 5}, "top blocks is 5 and the model has 4"),
        ("FT-Top2", {"top_layers": "two"}, "top blocks is 'two'; it must be a number"),
        ("Adapter^H", {"r": 2.5}, "bottleneck r is 2.5; it must be a whole number"),
        ("BitFit", {"new_biases": "yes"}, "new zero biases is 'yes'; it must be True or False"),
        ("LoRA", {"lora_alpha": -1}, "α is -1; it must be a positive number"),
        ("Magic", {}, "method is 'Magic'; use one of LoRA, AdaLoRA"),
    ],
)
def test_what_cannot_be_is_said_at_once_and_changes_nothing(
    wb: Workbench, method: str, settings: dict[str, Any], line: str
) -> None:
    names = [name for name, _ in wb.lm.model.named_modules()]
    choose(wb, method, **settings)
    assert wb.panel.plan["bad"] is True
    assert line in wb.panel.plan["line"]
    assert "\n" not in wb.panel.plan["line"]
    assert wb.grid.code == ""
    problem = None
    wb.panel._handle({"type": "command", "name": "start", "seq": "c", "settings": {}})
    problem = wb.panel.snapshot["problem"]
    assert problem is not None
    assert wb.run is None
    assert [name for name, _ in wb.lm.model.named_modules()] == names
    choose(wb, "LoRA", lora_alpha=16)
    assert wb.panel.plan["bad"] is False


def test_two_methods_that_claim_the_same_weight_are_refused(wb: Workbench) -> None:
    before = wb.config
    with pytest.raises(ConfigError, match="both claim"):
        wb.config = [LORA, LORA]
    with pytest.raises(ConfigError, match="no method is given"):
        wb.config = []
    with pytest.raises(ConfigError, match="no method's config"):
        wb.config = ll.TrainingConfig()
    assert wb.config == before


def test_a_bad_value_of_another_method_does_not_stop_this_one(wb: Workbench) -> None:
    choose(wb, "Adapter^H", r="wide")
    choose(wb, "LoRA")
    assert wb.panel.plan["bad"] is False
    assert isinstance(wb.config, LoraConfig)


def test_a_dry_run_stands_for_just_its_methods_plan(wb: Workbench) -> None:
    from lora_lab.budget.costs import Memory

    choose(wb, "PreEmbed")
    key = wb.savings.plan
    wb.savings.learn(key, Memory(1, 2, 3, 4))
    assert wb.savings.forecast(key) == Memory(1, 2, 3, 4)
    wb.savings.note_run()
    assert wb.savings.run_key == key
    assert wb.savings.run_ranks == {}
    choose(wb, "PreEmbed", prefix_length=9)
    assert wb.savings.plan != key
    assert not wb.savings.knows(wb.savings.plan)
    choose(wb, "LoRA")
    assert not wb.savings.knows(wb.savings.plan)


def test_dropout_and_dora_are_in_loras_price(wb: Workbench) -> None:
    wb.config = LORA.replace(use_dora=True)
    expected = ll.budget(wb.anatomy, wb.config, **wb.plan.planned.price.inputs)
    assert wb.savings.budget is not None
    assert wb.savings.budget.parameters_trainable == expected.parameters_trainable


def test_a_long_sequence_and_learned_tokens_do_not_fit_together() -> None:
    _, tokenizer = tiny_chat_model()
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
    )
    wb = Workbench(LlamaForCausalLM(config), tokenizer, max_length=64)
    choose(wb, "PreEmbed", prefix_length=40, infix_length=20)
    assert "use a sequence_length of at most 4" in wb.panel.plan["line"]


def tick(wb: Workbench) -> None:
    wb.panel._handle({"type": "tick", "seq": "t", "theme": "light", "width": 1000})
    assert wb.panel.snapshot["problem"] is None
    assert wb.errors == {}


@pytest.mark.parametrize("method", ["FT-Top2", "BitFit", "PreEmbed", "Adapter^H"])
def test_a_run_without_a_low_rank_update_says_so_and_saves(
    wb: Workbench, method: str, tmp_path: Path
) -> None:
    choose(wb, method, new_biases=True)
    wb.start().result(120)
    wb.laboratory.panel._handle_custom_msg({"type": "open", "value": True, "seq": "1"}, [])
    tick(wb)
    line = f"{method} has no low-rank ΔW = BA to look at; it "
    assert line in wb.delta_w._line.value
    for view in ("spectrum", "subspaces", "amplification", "steps", "intruders", "capacity"):
        if view not in wb.laboratory._views:
            continue
        wb.laboratory.panel._handle_custom_msg({"type": "view", "name": view, "seq": "2"}, [])
        tick(wb)
        assert wb.laboratory.panel.state["note"].startswith(line), view
    base, adapted = wb.session.answer("name[The Blue Fig]", 3)
    assert isinstance(base, str)
    assert isinstance(adapted, str)
    assert wb.save(tmp_path / "saved").exists()


def test_adaloras_ranks_end_at_the_budget_and_the_plan_is_still_there() -> None:
    wb = Workbench(*tiny_chat_model(), config=AdaLoraConfig(), **{**QUICK, "max_steps": 12})
    choose(wb, "AdaLoRA", tinit="", tfinal="", init_r="")
    wb.start().result(120)
    assert wb.run is not None
    assert wb.run.snapshot.ranks == wb.run.adapter.ranks  # type: ignore[union-attr]
    tick(wb)
    assert sum(wb.grid.live["ranks"]) == 8 * len(wb.grid.ranks)
    assert wb.grid.live["text"] == "final ranks, step 12, budget 64 of 96"
    assert set(wb.grid.ranks.values()) == {8}
    choose(wb, "LoRA")
    assert wb.grid.live == {}


def test_a_combination_with_factors_is_looked_at(wb: Workbench) -> None:
    choose(wb, "LoRA+PE")
    wb.start().result(120)
    tick(wb)
    assert set(wb.delta_w.ranks) == set(wb.grid.ranks)


@dataclass
class Record:
    config: dict[str, Any]
    id: str = "id-1"


@pytest.mark.parametrize(
    ("configs", "label"),
    [
        ([BitFitConfig()], "BitFit"),
        ([PrefixEmbedConfig()], "PreEmbed 8+8"),
        ([AdaLoraConfig()], "AdaLoRA r 12→8"),
        ([BottleneckConfig("P", 3)], "Adapter^P r 3"),
        ([LORA, PrefixLayerConfig(2, 1)], "LoRA+PL r 4, 2+1"),
        ([IA3Config(["k"])], "IA3 targets k"),
    ],
)
def test_runs_are_told_apart_by_method(configs: list[Any], label: str) -> None:
    from lora_lab.configs import method_name

    told = [{"class": type(c).__name__, **c.to_dict()} for c in configs]
    record = Record({"method": method_name(configs), "configs": told})
    assert run_label(record) == f"{label} · id-1"  # type: ignore[arg-type]
    lora = Record({"method": "LoRA", "lora": {"r": 8}, "training": {"seed": 1}})
    assert run_label(lora) == "r=8 · seed 1 · id-1"  # type: ignore[arg-type]
