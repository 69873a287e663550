"""What a method cannot do is refused before anything is changed: by `attach`, and by `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import ConfigError, LoraLabError
from lora_lab.models import LoadedModel
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_text import tiny_tokenizer

LORA = ll.LoraConfig(r=2)

# {what is wrong: (config, what the line says)}; the model is a GPT-2 of 2 blocks, 32 wide, 64
# positions.
REFUSED: dict[str, tuple[Any, str]] = {
    "an unknown target": (LORA.replace(target_modules=["zz"]), "'zz' matches nothing"),
    "AdaLoRA on an embedding": (
        ll.AdaLoraConfig(2, 3, target_modules=["transformer.wte"]),
        "AdaLoRA is for linear layers",
    ),
    "a head where there is none": (ll.HeadConfig(), "no classification head"),
    "more blocks than there are": (ll.FullConfig(top_layers=3), "use at most 2"),
    "prefix and infix beyond the context": (ll.PrefixEmbedConfig(60, 4), "use fewer of them"),
    "as many activations": (ll.PrefixLayerConfig(60, 4), "use fewer of them"),
    "r beyond the layer": (ll.LoraConfig(r=33), "use at most 32"),
    "init_r beyond the layer": (ll.AdaLoraConfig(2, 33), "use at most 32"),
    "a bottleneck wider than the model": (ll.BottleneckConfig("H", r=33), "at most 32"),
    "every adapter dropped": (ll.BottleneckConfig("D", r=2, drop_layers=2), "at most 1"),
    "the same weight twice": ([LORA, ll.LoraConfig(r=3, target_modules=["v"])], "both claim"),
    "LoRA and AdaLoRA on it": ([LORA, ll.AdaLoraConfig(2, 3)], "both claim"),
    "BitFit and FT-Top1": ([ll.BitFitConfig(), ll.FullConfig(top_layers=1)], "both claim"),
    "FT and LoRA": ([ll.FullConfig(), LORA], "leave"),
    "two adapter layers at one place": (
        [ll.BottleneckConfig("H", r=2), ll.BottleneckConfig("P", r=2)],
        "both claim",
    ),
    "two kinds of learned tokens": (
        [ll.PrefixEmbedConfig(1, 0), ll.PrefixLayerConfig(1, 0)],
        "both claim",
    ),
}

# What only a run can know.
REFUSED_BY_RUNS: dict[str, tuple[Any, str]] = {
    "a schedule longer than the run": (
        ll.AdaLoraConfig(2, 3, tinit=2, tfinal=2),
        "of the 4 steps for pruning",
    ),
    "a schedule of another run": (ll.AdaLoraConfig(2, 3, total_step=9), "max_steps"),
    "cuts further apart than the run": (ll.AdaLoraConfig(2, 3, deltaT=5), "a deltaT of at most 4"),
    "no room beside the longest example": (ll.PrefixEmbedConfig(30, 3), "a max_length of at most"),
}


def loaded() -> LoadedModel:
    return LoadedModel.given(tiny("gpt2", vocab_size=259), tiny_tokenizer(), "tiny-gpt2")


def marks(model: nn.Module) -> dict[str, Any]:
    """All that an adapter could leave behind, and every number."""
    parts = {
        path: (type(part), part.training, sorted(vars(part)), list(part._modules))
        for path, part in model.named_modules()
    }
    hooks = [
        len(hooks)
        for part in model.modules()
        for name, hooks in vars(part).items()
        if name.endswith("hooks")
    ]
    numbers = {
        name: (id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()
    }
    return {"parts": parts, "hooks": hooks, "numbers": numbers}


def same(model: nn.Module, before: dict[str, Any]) -> bool:
    now = marks(model)
    return (
        now["parts"] == before["parts"]
        and now["hooks"] == before["hooks"]
        and now["numbers"].keys() == before["numbers"].keys()
        and all(
            now["numbers"][name][:2] == old[:2] and torch.equal(now["numbers"][name][2], old[2])
            for name, old in before["numbers"].items()
        )
    )


def train(lm: LoadedModel, config: Any, folder: Path) -> None:
    settings = {"max_steps": 4, "max_length": 32, "eval_examples": 0, "save_steps": 0}
    ll.train(lm, tiny_task(8, 2), config, output_dir=folder, **settings).result(60)


@pytest.mark.parametrize(("config", "said"), REFUSED.values(), ids=REFUSED)
def test_attach_budget_and_train_refuse_it_and_the_model_is_as_it_was(
    tmp_path: Path, config: Any, said: str
) -> None:
    lm = loaded()
    before = marks(lm.model)
    with pytest.raises(ConfigError) as attached:
        ll.attach(lm.model, config)
    with pytest.raises(ConfigError) as forecast:
        ll.budget(lm.model, config, sequence_length=1)
    with pytest.raises(LoraLabError) as trained:
        train(lm, config, tmp_path)
    for caught in (attached, forecast, trained):
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert same(lm.model, before)
    assert ll.attached(lm.model) == {}


@pytest.mark.parametrize(("config", "said"), REFUSED_BY_RUNS.values(), ids=REFUSED_BY_RUNS)
def test_a_run_refuses_what_does_not_fit_it_before_it_has_a_folder(
    tmp_path: Path, config: Any, said: str
) -> None:
    lm = loaded()
    before = marks(lm.model)
    with pytest.raises(ConfigError) as caught:
        train(lm, config, tmp_path / "runs")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(lm.model, before)
    assert not (tmp_path / "runs").exists()


def test_bitfit_without_biases_is_refused_everywhere(tmp_path: Path) -> None:
    lm = tiny_lm()
    before = marks(lm.model)
    for refused in (
        lambda: ll.attach(lm.model, ll.BitFitConfig()),
        lambda: ll.budget(lm.model, ll.BitFitConfig()),
        lambda: train(lm, ll.BitFitConfig(), tmp_path),
    ):
        with pytest.raises(ConfigError, match="this model has none"):
            refused()
    assert same(lm.model, before)


def test_a_head_is_refused_with_the_same_words_by_attach_and_budget() -> None:
    for model, config in [
        (loaded().model, ll.HeadConfig()),
        (tiny("bert"), ll.HeadConfig(["classifier", "pooled"])),
    ]:
        before = marks(model)
        with pytest.raises(ConfigError) as attached:
            ll.attach(model, config)
        with pytest.raises(ConfigError) as forecast:
            ll.budget(model, config)
        assert str(attached.value) == str(forecast.value)
        assert same(model, before)
    assert "entry 'pooled' names no module; at the top this model has bert, classifier" in str(
        forecast.value
    )


def test_an_adapter_that_is_there_stays_when_another_is_refused() -> None:
    lm = loaded()
    kept = ll.attach(lm.model, LORA)
    lm.model(**tiny_inputs(lm.model))  # some look at what a pass hands on: that is no first one
    before = marks(lm.model)
    for config, _ in REFUSED.values():
        with pytest.raises(ConfigError):
            ll.attach(lm.model, config)
    assert ll.attached(lm.model) == {"default": kept}
    assert ll.active(lm.model) == "default"
    assert same(lm.model, before)
