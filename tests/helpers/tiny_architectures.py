"""Tiny random models of many of transformers' architectures, by their `model_type`.

A config is derived from its class: every field that `SMALL` knows is made small, in the configs
below it too; `CHANGES` has what an architecture needs besides.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_SIZES = {
    32: "hidden_size d_model n_embd dim embed_dim hidden_dim embedding_size emb_dim text_embed_dim "
    "encoder_hidden_size decoder_hidden_size width backbone_hidden_size mlp_hidden_size "
    "projection_hidden_size",
    48: "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim d_inner mlp_dim "
    "ffn_hidden_size dim_feedforward shared_expert_intermediate_size moe_intermediate_size "
    "decoder_intermediate_size encoder_intermediate_size dense_intermediate_size "
    "intermediate_size_mlp expert_ffn_hidden_size linear_intermediate_size",
    2: "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers depth "
    "num_decoder_layers num_encoder_layers encoder_num_hidden_layers decoder_num_hidden_layers "
    "encoder_n_layers num_blocks num_key_value_heads num_kv_heads encoder_num_key_value_heads "
    "decoder_num_key_value_heads num_experts_per_tok moe_k moe_topk",
    4: "num_attention_heads n_head num_heads n_heads encoder_attention_heads attention_heads "
    "decoder_attention_heads encoder_num_attention_heads decoder_num_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts patch_size conv_kernel",
    8: "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim state_size mamba_d_state "
    "ssm_state_size mamba_head_dim mamba_n_heads linear_key_head_dim linear_value_head_dim",
    12: "q_lora_rank kv_lora_rank",
    16: "qk_head_dim image_size projection_dim num_mel_bins feature_size",
    64: "max_position_embeddings n_positions max_source_positions max_target_positions",
    96: "vocab_size",
    1: "n_group topk_group first_k_dense_replace bos_token_id",
    0: "pad_token_id decoder_start_token_id",
    3: "num_labels",
}
IMAGE, AUDIO = 94, 93  # the tokens that stand where an image's, a sound's features go
SMALL = {name: size for size, names in _SIZES.items() for name in names.split()} | {
    "eos_token_id": 2,
    **dict.fromkeys(("image_token_id", "image_token_index"), IMAGE),
    **dict.fromkeys(("audio_token_id", "audio_token_index"), AUDIO),
    **dict.fromkeys(("video_token_id", "video_token_index"), 92),
    **dict.fromkeys(("vision_start_token_id", "vision_end_token_id"), 91),
}
_MAY_BE_NONE = {"pad_token_id", "bos_token_id", "eos_token_id", "hidden_size"}
_STAGES = {
    (1, 1, 1, 1, 1, 1, 1): "depths depth n_attn_blocks num_block_repeats",
    (8, 16, 32, 64, 64, 64, 64): "hidden_sizes embed_dim embed_dims base_attn_unit_dims",
    (1, 2, 2, 4, 4, 4, 4): "num_heads num_attention_heads",
    (16, 16, 16, 16, 16, 16, 16): "conv_dim neck_hidden_sizes",
}
SMALL_LISTS = {name: sizes for sizes, names in _STAGES.items() for name in names.split()}


_MLA = {"num_key_value_heads": 4}
_INDEXER = {**_MLA, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 4}
_ROTARY = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
}
_WAVES = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_PYRAMID = {"sr_ratios": [2, 2, 1, 1], "image_size": 64}
_SERIES = {"context_length": 16, "patch_length": 4}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_CONVOLVED = {"layer_types": ["conv", "full_attention"]}
_QWEN3_VISION = {
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}


def _alike(names: str, changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names.split(), changes)


CHANGES: dict[str, dict[str, Any]] = {
    **_alike("axk1 deepseek_v3 minicpm3 longcat_flash", _MLA),
    **_alike("deepseek_v32 glm_moe_dsa", _INDEXER),
    **_alike("qwen3_5_text qwen3_next", _LINEAR),
    **_alike("hubert unispeech-sat wav2vec2 wav2vec2-conformer wavlm", _WAVES | {"vocab_size": 96}),
    **_alike("glpn pvt_v2 segformer", _PYRAMID),
    **_alike("patchtst patchtsmixer", _SERIES),
    **_alike("codegen gptj", {"rotary_dim": 4}),
    **_alike("convnext convnextv2", {"image_size": 32}),
    **_alike("timesformer videomae", {"num_frames": 2}),
    "audio-spectrogram-transformer": {"max_length": 16, "frequency_stride": 4, "time_stride": 4},
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 2},
    "beam": {"mlp_layer_types": ["dense", "sparse"], "n_group": 1, "topk_group": 1},
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2, "topk_method": "greedy"},
    "esm": {"vocab_size": 96, "mask_token_id": 4},
    "fsmt": {"src_vocab_size": 96, "tgt_vocab_size": 96},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite": {"logits_scaling": 8.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": [2, 2]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "input_size": 16},
    "lfm2_moe": {**_CONVOLVED, "num_dense_layers": 1},
    "lfm3": _CONVOLVED,
    "llava_next": {"image_grid_pinpoints": [[16, 16]]},
    "luke": {"entity_vocab_size": 96, "entity_emb_size": 32},
    "lxmert": {"l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 16},
    "mamba2": {"num_heads": 8, "expand": 2, "n_groups": 1},
    "mllama": {
        "vision_config": {
            "num_global_layers": 1,
            "attention_heads": 4,
            "max_num_tiles": 2,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1], [1, 2]],
            "vision_output_dim": 64,
        },
        "text_config": {"cross_attention_layers": [1]},
    },
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilevitv2": {"image_size": 128},
    "nemotron": {"num_key_value_heads": 2},
    "pvt": {"sequence_reduction_ratios": [2, 2, 1, 1], "image_size": 64},
    "qwen2_vl": {"text_config": _ROTARY, "vision_config": {"hidden_size": 32, "depth": 2}},
    "qwen2_5_vl": {
        "text_config": _ROTARY,
        "vision_config": {"out_hidden_size": 32, "fullatt_block_indexes": [1]},
    },
    **_alike("qwen3_vl qwen3_vl_moe", {"text_config": _ROTARY, "vision_config": _QWEN3_VISION}),
    "recurrent_gemma": {"num_hidden_layers": 3},
    "roc_bert": {"pronunciation_vocab_size": 96, "shape_vocab_size": 96},
    "speech_to_text": {"conv_channels": 32, "input_feat_per_channel": 16},
    "vivit": {"num_frames": 2, "tubelet_size": [2, 4, 4]},
    "xmod": {"default_language": "en_XX"},
    "yolos": {"image_size": [16, 16]},
    "zaya": {"num_experts_per_tok": 1},
}

_HEADS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "MASKED_LM",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_TEXT_TO_TEXT",
    "CAUSAL_LM",
    "IMAGE_CLASSIFICATION",
    "CTC",
    "AUDIO_CLASSIFICATION",
)


@functools.cache
def classes() -> dict[str, tuple[str, str]]:
    """Return {model type: (head, class)}: the first of the heads that there is, else none."""
    found: dict[str, tuple[str, str]] = {}
    tables = [(h, getattr(modeling_auto, f"MODEL_FOR_{h}_MAPPING_NAMES")) for h in _HEADS]
    for head, table in [*tables, ("", modeling_auto.MODEL_MAPPING_NAMES)]:
        for model_type, name in table.items():
            found.setdefault(model_type, (head, name if isinstance(name, str) else name[0]))
    return found


_FAMILIES = {
    "decoders of texts, some without attention, some with experts": (
        "afmoe apertus axk1 bamba beam biogpt bitnet bloom codegen cohere cohere2_moe ctrl "
        "deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge ernie4_5 ernie4_5_moe "
        "exaone4 falcon falcon_h1 falcon_mamba flex_olmo gemma2 gemma3_text glm glm4 glm4_moe "
        "glm_moe_dsa gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite "
        "granitemoe granitemoehybrid granitemoeshared hunyuan_v1_dense hunyuan_v1_moe hy_v4 "
        "jamba jetmoe laguna lfm2 lfm2_moe lfm3 llama llama4_text mamba mamba2 mimo_v2_flash "
        "minicpm3 minimax minimax_m2 mistral mixtral modernbert-decoder moshi mpt nemotron "
        "nemotron_h olmo olmo2 olmo_hybrid olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 "
        "qwen2_moe qwen3 qwen3_5_text qwen3_moe qwen3_next recurrent_gemma smollm3 solar_open "
        "stablelm starcoder2 trocr xglm xlnet zaya"
    ),
    "encoders of texts": (
        "albert bert big_bird convbert deberta deberta-v2 distilbert esm eurobert fnet funnel "
        "gte ibert jina_embeddings_v3 layoutlm longformer luke modernbert mpnet mra nomic_bert "
        "nystromformer rembert roberta roc_bert roformer squeezebert tapas xlm xlm-roberta-xl "
        "xmod"
    ),
    "encoders with decoders, of texts or of sound": (
        "bart bigbird_pegasus blenderbot encoder-decoder fsmt glmasr granite_speech led longt5 "
        "m2m_100 marian mbart mvp nllb-moe pegasus pegasus_x pop2piano prophetnet qwen2_audio "
        "seamless_m4t_v2 speech_to_text speecht5 switch_transformers t5 t5gemma t5gemma2 umt5 "
        "whisper"
    ),
    "images": (
        "beit clip convnext convnextv2 deit dinov2 focalnet hiera imagegpt mobilenet_v1 "
        "mobilevit mobilevitv2 poolformer pvt pvt_v2 regnet resnet segformer siglip siglip2 "
        "swiftformer vit vit_msn"
    ),
    "sound": (
        "audio-spectrogram-transformer hubert parakeet_ctc unispeech-sat wav2vec2 "
        "wav2vec2-conformer wavlm"
    ),
    "several towers, video, series, and what has no head": (
        "aimv2 altclip aya_vision blip canine chinese_clip clipseg decision_transformer "
        "dinov3_vit dpr dpt evolla flava florence2 fuyu git glpn groupvit idefics idefics2 "
        "idefics3 internvl layoutlmv3 lighton_ocr llava llava_next lxmert mistral3 mlcd mllama "
        "ovis2 owlvit paligemma patchtsmixer patchtst pixtral qwen2_5_vl qwen2_vl qwen3_vl "
        "qwen3_vl_moe splinter timesfm timesformer video_llava videomae vision-encoder-decoder "
        "visual_bert vitdet vivit yolos"
    ),
}
ARCHITECTURES = [name for names in _FAMILIES.values() for name in names.split()]


OLD_CONFIGS = not dataclasses.is_dataclass(transformers.PretrainedConfig)  # transformers 5.0
MOST = 20_000_000  # parameters of a tiny model


def small(kind: type, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's fields, made small where a name tells a size."""
    if dataclasses.is_dataclass(kind):
        fields = {f.name: f.default for f in dataclasses.fields(kind)}
    elif OLD_CONFIGS:
        fields = {p.name: p.default for p in inspect.signature(kind).parameters.values()}
    else:
        return dict(changes)
    sizes: dict[str, Any] = {}
    for name, value in fields.items():
        if name in SMALL_LISTS and isinstance(value, (list, tuple)):
            sizes[name] = list(SMALL_LISTS[name][: len(value)])
        elif name in SMALL and not isinstance(value, (list, tuple, bool)):
            sizes |= {} if value is None and name not in _MAY_BE_NONE else {name: SMALL[name]}
    rest = dict(changes)
    for name, below in _sub_configs(kind).items():
        inner = rest.pop(name, {})
        sizes[name] = small(below, inner) | {"model_type": below.model_type}
    return sizes | rest


@functools.cache
def _sub_configs(kind: Any) -> dict[str, Any]:
    """Return the classes of the configs below; an AutoConfig is what the default is."""
    named = getattr(kind, "sub_configs", None) or {}
    found = {}
    for name, below in named.items():
        if not inspect.isclass(below) or below.__name__ == "AutoConfig":
            below = type(getattr(kind(), name, None))
        if dataclasses.is_dataclass(below) or (OLD_CONFIGS and below is not type(None)):
            found[name] = below
    return found


def tiny_architecture(name: str) -> nn.Module:
    """Return a tiny model in eval mode, float32, the same on every call.

    Matrices and biases are drawn wider than at a real start, so that each shows in the outputs.
    """
    kind = CONFIG_MAPPING[name]
    config = kind(**small(kind, CHANGES.get(name, {})))
    cls = getattr(transformers, classes()[name][1])
    if OLD_CONFIGS:  # what has other names there would be made at full size: 20B numbers
        with torch.device("meta"):
            count = sum(p.numel() for p in cls._from_config(copy.deepcopy(config)).parameters())
        if count > MOST:
            pytest.skip(f"transformers {transformers.__version__} makes {name} no smaller")
    config.architectures = [cls.__name__]  # as a saved one has it
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls._from_config(config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.is_floating_point() and parameter.dim() >= 2:
                    parameter.normal_(std=0.2)
                elif parameter.is_floating_point() and key.endswith("bias"):
                    parameter.normal_(std=0.1)
    return model.eval()
