"""What PEFT makes of our files: it reads them, or the save says what it would do instead."""

import copy
import warnings

import pytest
import torch
from torch import nn

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
        ("opt", "embed_tokens"),
        ("speecht5", "embed_tokens"),  # its output layer is within another module
        ("whisper", "embed_tokens"),
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
    tied = {"opt": ["lm_head"], "whisper": ["proj_out"]}
    theirs = peft_model(bare, tmp_path, missing=tied.get(name, []))
    torch.testing.assert_close(outputs(theirs, batch), y, rtol=1e-9, atol=1e-9)
    ll.load_adapter(twin, tmp_path)
    torch.testing.assert_close(outputs(twin, batch), y, rtol=1e-9, atol=1e-9)


def tied_llama():
    model = tiny_architecture("llama").double()
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def by_config(model):
    model.config.tie_word_embeddings = True


def by_hand(model):
    model.config.tie_word_embeddings = False


def nowhere_told(model):
    model._tied_weights_keys = None


def by_list(model):
    by_config(model)
    model._tied_weights_keys = ["lm_head.weight"]


@pytest.mark.parametrize("tied", [by_config, by_hand, nowhere_told, by_list])
@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"], "ensure_weight_tying": True, "use_rslora": True},
        {
            "target_modules": ["embed_tokens", "q_proj"],
            "rank_pattern": {"embed_tokens": 5},
            "alpha_pattern": {"embed_tokens": 7},
        },
    ],
)
def test_a_tied_output_layer_has_its_embeddings_factors_rank_and_scale_in_peft(
    tied, fields, tmp_path
):
    model = tied_llama()
    tied(model)
    bare, batch = copy.deepcopy(model), tiny_batch(model)
    ll.attach(model, everything(**fields))
    y = outputs(model, batch)
    ll.save_adapter(model, tmp_path)
    theirs = peft_model(bare, tmp_path, missing=["lm_head"] if tied in (by_config, by_list) else [])
    torch.testing.assert_close(outputs(theirs, batch), y, rtol=1e-9, atol=1e-9)


class TwoHeads(nn.Module):
    """A tied output layer, and one of the same bare name that is not tied."""

    def __init__(self):
        super().__init__()
        self._tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}
        self.embed_tokens = nn.Embedding(11, 6)
        self.other = nn.ModuleDict({"lm_head": nn.Linear(6, 11, bias=False)})
        self.lm_head = nn.Linear(6, 11, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(self, ids):
        h = self.embed_tokens(ids)
        return self.lm_head(h) + self.other["lm_head"](h)


@pytest.mark.parametrize("saved", [[], ["other.lm_head"]])
def test_an_output_layer_that_has_but_a_tied_ones_name_stays_as_it_is_in_peft(saved, tmp_path):
    torch.manual_seed(0)
    model, ids = TwoHeads().double(), torch.tensor([[1, 2, 3]])
    bare = copy.deepcopy(model)
    ll.attach(model, everything(target_modules=["embed_tokens"], modules_to_save=saved or None))
    y = model(ids)
    ll.save_adapter(model, tmp_path)
    theirs = peft_model(bare, tmp_path, missing=[] if saved else ["other.lm_head"])
    torch.testing.assert_close(theirs(ids), y, rtol=1e-9, atol=1e-9)


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
