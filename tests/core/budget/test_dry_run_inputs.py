"""What a dry run feeds a model that reads something else than tokens, or says why it cannot."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from lora_lab.budget.dry_run import dry_run
from lora_lab.configs import LoraConfig
from lora_lab.errors import ModelError
from lora_lab.methods.api import attach
from tests.helpers.measured_step import LiveBytes, label_loss

SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4}
VISION: dict[str, Any] = {**SMALL, **HEADS, "image_size": 32, "patch_size": 8}
CONVS: dict[str, Any] = {
    "conv_dim": (8,),
    "conv_stride": (5,),
    "conv_kernel": (10,),
    "num_feat_extract_layers": 1,
}


def resnet() -> Any:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return transformers.ResNetForImageClassification(config)


def test_images_without_a_size_of_their_own_are_224_pixels_wide_and_the_step_is_real() -> None:
    config = LoraConfig(r=1, target_modules=["convolution"])
    found = dry_run(resnet(), config, batch_size=2)
    assert found.settings == "batch 2 × images of 224 × 224, AdamW, float32"
    model = resnet()
    adapter = attach(model, config)
    learning = [*adapter.parameters()]
    optimizer = torch.optim.AdamW(learning, fused=True)
    batch = {"pixel_values": torch.zeros(2, 3, 224, 224), "labels": torch.zeros(2).long()}
    for _ in range(2):
        optimizer.zero_grad()
        counter = LiveBytes()
        with counter:
            counter.add([[*model.parameters()], [*model.buffers()]])
            counter.add([[*state.values()] for state in optimizer.state.values()])
            label_loss(model, **batch).backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
    assert found.peak == pytest.approx(counter.peak, rel=0.02)


IMAGES = {
    "regnet": lambda: transformers.RegNetForImageClassification(
        transformers.RegNetConfig(
            embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, groups_width=8
        )
    ),
    "segmentation": lambda: transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8
        )
    ),
    "a tower": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_models_of_images(kind: str) -> None:
    found = dry_run(IMAGES[kind](), None, batch_size=2)
    assert found.peak > found.weights > 0


REFUSED = {
    "sound": (
        lambda: transformers.Wav2Vec2ForCTC(
            transformers.Wav2Vec2Config(
                vocab_size=99, **SMALL, **HEADS, **CONVS, num_conv_pos_embedding_groups=2
            )
        ),
        "reads input_values, and a dry run makes tokens and images only",
    ),
    "tokens and images": (
        lambda: transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(
                text_config={"model_type": "llama", "vocab_size": 99, **SMALL, **HEADS},
                vision_config={"model_type": "clip_vision_model", **VISION},
            )
        ),
        "nothing that learns acts on the loss of LlavaForConditionalGeneration .* input_ids alone",
    ),
    "two encoders": (
        lambda: transformers.VisionEncoderDecoderModel(
            transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
                transformers.ViTConfig(**VISION),
                transformers.BertConfig(vocab_size=99, **SMALL, **HEADS),
            )
        ),
        "cannot be run on fake tensors",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_fed_is_one_line(kind: str) -> None:
    make, message = REFUSED[kind]
    config = LoraConfig(r=1, target_modules=r".*(vision|encoder).*(q_proj|query)")
    with pytest.raises(ModelError, match=message) as caught:
        dry_run(make(), config, batch_size=1, sequence_length=8)
    assert "\n" not in str(caught.value)
    assert "budget()" in str(caught.value)
