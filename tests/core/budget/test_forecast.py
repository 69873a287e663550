"""The closed form against counts of the paper, saved files, and a step's measured memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lora_lab.anatomy import Anatomy, anatomy
from lora_lab.budget import budget, evaluate_price, price_table
from lora_lab.checkpoint import save_adapter
from lora_lab.configs import LoraConfig
from lora_lab.errors import ConfigError
from lora_lab.methods.api import attach
from lora_lab.methods.lora.targets import ranks
from lora_lab.models import model_config
from tests.helpers.measured_step import (
    BATCH,
    LENGTH,
    bert,
    bloom,
    gpt2,
    llama,
    measured_peak,
    mistral,
    opt,
    qwen2,
    qwen3,
)

Q_V = LoraConfig(r=4, target_modules=["q", "v"])
ALL = LoraConfig(r=4, target_modules="all-linear")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def off_by(
    model: Any, config: LoraConfig | None, *, checkpointing: bool = False, padded: bool = False
) -> float:
    """Return the relative error of the forecast, weights and optimizer left out on both sides."""
    model.train()
    forecast = budget(
        model,
        config or Q_V,
        batch_size=BATCH,
        sequence_length=LENGTH,
        gradient_checkpointing=checkpointing,
        padding_mask=padded,
    )
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    memory = forecast.full
    if config:
        attach(model, config)
        memory = forecast.adapted
    rest = memory.weights + memory.optimizer
    return abs((memory.total - rest) / (measured_peak(model, padded=padded) - rest) - 1)


# --- the measured step ---------------------------------------------------------------------------


@pytest.mark.parametrize("config", [None, Q_V, ALL], ids=["full", "q,v", "all-linear"])
@pytest.mark.parametrize("make", [llama, gpt2, mistral, qwen2, qwen3, opt])
def test_forecast_is_within_2_percent_of_a_measured_step(make: Any, config: Any) -> None:
    assert off_by(make(), config) < 0.02


@pytest.mark.parametrize("config", [None, Q_V, ALL], ids=["full", "q,v", "all-linear"])
@pytest.mark.parametrize("vocab", [64, 4096])  # the peak lies in the last block, or at the loss
def test_forecast_holds_wherever_the_peak_lies(vocab: int, config: Any) -> None:
    assert off_by(llama(vocab), config) < 0.02
    assert off_by(llama(vocab, tie_word_embeddings=True), config) < 0.02


@pytest.mark.parametrize("config", [None, Q_V, ALL], ids=["full", "q,v", "all-linear"])
def test_forecast_in_bfloat16(config: Any) -> None:
    assert off_by(llama(4096).to(torch.bfloat16), config) < 0.02


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize("config", [None, Q_V, ALL], ids=["full", "q,v", "all-linear"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_forecast_with_gradient_checkpointing(make: Any, config: Any) -> None:
    assert off_by(make(64, layers=6), config, checkpointing=True) < 0.04


@pytest.mark.parametrize("config", [None, Q_V, ALL], ids=["full", "q,v", "all-linear"])
def test_forecast_with_the_models_own_dropout(config: Any) -> None:
    assert off_by(gpt2(dropout=0.1), config) < 0.02


@pytest.mark.parametrize("config", [None, Q_V, ALL], ids=["full", "q,v", "all-linear"])
@pytest.mark.parametrize(
    "make", [llama, gpt2, mistral, qwen2, qwen3, opt, lambda: gpt2(dropout=0.1)]
)
def test_forecast_with_a_padding_mask(make: Any, config: Any) -> None:
    assert off_by(make(), config, padded=True) < 0.02


OPTIONS: dict[str, dict[str, Any]] = {
    "dropout": {"lora_dropout": 0.1},
    "DoRA": {"use_dora": True},
    "DoRA with dropout": {"use_dora": True, "lora_dropout": 0.1},
    "PiSSA": {"init_lora_weights": "pissa"},
    "LoRA-FA": {"use_lorafa": True},
    "LoRA-FA with dropout": {"use_lorafa": True, "lora_dropout": 0.1},
}
MAKERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: llama(64),
    "bfloat16": lambda: llama(64).to(torch.bfloat16),
    "many words": lambda: llama(4096),
    "gpt2": gpt2,
}


@pytest.mark.parametrize("config", [Q_V, ALL], ids=["q,v", "all-linear"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("make", MAKERS)
def test_forecast_with_an_option(make: str, option: str, config: LoraConfig) -> None:
    assert off_by(MAKERS[make](), replace(config, **OPTIONS[option])) < 0.02


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize("option", OPTIONS)
def test_forecast_with_an_option_and_gradient_checkpointing(option: str) -> None:
    config = replace(ALL, **OPTIONS[option])
    assert off_by(llama(64, layers=6), config, checkpointing=True) < 0.04


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("vocab", [64, 4096])
def test_forecast_with_an_embedding(vocab: int, tied: bool, checkpointing: bool) -> None:
    config = replace(Q_V, target_modules=["embed_tokens", "q"])
    model = llama(vocab, layers=6, tie_word_embeddings=tied)
    assert off_by(model, config, checkpointing=checkpointing) < 0.04


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("option", [{}, *OPTIONS.values()], ids=["plain", *OPTIONS])
def test_weights_and_counts_are_those_of_the_attached_adapter(
    make: Any, option: dict[str, Any]
) -> None:
    model = make()
    base = sum(p.numel() for p in model.parameters())
    config = replace(ALL, **option)
    found = budget(model, config)
    adapter = attach(model, config)
    assert found.parameters_trainable == adapter.trainable
    assert found.adapted.gradients == 4 * adapter.trainable
    assert found.adapted.optimizer == 8 * adapter.trainable
    kept = {id(t): t.numel() for t in model.parameters()}
    kept |= {id(t): t.numel() for site in adapter.sites.values() for t in site.buffers()}
    assert found.adapted.weights == found.full.weights + 4 * (sum(kept.values()) - base)


@pytest.mark.parametrize("targets", [r".*layers\.2\..*", r".*layers\.1\.mlp\.down_proj"])
def test_blocks_before_the_first_adapter_keep_nothing(targets: str) -> None:
    assert off_by(llama(64), LoraConfig(r=4, target_modules=targets)) < 0.02


def test_full_fine_tuning_of_a_tiny_batch_peaks_when_all_gradients_are_there() -> None:
    model = llama(1024, tie_word_embeddings=True).train()
    memory = budget(model, Q_V, batch_size=1, sequence_length=8).full
    # The tied matrix's two gradients and their sum live at once.
    assert memory.activations == 2 * 1024 * 64 * 4
    assert memory.total == pytest.approx(measured_peak(model, 1, 8), rel=0.01)


@pytest.mark.parametrize("config", [None, Q_V, ALL], ids=["full", "q,v", "all-linear"])
@pytest.mark.parametrize("make", [bert, bloom])
def test_other_architectures_are_flagged_and_within_10_percent(make: Any, config: Any) -> None:
    model = make()
    assert budget(model, Q_V).approximate
    assert off_by(model, config) < 0.1


def test_measured_architectures_are_not_flagged() -> None:
    assert not budget(llama(), Q_V).approximate


# --- counts --------------------------------------------------------------------------------------


def test_gpt3_counts_are_the_papers() -> None:
    """Hu et al. (2022), section 4.2 and table 5; the total is GPT-2's L(12d²+13d)+Vd+nd+2d."""
    found = budget("gpt3-175b", Q_V)
    d, layers = 12288, 96
    assert found.parameters_trainable == 18_874_368
    assert found.parameters_total == layers * (12 * d * d + 13 * d) + 50257 * d + 2048 * d + 2 * d
    assert found.full.weights == 2 * found.parameters_total  # "350 GB"


@pytest.mark.parametrize(
    ("name", "trainable", "total"),
    [("gpt2-medium", 393_216, 354_823_168), ("gpt2-large", 737_280, 774_030_080)],
)
def test_gpt2_counts(name: str, trainable: int, total: int) -> None:
    found = budget(name, Q_V)
    assert (found.parameters_trainable, found.parameters_total) == (trainable, total)


def test_parts_that_are_plain_arithmetic() -> None:
    model = llama()
    total = sum(p.numel() for p in model.parameters())
    found = budget(model, Q_V)
    trainable = 3 * 4 * ((64 + 64) + (64 + 32))  # q is 64 × 64, v 32 × 64, in three layers
    assert found.parameters_trainable == trainable
    assert found.full.weights == found.full.gradients == found.full_checkpoint_bytes == 4 * total
    assert found.full.optimizer == 8 * total
    assert found.adapted.weights == 4 * total + 4 * trainable
    assert found.adapted.gradients == found.checkpoint_bytes == 4 * trainable
    assert found.adapted.optimizer == 8 * trainable


def test_a_16_bit_base_keeps_a_float32_adapter() -> None:
    model = llama()
    total = sum(p.numel() for p in model.parameters())
    found = budget(model, Q_V, dtype=torch.bfloat16)
    assert found.full.weights == 2 * total
    assert found.full.gradients == 4 * total  # as the optimizer is given them
    assert found.full.optimizer == 12 * total  # two moments and a master
    assert found.adapted.weights == 2 * total + 4 * found.parameters_trainable
    assert found.adapted.optimizer == 8 * found.parameters_trainable
    assert budget(model, Q_V, dtype="bfloat16") == found


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (llama, ALL),
        (gpt2, Q_V),
        (gpt2, replace(Q_V, rank_pattern={"q": 2})),  # fused: B is block-diagonal on disk
        (gpt2, replace(Q_V, use_dora=True)),  # lengths for k's rows too
        (llama, replace(ALL, init_lora_weights="pissa")),  # A₀ and B₀ too
        (llama, replace(ALL, use_lorafa=True)),
        (llama, replace(Q_V, target_modules=["embed_tokens", "q"])),
    ],
)
def test_checkpoint_bytes_are_the_files(make: Any, config: LoraConfig, tmp_path: Path) -> None:
    model = make()
    expected = budget(model, config).checkpoint_bytes
    attach(model, config)
    save_adapter(model, tmp_path / "adapter")
    content = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == expected


# --- what it depends on --------------------------------------------------------------------------


def test_shared_inputs_are_paid_once() -> None:
    model = anatomy(llama(64))
    price = price_table(model, batch_size=BATCH, sequence_length=LENGTH)

    def kept(*roles: str) -> int:
        chosen = {s.name: 1 for s in model.grid_sites if s.role in roles}
        found = evaluate_price(price, chosen)
        thin = sum(price["sites"][name]["activations"] for name in chosen)
        return found.adapted.activations + found.adapted.gradients - thin

    tokens, layers = BATCH * LENGTH, 3

    def shared(readers: int) -> int:
        """The A's below each other, and the thin H of all but the first, which it hands on."""
        return layers * (readers * 64 + (readers - 1) * tokens) * 4

    assert kept("q", "k", "v") == kept("q") + shared(3)
    assert kept("q", "o") == kept("q")  # SDPA keeps o's input anyway
    assert kept("q", "up") == kept("q") + layers * tokens * 64 * 4
    assert kept("q", "gate", "up") == kept("q", "up") + shared(2)


def test_gradient_checkpointing_saves_activations_only() -> None:
    model = anatomy(llama(64, layers=6))
    plain, recomputed = (budget(model, ALL, gradient_checkpointing=on) for on in (False, True))
    assert recomputed.adapted.activations < plain.adapted.activations / 2
    assert replace(recomputed.adapted, activations=0) == replace(plain.adapted, activations=0)


def test_model_anatomy_name_and_folder_give_the_same(tmp_path: Path) -> None:
    config = model_config("smollm2-135m")
    config.save_pretrained(tmp_path)
    by_name = budget("smollm2-135m", Q_V)
    assert by_name.parameters_total == 134_515_008
    assert budget(tmp_path, Q_V) == budget(anatomy(config), Q_V) == by_name


def test_attaching_does_not_change_the_forecast() -> None:
    model = llama()
    before = budget(model, Q_V)
    attach(model, Q_V)
    assert budget(model, Q_V) == before


def test_the_table_is_plain_json_and_prices_any_ranks() -> None:
    model = anatomy(gpt2())
    price = price_table(model, batch_size=8, sequence_length=32)
    again = json.loads(json.dumps(price))
    assert evaluate_price(again, ranks(model, ALL)) == budget(model, ALL, sequence_length=32)
    off = {site.name: 0 for site in model.grid_sites}
    planned = budget(model, Q_V, sequence_length=32)
    assert evaluate_price(price, off | ranks(model, Q_V)) == planned


def test_no_ranks_cost_the_weights_alone() -> None:
    price = price_table(anatomy(llama()))
    found = evaluate_price(price, {})
    assert found.adapted.total == found.adapted.weights == found.full.weights
    assert found.parameters_trainable == found.checkpoint_bytes == 0


def test_a_model_without_a_config_is_counted_exactly_and_estimated() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(32, 48)
            self.back = nn.Linear(48, 32)

    model = nn.ModuleDict({"blocks": nn.ModuleList([Block(), Block()]), "out": nn.Linear(32, 5)})
    found = budget(model, LoraConfig(r=2, target_modules=["mix"]), batch_size=2, sequence_length=8)
    assert found.parameters_total == 2 * (32 * 48 + 48 + 48 * 32 + 32) + 32 * 5 + 5
    assert found.parameters_trainable == 2 * 2 * (32 + 48)
    assert found.approximate
    # At the least: mix's two inputs, and the matrices' outputs behind the first of them.
    assert found.adapted.activations > 2 * 16 * 32 * 4 + 16 * (48 + 32 + 48 + 32) * 4
    assert found.full.total > found.adapted.total


# --- what people see -----------------------------------------------------------------------------


def test_json_has_the_promised_keys() -> None:
    found = budget(llama(), Q_V).to_json()
    assert found["parameters"].keys() == {"total", "trainable"}
    parts = {"weights", "gradients", "optimizer", "activations", "total"}
    assert found["memory"].keys() == {"full", "adapted"}
    for memory in found["memory"].values():
        assert memory.keys() == parts
        assert all(type(value) is int for value in memory.values())
        assert memory["total"] == sum(memory[part] for part in parts - {"total"})
    assert type(found["checkpoint_bytes"]) is int
    json.dumps(found)


def test_text_and_html_say_the_same() -> None:
    found = budget("smollm2-135m", Q_V)
    for shown in (str(found), found._repr_html_()):
        for text in ("full fine-tuning", "this plan", "0.23 M of 134.5 M", "AdamW", "513 MiB"):
            assert text in shown
    assert "estimate" not in str(found)
    assert "estimate" in str(replace(found, approximate=True))
    lines = str(found).splitlines()
    assert len({len(line) for line in lines[2:5]}) == 1  # columns line up


def test_html_is_escaped() -> None:
    found = replace(budget(llama(), Q_V), settings="<script>")
    assert "<script>" not in found._repr_html_()
    assert "&lt;script&gt;" in found._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number of at least 1"),
        ({"sequence_length": 1.5}, "sequence_length is 1.5; it must be a whole number"),
        ({"optimizer": "lion"}, "optimizer 'lion' is not modeled; use one of adamw, adamw_8bit"),
        ({"dtype": "int8"}, "dtype 'int8' is not modeled; use one of bfloat16, float16, float32"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        budget(tiny(), Q_V, **options)


def test_unknown_sites_and_targets_are_refused() -> None:
    with pytest.raises(ConfigError, match="no matrix is called 'nowhere'"):
        evaluate_price(price_table(tiny()), {"nowhere": 4})
    with pytest.raises(ConfigError, match="'zz' matches nothing"):
        budget(tiny(), LoraConfig(target_modules=["zz"]))


def tiny() -> Anatomy:
    return anatomy(llama(64, layers=1))
