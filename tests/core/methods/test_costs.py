"""Every method's counts against the paper's formulas and PyTorch's own, its memory against a step.

The references below are the plainest way to write a method in PyTorch, and none of our code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab.anatomy import anatomy
from lora_lab.budget import Budget, budget
from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    FullConfig,
    LoraConfig,
    MethodConfig,
    PrefixEmbedConfig,
    PrefixLayerConfig,
    TrainingConfig,
)
from lora_lab.errors import ConfigError
from tests.helpers.measured_step import (
    BATCH,
    LENGTH,
    bert,
    gpt2,
    llama,
    measured_peak,
    mistral,
    opt,
    qwen2,
    qwen3,
)
from tests.helpers.tiny_models import tiny

DECODERS = [llama, gpt2, mistral, qwen2, qwen3, opt]
D, LAYERS = 12288, 96  # GPT-3 175B


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# --- references ----------------------------------------------------------------------------------


def blocks(model: Any) -> list[Any]:
    base = getattr(model, model.base_model_prefix)
    base = getattr(base, "decoder", getattr(base, "encoder", base))
    return list(next(m for m in base.modules() if isinstance(m, nn.ModuleList)))


def train_top(model: Any, count: int) -> None:
    model.requires_grad_(False)
    for block in blocks(model)[-count:]:
        block.requires_grad_(True)


def train_biases(model: Any) -> None:
    model.requires_grad_(False)
    for name, parameter in getattr(model, model.base_model_prefix).named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


class LearnedTokens(nn.Module):
    """Word embeddings, of which the first positions are replaced by learned ones."""

    def __init__(self, words: nn.Embedding, tokens: int) -> None:
        super().__init__()
        self.words = words
        self.learned = nn.Parameter(torch.randn(tokens, words.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        rest = self.words(ids)[:, len(self.learned) :]
        return torch.cat([self.learned.expand(len(ids), -1, -1), rest], 1)


def train_tokens(model: Any, tokens: int) -> None:
    model.requires_grad_(False)
    model.set_input_embeddings(LearnedTokens(model.get_input_embeddings(), tokens))


class Bottleneck(nn.Module):
    """A module with an adapter layer behind it."""

    def __init__(self, inner: nn.Module, d: int, r: int, layer_norm: bool) -> None:
        super().__init__()
        self.inner, self.down, self.up = inner, nn.Linear(d, r), nn.Linear(r, d)
        self.norm = nn.LayerNorm(d) if layer_norm else None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        found = self.inner(*inputs, **options)
        z = found[0] if isinstance(found, tuple) else found
        z = z + self.up(F.relu(self.down(z)))
        z = z if self.norm is None else self.norm(z)
        return (z, *found[1:]) if isinstance(found, tuple) else z


def add_bottlenecks(model: Any, config: BottleneckConfig) -> None:
    model.requires_grad_(False)
    d, r, norm = model.config.hidden_size, config.r, config.variant == "L"
    for block in blocks(model):
        mlp = "mlp" if hasattr(block, "mlp") else "fc2"
        places = [mlp]
        if config.variant == "H":
            places.append("self_attn" if hasattr(block, "self_attn") else "attn")
        for place in places:
            setattr(block, place, Bottleneck(getattr(block, place), d, r, norm))


def agrees(
    model: Any, config: MethodConfig, change: Callable[[Any], None], *, learned: int = 0
) -> Budget:
    """Assert count and memory against the model with `change` done to it."""
    found = budget(model, config, batch_size=BATCH, sequence_length=LENGTH - learned)
    change(model.train())
    assert found.parameters_trainable == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    rest = found.adapted.weights + found.adapted.optimizer
    measured = measured_peak(model) - rest
    assert found.adapted.total - rest == pytest.approx(measured, rel=0.02)
    return found


# --- the measured step ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("make", DECODERS)
def test_the_top_layers(make: Any, count: int) -> None:
    config = FullConfig(top_layers=count)
    assert not agrees(make(), config, lambda model: train_top(model, count)).approximate


@pytest.mark.parametrize("make", [gpt2, opt, qwen2])
def test_bitfit(make: Any) -> None:
    assert not agrees(make(), BitFitConfig(), train_biases).approximate


@pytest.mark.parametrize("make", [llama, gpt2, mistral, qwen2, qwen3])
def test_learned_tokens(make: Any) -> None:
    config = PrefixEmbedConfig(prefix_length=6, infix_length=2)
    change = lambda model: train_tokens(model, 8)  # noqa: E731
    assert not agrees(make(), config, change, learned=8).approximate


@pytest.mark.parametrize("variant", ["H", "L", "P", "D"])
@pytest.mark.parametrize("make", DECODERS)
def test_bottlenecks_are_estimated_and_close(make: Any, variant: Any) -> None:
    config = BottleneckConfig(variant, r=16)
    assert agrees(make(), config, lambda model: add_bottlenecks(model, config)).approximate


def test_an_encoders_biases_are_counted_without_its_head() -> None:
    model = bert()
    expected = sum(p.numel() for n, p in model.bert.named_parameters() if n.endswith("bias"))
    found = budget(model, BitFitConfig())
    assert found.parameters_trainable == expected
    assert found.approximate  # BERT's step is not held to 2 % by any test


def test_full_fine_tuning_is_a_plan_like_any_other() -> None:
    found = budget(gpt2(), FullConfig())
    assert found.adapted == found.full
    assert found.parameters_trainable == found.parameters_total
    assert found.checkpoint_bytes == found.full_checkpoint_bytes
    assert found.method == "FT"


# --- counts: Hu et al. (2022), section 5.1 -------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (FullConfig(), LAYERS * (12 * D**2 + 13 * D) + 50257 * D + 2048 * D + 2 * D),
        (FullConfig(top_layers=2), 2 * (12 * D**2 + 13 * D)),
        (BitFitConfig(), 11 * LAYERS * D + D),
        (PrefixEmbedConfig(256, 8), D * 264),
        (PrefixLayerConfig(8, 8), LAYERS * D * 16),
        (BottleneckConfig("H", 8), 2 * LAYERS * (2 * D * 8 + 8 + D)),
        (BottleneckConfig("L", 8), LAYERS * (2 * D * 8 + 8 + D) + 2 * LAYERS * D),
        (BottleneckConfig("P", 8), LAYERS * (2 * D * 8 + 8 + D)),
        (BottleneckConfig("D", 8), LAYERS * (2 * D * 8 + 8 + D)),
        (AdaLoraConfig(init_r=12), 2 * LAYERS * 12 * (2 * D + 1)),
        ([LoraConfig(r=8), PrefixEmbedConfig(8, 4)], 2 * LAYERS * 2 * D * 8 + 12 * D),
        ([LoraConfig(r=8), PrefixLayerConfig(8, 4)], 2 * LAYERS * 2 * D * 8 + 12 * D * LAYERS),
    ],
    ids=lambda value: "" if isinstance(value, int) else None,
)
def test_the_papers_formulas(config: Any, count: int) -> None:
    assert budget("gpt3-175b", config).parameters_trainable == count


def test_adalora_counts_as_peft_does_and_saves_plain_lora() -> None:
    from peft import AdaLoraConfig as Peft
    from peft import get_peft_model

    model = llama()
    config = AdaLoraConfig(target_r=2, init_r=3, target_modules=["q_proj", "v_proj"])
    found = budget(model, config)
    theirs = get_peft_model(
        model, Peft(target_r=2, init_r=3, target_modules=["q_proj", "v_proj"], total_step=10)
    )
    assert found.parameters_trainable == theirs.get_nb_trainable_parameters()[0]
    plain = LoraConfig(r=2, target_modules=["q", "v"])
    assert found.checkpoint_bytes == budget(llama(), plain).checkpoint_bytes
    # Two moments of Adam's and two of the scores for every number.
    assert found.adapted.optimizer == 4 * 4 * found.parameters_trainable
    assert found.approximate
    assert "mean rank 2" in found.notes[0]


def test_new_biases_are_zeros_of_their_own() -> None:
    model = llama()
    found = budget(model, BitFitConfig(new_biases=True))
    outputs = sum(m.out_features for m in model.model.modules() if isinstance(m, nn.Linear))
    assert found.parameters_trainable == outputs
    assert found.adapted.weights == found.full.weights + 4 * outputs


def test_word_embeddings_may_be_narrower_than_the_model() -> None:
    config = transformers.OPTConfig(
        vocab_size=256,
        hidden_size=64,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    )
    found = budget(anatomy(config), PrefixEmbedConfig(3, 1))
    assert found.parameters_trainable == 4 * 32


def test_learned_activations_go_into_the_stack_that_reads_the_prompt() -> None:
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_decoder_layers=2, num_heads=4
    )
    found = budget(anatomy(config), PrefixLayerConfig(4, 1))
    assert found.parameters_trainable == 3 * 32 * 5
    both = budget(anatomy(config), BottleneckConfig("P", 4))
    assert both.parameters_trainable == 5 * (2 * 32 * 4 + 4 + 32)


# --- combinations --------------------------------------------------------------------------------


def test_a_combination_shares_what_both_keep() -> None:
    model = anatomy(gpt2())
    lora, tokens = LoraConfig(r=4), PrefixEmbedConfig(2, 2)
    both, *alone = (
        budget(model, config, sequence_length=32) for config in ([lora, tokens], lora, tokens)
    )
    assert both.method == "LoRA+PE"
    assert both.parameters_trainable == sum(b.parameters_trainable for b in alone)
    assert both.adapted.optimizer == sum(b.adapted.optimizer for b in alone)
    assert both.checkpoint_bytes == sum(b.checkpoint_bytes for b in alone)
    assert both.adapted.activations < 1.2 * max(b.adapted.activations for b in alone)
    assert both.full == alone[0].full  # full fine-tuning reads no learned tokens
    assert "32 tokens and 4 learned ones" in both.settings


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([LoraConfig(), AdaLoraConfig()], "LoRA and AdaLoRA both claim transformer.h.0.attn"),
        ([FullConfig(), LoraConfig()], "full fine-tuning (FT) trains every weight; leave"),
        ([FullConfig(1), LoraConfig()], "FT-Top1 and LoRA both claim transformer.h.2.attn.c_attn"),
        ([FullConfig(1), BitFitConfig()], "FT-Top1 and BitFit both claim transformer.h.2.attn"),
        ([PrefixEmbedConfig(), PrefixLayerConfig()], "both claim the learned tokens"),
        ([BottleneckConfig("H"), BottleneckConfig("P")], "the place after the MLP of layer 0"),
        ([], "no method is given"),
        (TrainingConfig(), "TrainingConfig is no method's config; use one of AdaLoraConfig"),
        (FullConfig(top_layers=4), "top_layers is 4 and the model has 3; use at most 3"),
        (BottleneckConfig(r=65), "r is 65 and the model is 64 wide; use an r of at most 64"),
        (PrefixEmbedConfig(40, 8), "use a sequence_length of at most 16"),
        (PrefixLayerConfig(60, 8), "fit the model's 64 positions; use fewer of them"),
        (AdaLoraConfig(init_r=99), "rank 99 at transformer.h.0.attn.c_attn[q]"),
    ],
)
def test_what_cannot_be_is_refused(configs: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        budget(anatomy(gpt2()), configs, sequence_length=32)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_loras_on_different_matrices_are_fine() -> None:
    two = [LoraConfig(r=2, target_modules=["q"]), LoraConfig(r=4, target_modules=["v"])]
    pattern = LoraConfig(r=2, target_modules=["q", "v"], rank_pattern={"v": 4})
    model = anatomy(gpt2())
    apart, together = budget(model, two).adapted, budget(model, pattern).adapted
    assert replace(apart, activations=0) == replace(together, activations=0)
    # One adapter's A's stand below each other for one pass, in a tensor of their own: float32,
    # ranks 2 and 4, 64 wide, in three layers.
    assert together.activations - apart.activations == 3 * (2 + 4) * 64 * 4


def test_models_that_a_method_cannot_use() -> None:
    with pytest.raises(ConfigError, match="this model has none; BitFitConfig\\(new_biases=True\\)"):
        budget(llama(), BitFitConfig())
    bare = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(8, 8))])})
    with pytest.raises(ConfigError, match="Adapter\\^H needs the width of the model's blocks"):
        budget(bare, BottleneckConfig())
    with pytest.raises(ConfigError, match="PreEmbed needs word embeddings"):
        budget(bare, PrefixEmbedConfig())
    with pytest.raises(ConfigError, match="is for linear layers, and transformer\\.wte is"):
        budget(tiny("gpt2"), AdaLoraConfig(target_modules=["wte"]))
    with pytest.raises(ConfigError, match="PreLayer needs word embeddings"):
        budget(tiny("vit"), PrefixLayerConfig())
