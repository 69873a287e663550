"""Heads that were trained before they came here: whose order of the classes holds, and until when.

Expected values: the head's own answers, which are the labels; a run that was not broken off.
"""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
import torch

from lora_lab.checkpoint import load_adapter, save_adapter
from lora_lab.configs import BitFitConfig, HeadConfig, LoraConfig
from lora_lab.errors import AdapterError, RunError
from lora_lab.methods import attach
from lora_lab.models import load_model
from lora_lab.models.classifier import name_classes
from lora_lab.tasks import ClassificationTask, LabeledText, load_task
from lora_lab.training.api import train
from lora_lab.training.resume import resume
from tests.helpers.run_configs import rewrite
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import until

LORA = LoraConfig(r=2)
STEPS = {"max_steps": 30, "save_steps": 1, "eval_examples": 0}

NLI = ("entailment", "neutral", "contradiction")  # not the alphabet's order


def trained_before(names=NLI):
    """A model whose head answers evenly, texts, and its own answers to them."""
    lm = tiny_classifier(classes=len(names))
    texts = [chr(97 + i % 26) * (1 + i % 7) + f" {i}" for i in range(60)]
    torch.manual_seed(0)
    lm.model.classifier.weight.data.normal_(std=3.0)
    with torch.no_grad():
        logits = torch.cat([lm.model(**lm.tokenizer(t, return_tensors="pt")).logits for t in texts])
    lm.model.classifier.bias.data -= logits.mean(0)
    name_classes(lm.model.config, names)
    answers = [names[int(i)] for i in (logits - logits.mean(0)).argmax(-1)]
    assert len(set(answers)) == len(names)
    return lm, texts, answers


def stopped(lm, task, folder):
    run = train(lm, task, LORA, output_dir=folder, **STEPS)
    until(lambda: run.snapshot.step >= 2)
    run.stop()
    run.result(60)
    return run


@pytest.mark.parametrize("spelled", [str, str.upper])
@pytest.mark.parametrize("through_a_folder", [True, False])
def test_a_head_trained_before_answers_right_from_the_start(tmp_path, spelled, through_a_folder):
    lm, texts, answers = trained_before(tuple(map(spelled, NLI)))
    rows = tuple(LabeledText(t, a.lower()) for t, a in zip(texts, answers, strict=True))
    task = ClassificationTask("nli", True, tuple(sorted(NLI)), rows[:44], rows[44:])
    if through_a_folder:
        lm.model.save_pretrained(tmp_path / "m")
        lm.tokenizer.save_pretrained(tmp_path / "m")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if spelled is str.upper else "error")
            lm = load_model(tmp_path / "m", device="cpu", labels=task.labels)
    run = train(lm, task, LoraConfig(r=2), output_dir=tmp_path / "runs", max_steps=1)
    assert run.result(60).metrics["accuracy_before"] == 100.0
    assert run.description()["task"]["classes"] == list(NLI)
    said = [note for note in run.notes if "its own names" in note]
    assert len(said) == (1 if spelled is str.upper else 0)


def test_a_head_of_other_names_is_trained_by_number_and_noted(tmp_path):
    lm, _, _ = trained_before(("x", "y", "z"))
    task = dataclasses.replace(tiny_classes(8, 0), labels=("early", "late", "noon"))
    run = train(lm, task, LORA, output_dir=tmp_path, start=False)
    assert "the model's head is for x, y, z; it is trained for early, late, noon instead" in (
        run.notes
    )


def test_a_run_goes_on_with_the_order_that_it_had(tmp_path):
    lm, texts, answers = trained_before()
    rows = tuple(map(LabeledText, texts, answers))
    task = ClassificationTask("nli", True, tuple(sorted(NLI)), rows[:44], rows[44:])
    run = stopped(lm, task, tmp_path)
    name_classes(lm.model.config, NLI[::-1])
    line = r"classes in the order contradiction, neutral, ent.*it was entailment, neutral, contra"
    with pytest.raises(RunError, match=line):
        resume(run.id, lm, task, output_dir=tmp_path)
    name_classes(lm.model.config, NLI)
    assert len(resume(run.id, lm, task, output_dir=tmp_path).result(60).losses) == 30


def test_a_run_from_before_goes_on_with_its_tasks_order(tmp_path):
    """Its head was loaded under the task's names: that is what its checkpoint was trained on."""
    lm, texts, answers = trained_before()
    lm.model.save_pretrained(tmp_path / "m")
    lm.tokenizer.save_pretrained(tmp_path / "m")
    rows = "".join(f"{text},{answer}\n" for text, answer in zip(texts, answers, strict=True))
    (tmp_path / "nli.csv").write_text("text,label\n" + rows)
    task = load_task(tmp_path / "nli.csv", text="text", label="label")
    before = load_model(tmp_path / "m", device="cpu", num_labels=3)
    name_classes(before.model.config, task.labels)  # as load_model(labels=…) did
    run = stopped(before, task, tmp_path)
    rewrite(run.folder, lambda told: told["task"].pop("classes"))
    again = resume(run.id, output_dir=tmp_path)
    assert [again.model.config.id2label[n] for n in range(3)] == list(task.labels)
    whole = load_model(tmp_path / "m", device="cpu", num_labels=3)
    name_classes(whole.model.config, task.labels)
    other = train(whole, task, LORA, output_dir=tmp_path, **STEPS)
    assert again.result(60).losses == other.result(60).losses


# Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [HeadConfig(), LoraConfig(r=2, modules_to_save=["classifier"])])
def test_an_adapters_file_says_which_class_is_which_output(tmp_path, config):
    def base(*names):
        lm = tiny_classifier(classes=3)
        name_classes(lm.model.config, names or ("LABEL_0", "LABEL_1", "LABEL_2"))
        return lm.model

    model = base(*NLI)
    attach(model, config)
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "classes.json").read_text()) == {"classes": list(NLI)}
    for same in (NLI, tuple(map(str.upper, NLI)), ()):
        load_adapter(base(*same), tmp_path)
    for other in (NLI[::-1], ("a", "b", "c")):
        model = base(*other)
        with pytest.raises(AdapterError, match=r"'neutral', 'contradiction', in this ord"):
            load_adapter(model, tmp_path)
        assert not any("lora" in name for name, _ in model.named_modules()), "nothing has changed"
    (tmp_path / "classes.json").write_text('{"classes": [1]}')
    with pytest.raises(AdapterError, match=r"classes\.json is no list of names"):
        load_adapter(base(*NLI), tmp_path)


def test_an_adapter_without_a_head_of_its_own_says_nothing_of_classes(tmp_path):
    lm = tiny_classifier(classes=2)
    name_classes(lm.model.config, ("no", "yes"))
    attach(lm.model, HeadConfig())
    save_adapter(lm.model, tmp_path)
    for config in (BitFitConfig(), LoraConfig(r=2)):
        model = tiny_classifier(classes=2).model
        name_classes(model.config, ("no", "yes"))
        attach(model, config)
        save_adapter(model, tmp_path)
        assert not (tmp_path / "classes.json").exists(), "that of another adapter is taken away"
