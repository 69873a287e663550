"""What the forward of a tiny model takes, by its signature and its config."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.tiny_architectures import IMAGE


def tiny_batch(model: nn.Module) -> dict[str, Any]:
    """Return what a tiny model's forward takes: tokens, an image, sound, or several of them."""
    config: Any = model.config
    made = _Inputs(config)
    takes = inspect.signature(model.forward).parameters
    wanted = [name for name in ("input_ids", model.main_input_name) if name in takes]
    if getattr(config, "is_encoder_decoder", False):
        wanted += [name for name in ("decoder_input_ids",) if name in takes]
    if "vision_config" in (getattr(type(config), "sub_configs", None) or {}):
        wanted.append("pixel_values")
    batch = {name: made.of(name) for name in dict.fromkeys(wanted) if name in takes}
    batch |= made.more()
    features = getattr(getattr(model, "model", model), "get_image_features", None)
    if features and "pixel_values" in batch and hasattr(config, "image_token_id"):
        seen = {k: v for k, v in batch.items() if k in inspect.signature(features).parameters}
        with torch.no_grad():
            found = features(**{k: v for k, v in seen.items() if k != "input_ids"})
        found = getattr(found, "pooler_output", found)
        count = sum(x.numel() for x in ([found] if isinstance(found, Tensor) else found)) // 32
        batch["input_ids"] = torch.cat([torch.full((1, count), IMAGE), batch["input_ids"]], 1)
        if "mm_token_type_ids" in takes:
            batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).long()
    return batch


class _Inputs:
    """Random inputs, drawn one after the other."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(0)

    def tokens(self, *shape: int) -> Tensor:
        return torch.randint(3, 90, shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def image(self, *before: int) -> Tensor:
        vision = getattr(self.config, "vision_config", None) or self.config
        size = getattr(vision, "image_size", None) or 16
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return self.normal(*before, getattr(vision, "num_channels", None) or 3, height, width)

    def of(self, name: str) -> Tensor:
        if name == "pixel_values":
            return self.image(1)
        if name == "input_values":
            return self.normal(1, 800)
        if name == "input_features":
            return self.normal(1, getattr(self.config, "num_mel_bins", None) or 16, 128)
        return self.tokens(1, 5 if name == "decoder_input_ids" else 7)

    def more(self) -> dict[str, Any]:
        """Return what this architecture takes besides, or in another shape."""
        config, size = self.config, torch.tensor([[16, 16]])
        match config.model_type:
            case "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl" | "qwen3_vl_moe":
                grid = torch.tensor([[1, 4, 4]])
                return {"pixel_values": self.normal(16, 96), "image_grid_thw": grid}
            case "idefics2" | "idefics3":
                return {"pixel_values": self.image(1, 2)}
            case "timesformer" | "videomae" | "vivit":
                return {"pixel_values": self.image(1, config.num_frames)}
            case "patchtst" | "patchtsmixer":
                return {"past_values": self.normal(1, config.context_length, 1)}
            case "mistral3" | "lighton_ocr":
                return {"image_sizes": size}
            case "llava_next":
                return {"pixel_values": self.image(1, 2), "image_sizes": size}
            case "speech_to_text":
                return {"input_features": self.normal(1, 32, 16)}
            case "parakeet_ctc":
                return {"input_features": self.normal(1, 64, 16)}
            case "audio-spectrogram-transformer":
                return {"input_values": self.normal(1, 16, 16)}
            case "lxmert":
                return {"visual_feats": self.normal(1, 3, 16), "visual_pos": self.normal(1, 3, 4)}
            case "idefics":
                mask = torch.ones(1, 7, 1)
                return {"pixel_values": self.image(1, 1), "image_attention_mask": mask}
            case "siglip2":
                return {
                    "pixel_values": self.normal(1, 4, 48),
                    "pixel_attention_mask": torch.ones(1, 4, dtype=torch.long),
                    "spatial_shapes": torch.tensor([[2, 2]]),
                }
            case "decision_transformer":
                return {
                    "states": self.normal(1, 3, 17),
                    "actions": self.normal(1, 3, 4),
                    "returns_to_go": self.normal(1, 3, 1),
                    "timesteps": torch.arange(3)[None],
                    "attention_mask": torch.ones(1, 3),
                }
            case "mllama":
                return {
                    "pixel_values": self.image(1, 1, 2),
                    "aspect_ratio_mask": torch.ones(1, 1, 2, dtype=torch.long),
                    "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
                }
            case "timesfm":
                return {
                    "past_values": self.normal(1, 64),
                    "freq": torch.zeros(1, dtype=torch.long),
                    "past_values_padding": torch.zeros(1, 64, dtype=torch.long),
                }
        return {}
