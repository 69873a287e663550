"""A model's folder made of a GGUF file: float32, the file read once.

Of a Llama with SmolLM's vocabulary, which is the embedded model, it is to the bit what transformers
makes; its reader parses the file three times, and a table of names for every module. It reads all
others.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab._util.building import building
from lora_lab._util.quiet import quiet_transformers
from lora_lab.models.gguf_file import GgufFile, GgufTensor

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerBase

# GGUF's words for a Llama, and transformers'.
_SETTINGS = {
    "general.name": "_model_name_or_path",
    "llama.context_length": "max_position_embeddings",
    "llama.block_count": "num_hidden_layers",
    "llama.feed_forward_length": "intermediate_size",
    "llama.embedding_length": "hidden_size",
    "llama.rope.dimension_count": "head_dim",
    "llama.rope.freq_base": "rope_theta",
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "llama.vocab_size": "vocab_size",
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMAL, _CONTROL = 1, 3  # kinds of tokens


def dequantize(source: Path, folder: Path) -> None:
    """Write the float32 model of a GGUF file and its tokenizer into `folder`.

    Raises:
        ImportError: the package gguf is missing.
        ValueError: it is no GGUF file, or of an architecture that transformers cannot read.
    """
    file = GgufFile(source.read_bytes())
    with quiet_transformers():
        if _is_known(file):
            config, tokenizer = _config(file), _tokenizer(file)
            _write_settings(config, folder)
            _write_weights(file, config, folder / "model.safetensors")
        else:
            config, tokenizer = _write_by_transformers(source, folder)
        if file.metadata.get("tokenizer.ggml.pre") == "smollm":
            _split_digits(tokenizer)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(folder)


def _is_known(file: GgufFile) -> bool:
    """Whether all that the result follows from is known here."""
    from tokenizers import pre_tokenizers

    data = file.metadata
    letters = {*pre_tokenizers.ByteLevel.alphabet()}
    return (
        data.get("general.architecture") == "llama"
        and data.get("general.name") != "mistral"  # which is a class of its own
        and data.get("tokenizer.ggml.model") == "gpt2"
        and data.get("tokenizer.ggml.pre") == "smollm"
        and {key for key in data if key.startswith("llama.")} <= {*_SETTINGS}
        and {*data.get("tokenizer.ggml.token_type", ())} <= {_NORMAL, _CONTROL}
        and letters.issuperset("".join(data["tokenizer.ggml.tokens"]))
        and all(_name(tensor) for tensor in file.tensors)
    )


def _name(tensor: GgufTensor) -> str | None:
    """Return transformers' name of a tensor, None where it is not known."""
    if tensor.name == "output.weight":
        return "lm_head.weight"
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name)
    if found is None or found[2] not in _NAMES:
        return None
    block = f"layers.{found[1]}." if found[1] else ""
    return f"model.{block}{_NAMES[found[2]]}.weight"


def _config(file: GgufFile) -> LlamaConfig:
    from transformers import LlamaConfig

    data = file.metadata
    values = {ours: data[name] for name, ours in _SETTINGS.items() if name in data}
    for name, ours in _SPECIAL.items():
        if (token := data.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            values[f"{ours}_token_id"] = token
    return LlamaConfig(
        **{"vocab_size": len(data["tokenizer.ggml.tokens"]), **values},
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in file.tensors),
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )


def _write_settings(config: LlamaConfig, folder: Path) -> None:
    from transformers import GenerationConfig

    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)


def _write_weights(file: GgufFile, config: LlamaConfig, path: Path) -> None:
    """Write a safetensors file, one tensor at a time: a small machine holds no second copy."""
    tensors = {str(_name(tensor)): tensor for tensor in file.tensors}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + 4 * tensors[name].size
        shape = tensors[name].shape
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            weight = file.dequantized(tensors[name])
            if ".attn_q." in tensors[name].name:
                weight = _halves(weight, config.num_attention_heads)
            elif ".attn_k." in tensors[name].name:
                weight = _halves(weight, config.num_key_value_heads or config.num_attention_heads)
            out.write(weight.astype("<f4", order="C", copy=False).data)


def _halves(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Return a head's rows as transformers rotates them: the even ones, then the odd ones."""
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def _tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    data = {key.removeprefix("tokenizer."): value for key, value in file.metadata.items()}
    tokens = data["ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in data["ggml.merges"]]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    affixes = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    made = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, **affixes))
    made.decoder = decoders.ByteLevel()
    kinds = zip(tokens, data.get("ggml.token_type", ()), strict=False)
    made.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token, k in kinds if k == _CONTROL]
    )
    names = {ours: data.get(f"ggml.{name}_token_id") for name, ours in _SPECIAL.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        chat_template=data.get("chat_template"),
        **{f"{ours}_token": None if n is None else tokens[n] for ours, n in names.items()},
        **{
            key: data[f"ggml.{key}"]
            for key in ("add_bos_token", "add_eos_token")
            if f"ggml.{key}" in data
        },
    )


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    # `tokenizer.ggml.pre = smollm`: digits are split off one by one before the byte-level step.
    # transformers' reader drops that, and runs of spaces before a number come out as other tokens
    # than the model was trained on.
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _write_by_transformers(source: Path, folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Write the model by transformers' reader; return its config and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with building():
        model: Any = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
    # The weights are plain float32 now, but transformers keeps the label and would neither save
    # nor train the model with it.
    vars(model.config).pop("quantization_config", None)
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    return model.config, AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
