"""An adapter exported over the base that its config names, whose files have no such head."""

import json

import pytest
import torch
import transformers
from torch import nn

import lora_lab as ll
from lora_lab.checkpoint.convert import export_adapter
from lora_lab.errors import AdapterError
from tests.helpers.lora_outputs import outputs, stirred
from tests.helpers.peft_files import peft_trained
from tests.helpers.tiny_models import tiny, tiny_config, tiny_inputs
from tests.helpers.tiny_text import tiny_tokenizer

FIELDS = {"r": 2, "lora_alpha": 6}
# (the base's class, the class that was trained, how many classes, PEFT's fields)
TRAINED = {
    "decoder": ("llama", "ForCausalLM", "ForSequenceClassification", 5, "SEQ_CLS", ["q_proj"]),
    "gpt2": ("gpt2", "LMHeadModel", "ForSequenceClassification", 3, "SEQ_CLS", ["c_attn"]),
    "encoder": ("bert", "Model", "ForSequenceClassification", 7, "SEQ_CLS", ["query"]),
    "two layers": ("roberta", "ForMaskedLM", "ForSequenceClassification", 4, "SEQ_CLS", ["query"]),
    "regression": ("llama", "ForCausalLM", "ForSequenceClassification", 1, "SEQ_CLS", ["v_proj"]),
    "tokens": ("llama", "ForCausalLM", "ForTokenClassification", 6, "TOKEN_CLS", ["q_proj"]),
    "answers": ("bert", "ForMaskedLM", "ForQuestionAnswering", 2, "QUESTION_ANS", ["query"]),
    "features": ("llama", "ForCausalLM", "Model", 2, "FEATURE_EXTRACTION", ["q_proj"]),
    "by its class": ("bert", "Model", "ForTokenClassification", 6, None, ["query"]),
}


def classes(kind: str, ending: str) -> type:
    family = {"llama": "Llama", "gpt2": "GPT2", "bert": "Bert", "roberta": "Roberta", "vit": "ViT"}
    return getattr(transformers, family[kind] + ending)


def made(kind: str, ending: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return classes(kind, ending)(tiny_config(kind, **changes)).eval()


@pytest.mark.parametrize("case", TRAINED)
def test_the_merged_model_answers_as_pefts_does(case, tmp_path):
    kind, base, trained, count, task, targets = TRAINED[case]
    made(kind, base).save_pretrained(tmp_path / "base")
    model = classes(kind, trained).from_pretrained(tmp_path / "base", num_labels=count).eval()
    saved = {} if task else {"modules_to_save": ["classifier"]}
    fields = {**FIELDS, **saved, "target_modules": targets, "task_type": task}
    theirs = peft_trained(model, tmp_path / "adapter", **fields)
    out = tmp_path / "out"
    export_adapter(tmp_path / "adapter", str(tmp_path / "base"), "merged", out)
    merged = classes(kind, trained).from_pretrained(out).eval()
    batch = {k: v for k, v in tiny_inputs(model).items() if k != "labels"}
    expected, found = theirs(**batch), merged(**batch)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert json.loads((out / "config.json").read_text())["architectures"] == [type(model).__name__]


def test_another_number_of_classes_than_the_bases_own(tmp_path):
    made("vit", "ForImageClassification", num_labels=9).save_pretrained(tmp_path / "base")
    kind = classes("vit", "ForImageClassification")
    model = kind.from_pretrained(
        tmp_path / "base", num_labels=4, ignore_mismatched_sizes=True
    ).eval()
    query = ["q_proj", "query"]  # the newer name, the older
    fields = {**FIELDS, "target_modules": query, "modules_to_save": ["classifier"]}
    theirs = peft_trained(model, tmp_path / "adapter", **fields)
    export_adapter(tmp_path / "adapter", str(tmp_path / "base"), "merged", tmp_path / "out")
    merged = kind.from_pretrained(tmp_path / "out").eval()
    batch = tiny_inputs(model)
    torch.testing.assert_close(outputs(merged, batch), outputs(theirs, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_our_own_classifiers_adapter(kind, tmp_path):
    made(kind, "Model" if kind == "bert" else "ForCausalLM", vocab_size=259).save_pretrained(
        tmp_path / "base"
    )
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lm = ll.load_model(tmp_path / "base", "cpu", labels=["a", "b", "c"])
    heads = ll.anatomy(lm.model).heads
    stirred(ll.attach(lm.model, ll.LoraConfig(r=2, target_modules=["q"], modules_to_save=heads)))
    ll.save_adapter(lm.model, tmp_path / "adapter")
    export_adapter(tmp_path / "adapter", str(tmp_path / "base"), "merged", tmp_path / "out")
    merged = type(lm.model).from_pretrained(tmp_path / "out").eval()
    batch = tiny_inputs(lm.model)
    expected = outputs(lm.model.eval(), batch)
    torch.testing.assert_close(outputs(merged, batch), expected, rtol=1e-5, atol=1e-5)
    assert merged.config.pad_token_id == lm.model.config.pad_token_id
    for form in ("uniform", "loralib"):  # loaders without heads
        out = tmp_path / f"{form}.safetensors"
        with pytest.raises(AdapterError, match=r"trains .* whole"):
            export_adapter(tmp_path / "adapter", str(tmp_path / "base"), form, out)


def test_a_task_that_the_base_has_no_model_for(tmp_path):
    model = tiny("llama")
    peft_trained(model, tmp_path / "adapter", **FIELDS, target_modules=["q_proj"])
    tiny("vit").save_pretrained(tmp_path / "base")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "task_type": "SEQ_CLS"}))
    with pytest.raises(AdapterError, match="transformers has no such model"):
        export_adapter(tmp_path / "adapter", str(tmp_path / "base"), "merged", tmp_path / "out")
    for mapping in ({"base_model_class": "Trainer"}, {"base_model_class": ["x"]}):
        changed = {**json.loads(config.read_text()), "task_type": None, "auto_mapping": mapping}
        config.write_text(json.dumps(changed))
        with pytest.raises(AdapterError, match="another base"):
            export_adapter(tmp_path / "adapter", str(tmp_path / "base"), "merged", tmp_path / "out")
