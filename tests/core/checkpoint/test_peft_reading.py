"""What PEFT makes of our files: it reads them, or the save says what it would do instead."""

import copy
import warnings

import pytest
import torch

import lora_lab as ll
from tests.helpers.lora_outputs import everything, outputs
from tests.helpers.peft_files import peft_model
from tests.helpers.tiny_architectures import tiny_architecture
from tests.helpers.tiny_batches import tiny_batch


@pytest.mark.parametrize(
    ("name", "embedding"),
    [
        ("bert", "word_embeddings"),
        ("modernbert", "tok_embeddings"),
        ("xlnet", "word_embedding"),
        ("gpt_neox", "embed_in"),
        ("t5gemma", "model.decoder.embed_tokens"),
        ("llama", "embed_tokens"),
    ],
)
def test_both_ends_of_a_tied_embedding_reach_peft_whatever_their_names(name, embedding, tmp_path):
    model = tiny_architecture(name).double()
    batch = tiny_batch(model)
    bare, twin = copy.deepcopy(model), copy.deepcopy(model)
    ll.attach(model, everything(target_modules=[embedding]))
    y = outputs(model, batch)
    assert not torch.allclose(y, outputs(bare, batch), atol=1e-3)
    ll.save_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(peft_model(bare, tmp_path), batch), y, rtol=1e-9, atol=1e-9)
    ll.load_adapter(twin, tmp_path)
    torch.testing.assert_close(outputs(twin, batch), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        (
            "mamba",
            "out_proj",
            "PEFT refuses adapters at backbone.layers.0.mixer.out_proj",
        ),
        ("qwen3_next", "conv1d", "does nothing at model.layers.0.linear_attn.conv1d, whose weight"),
        (
            "wavlm",
            "q_proj",
            "does nothing at wavlm.encoder.layers.0.attention.q_proj",
        ),
        ("bamba", "in_proj", None),
        ("bloom", "dense", None),  # read in one branch, called in the other, which is the usual one
    ],
)
def test_the_save_says_where_peft_has_no_effect(name, target, said, tmp_path):
    model = tiny_architecture(name)
    ll.attach(model, everything(target_modules=[target]))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        ll.save_adapter(model, tmp_path)
    lines = [str(warning.message) for warning in heard]
    assert len(lines) == (said is not None)
    for line in lines:
        assert said in line
        assert line.endswith("load this file with LoRA Lab, or write the whole model with "
                             "export_merged")  # fmt: skip
