"""Classification: tasks, their tensors, and runs of encoders and decoders with a head."""

from __future__ import annotations

import dataclasses
import functools
import json
import random

import pytest
import torch
from torch.nn.functional import cross_entropy

from lora_lab import budget, methods
from lora_lab.budget.dry_run import dry_run
from lora_lab.budget.meter import Meter
from lora_lab.checkpoint import load_adapter
from lora_lab.configs import BitFitConfig, FullConfig, HeadConfig, LoraConfig, TrainingConfig
from lora_lab.errors import ConfigError, TaskError
from lora_lab.models import LoadedModel
from lora_lab.tasks import ClassificationTask, LabeledText
from lora_lab.tasks.families.classification import numbers_in, step_loss
from lora_lab.tasks.text_encoding import collate_texts, encode_texts
from lora_lab.training.api import train
from lora_lab.training.trainer import Fit
from tests.helpers.tiny_classes import framing_tokenizer, tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, tiny_task

LORA = LoraConfig(r=4, lora_alpha=8)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def result_of(tmp_path):
    """Train, and return (run, result)."""

    def begin(lm, task, config=LORA, **training):
        settings = {"max_steps": 2, "learning_rate": 1e-2, "eval_examples": 16, **training}
        run = train(lm, task, config, output_dir=tmp_path, **settings)
        return run, run.result(120)

    return begin


# The task ----------------------------------------------------------------------------------------


def _task(labels: tuple[str, ...]) -> ClassificationTask:
    return ClassificationTask("t", False, labels, (), ())


def test_scores_are_those_of_the_formulas_in_float64():
    rng = random.Random(1)
    for _ in range(20):
        examples = [LabeledText("x", rng.choice("ab")) for _ in range(37)]
        predictions = [rng.choice("ab") if rng.random() < 0.5 else e.label for e in examples]
        y = torch.tensor(
            [[p == "b", e.label == "b"] for p, e in zip(predictions, examples, strict=True)]
        )
        # Matthews's φ of two classes is Pearson's correlation of their indicators.
        phi = torch.corrcoef(y.double().T)[0, 1].item()
        accuracy = (y[:, 0] == y[:, 1]).double().mean().item()
        both = (y[:, 0] & y[:, 1]).double().sum()
        f1 = (2 * both / y.double().sum()).item()  # 2 true positives / (predicted + actual)
        scores = _task(("a", "b")).score(predictions, examples)
        assert scores["f1"] == pytest.approx(100 * f1, rel=1e-12)
        assert scores["accuracy"] == pytest.approx(100 * accuracy, rel=1e-12)
        assert scores["matthews"] == pytest.approx(100 * phi, rel=1e-9, abs=1e-9)


def test_one_predicted_class_has_no_correlation_and_three_classes_have_no_phi():
    examples = [LabeledText("x", label) for label in "aab"]
    scores = _task(("a", "b")).score(["a", "a", "a"], examples)
    assert scores == {"accuracy": pytest.approx(200 / 3), "matthews": 0.0, "f1": 0.0}
    # b and c: a class that is predicted in vain has an F1 of 0, as has one that is not.
    examples = [LabeledText("x", label) for label in "abb"]
    assert _task(("a", "b", "c")).score(["a", "c", "b"], examples) == {
        "accuracy": pytest.approx(200 / 3),
        "macro_f1": pytest.approx(100 * (1 + 2 / 3 + 0) / 3),
    }


def test_what_cannot_be_scored_gets_one_line():
    with pytest.raises(TaskError, match="0 predictions for 0 examples"):
        _task(("a", "b")).score([], [])
    with pytest.raises(TaskError, match="'d' is no class of t; its classes are a, b"):
        _task(("a", "b")).score(["d"], [LabeledText("x", "a")])


# From texts to tensors ---------------------------------------------------------------------------


def test_texts_keep_their_frame_and_lose_their_end():
    examples = [LabeledText("abcdef", "early"), LabeledText("xy", "late")]
    encoded, cut = encode_texts(examples, [1, 0], framing_tokenizer(), 6)
    byte = framing_tokenizer().convert_tokens_to_ids
    assert cut == 1
    assert encoded[0]["input_ids"] == [1, *map(byte, "abcd"), 2]
    assert encoded[1]["input_ids"] == [1, *map(byte, "xy"), 2]
    assert [item["labels"] for item in encoded] == [1, 0]


def test_of_a_pair_the_longer_one_is_cut_and_its_parts_are_told():
    example = LabeledText("ab", "late", "uvwxyz")
    (encoded,), cut = encode_texts([example], [0], framing_tokenizer(), 8)
    byte = framing_tokenizer().convert_tokens_to_ids
    assert cut == 1
    assert encoded["input_ids"] == [1, *map(byte, "ab"), 2, *map(byte, "uvw"), 2]
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_batches_are_padded_on_the_right():
    batch = collate_texts(
        [
            {"input_ids": [5, 6, 7], "token_type_ids": [0, 1, 1], "labels": 2},
            {"input_ids": [8], "token_type_ids": [0], "labels": 0},
        ],
        pad=9,
    )
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "token_type_ids": [[0, 1, 1], [0, 0, 0]],
        "labels": [2, 0],
    }
    assert all(tensor.dtype is torch.int64 for tensor in batch.values())


def test_a_frame_that_leaves_no_room_is_refused():
    with pytest.raises(TaskError, match="max_length=4 has no room for text beside 3 special"):
        encode_texts([LabeledText("a", "x", "b")], [0], framing_tokenizer(), 4)


def test_a_model_that_knows_the_names_keeps_its_own_order():
    config = tiny_classifier(classes=2).model.config
    assert numbers_in(config, ("early", "late")) == {"early": 0, "late": 1}
    config.id2label = {0: "late", 1: "early"}
    assert numbers_in(config, ("early", "late")) == {"early": 1, "late": 0}


# The loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "llama"])  # one passes num_items_in_batch on, one not
def test_the_loss_and_gradient_of_a_step_are_the_mean_over_its_texts(tmp_path, kind):
    """Passes of different sizes: a mean of means would be another number."""
    lm, task = tiny_classifier(kind), tiny_classes(64)
    adapter = methods.attach(lm.model, HeadConfig())
    targets = [task.labels.index(e.label) for e in task.train]
    encoded, _ = encode_texts(task.train, targets, lm.tokenizer, 64)
    batches, steps = [], []
    sizes = iter((4, 1, 3, 2, 2, 4))

    def collate(rows):
        batches.append(collate_texts(rows[: next(sizes)], 0))
        return batches[-1] | {name: t.clone() for name, t in batches[-1].items()}

    gradients = {id(p): [] for p in adapter.parameters()}
    for p in adapter.parameters():
        p.register_hook(functools.partial(lambda seen, g: seen.append(g.clone()), gradients[id(p)]))
    Fit(
        model=lm.model,
        adapter=adapter,
        examples=[{k: v for k, v in e.items() if k != "token_type_ids"} for e in encoded],
        collate=collate,
        training=TrainingConfig(
            max_steps=2,
            learning_rate=1e-2,
            warmup_steps=1,  # the first step moves nothing
            per_device_train_batch_size=4,
            gradient_accumulation_steps=3,
        ),
        folder=tmp_path,
        meter=Meter(lm.model),
        on_step=lambda step: steps.append(step),
        loss=step_loss,
    ).run()

    bare = tiny_classifier(kind).model.double()
    for i, step in enumerate(steps):
        passes = batches[3 * i : 3 * i + 3]
        losses = torch.cat(
            [
                cross_entropy(bare(**{**b, "labels": None}).logits, b["labels"], reduction="none")
                for b in passes
            ]
        )
        assert step.tokens == len(losses) == 8
        assert step.loss == pytest.approx(losses.mean().item(), rel=1e-5)
        head = [p for n, p in bare.named_parameters() if n.split(".")[0] in ("classifier", "score")]
        expected = torch.autograd.grad(losses.mean(), head)
        for p, g in zip(adapter.parameters(), expected, strict=True):
            got = torch.stack(gradients[id(p)][3 * i : 3 * i + 3]).double().sum(0)
            torch.testing.assert_close(got, g, rtol=1e-4, atol=1e-6)


def test_the_held_out_loss_and_accuracy_are_those_of_float64(result_of):
    lm, task = tiny_classifier(), tiny_classes(held_out=11)
    _, result = result_of(lm, task, per_device_train_batch_size=4)
    for model, when in ((tiny_classifier().model, "before"), (lm.model, "after")):
        model = model.double().eval()
        losses, right = [], 0
        for example in task.validation:
            batch = lm.tokenizer(example.text, return_tensors="pt")
            with torch.no_grad():
                log_p = model(**batch).logits[0].log_softmax(-1)
            number = task.labels.index(example.label)
            losses.append(-log_p[number].item())
            right += int(log_p.argmax()) == number
        assert result.metrics[f"loss_{when}"] == pytest.approx(sum(losses) / 11, rel=1e-5)
        assert result.metrics[f"accuracy_{when}"] == pytest.approx(100 * right / 11)


# Runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "t5"])
def test_every_kind_of_model_learns_the_task(result_of, kind):
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    steps = {"max_steps": 60, "warmup_steps": 5}
    run, result = result_of(tiny_classifier(kind), tiny_classes(), config, **steps)
    assert result.metrics["accuracy_after"] >= 90 > result.metrics["accuracy_before"]
    assert result.metrics["loss_after"] < 0.5 * result.metrics["loss_before"]
    assert run.configs[0].modules_to_save, "the head is trained"


@pytest.mark.parametrize(
    "config",
    [LORA, [LORA, BitFitConfig()], BitFitConfig(), FullConfig(), FullConfig(1), HeadConfig()],
    ids=["LoRA", "LoRA+BitFit", "BitFit", "FT", "FT-Top1", "Head"],
)
def test_every_method_trains_the_head_and_leaves_files_that_load(result_of, config):
    lm, task = tiny_classifier(), tiny_classes(pairs=True)
    before = {n: p.detach().clone() for n, p in lm.model.named_parameters()}
    run, result = result_of(lm, task, config, max_steps=12)
    assert {"loss_before", "accuracy_after", "matthews_after"} <= set(result.metrics)

    def logits(model):
        batch = lm.tokenizer("abc", "xyz", return_tensors="pt")
        with torch.no_grad():
            return model(**batch).logits

    fresh = tiny_classifier().model
    base = logits(fresh)
    load_adapter(fresh, result.adapter_folder)
    torch.testing.assert_close(logits(fresh), logits(lm.model), rtol=0, atol=0)
    # The head itself has moved; merged, the plain model answers the same.
    methods.merge(lm.model)
    assert not torch.equal(lm.model.classifier.weight, before["classifier.weight"])
    torch.testing.assert_close(logits(lm.model), logits(fresh), rtol=1e-5, atol=1e-6)
    methods.detach(lm.model)
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())
    torch.testing.assert_close(logits(lm.model), base, rtol=0, atol=0)
    assert run.state == "done"


def test_what_is_trained_is_told_with_the_head_apart(result_of):
    run, result = result_of(tiny_classifier(), tiny_classes(), LORA)
    # 2 layers of q and v, A and B of rank 4 and width 32; a head of 32 × 2 + 2.
    assert run.adapter.trainable == 2 * 2 * 4 * (32 + 32) + 66
    assert run.config == LORA.replace(modules_to_save=["classifier"])
    assert any("the head (classifier)" in n and " 66 parameters" in n for n in run.notes)
    told = json.loads((run.folder / "config.json").read_text())
    assert told["task"]["labels"] == ["early", "late"]
    assert told["task"]["head_parameters"] == 66
    sample = result.samples[0]
    assert sample.prompt == tiny_classes().validation[0].text
    assert sample.references == ("early",)
    assert {sample.base, sample.adapted} <= {"early", "late"}


def test_other_methods_get_a_head_config_and_no_second_one(tmp_path):
    def configs(config):
        task = tiny_classes()
        return train(tiny_classifier(), task, config, output_dir=tmp_path, start=False).config

    assert configs(BitFitConfig()) == (BitFitConfig(), HeadConfig())
    assert configs([BitFitConfig(), HeadConfig()]) == (BitFitConfig(), HeadConfig())
    assert configs(HeadConfig()) == HeadConfig()
    assert configs(FullConfig()) == FullConfig()
    assert configs([BitFitConfig(), LORA])[1].modules_to_save == ("classifier",)
    kept = LORA.replace(modules_to_save=["pooler"])
    assert configs(kept).modules_to_save == ("pooler", "classifier")


def test_texts_that_were_cut_are_noted(result_of):
    long = [LabeledText("a" * 80, "early"), LabeledText("z" * 80, "late")] * 8
    task = ClassificationTask("long", True, ("early", "late"), long, long)
    # 64 positions are less than max_length.
    run, _ = result_of(tiny_classifier(), task)
    said = "16 of 16 held-out texts were cut at their end to fit 64 tokens; the longest has 82 "
    assert f"{said}tokens, and the model can read 64" in run.notes


# What does not fit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lm", "task", "message"),
    [
        (tiny_lm, tiny_classes, r"has no classification head.*load_model\(…, labels=task\.labels"),
        (tiny_classifier, tiny_task, "generates no text, and letters is prompt → completion"),
        (lambda: tiny_classifier(classes=3), tiny_classes, r"3 classes and halves has 2 \(early"),
        (lambda: tiny_classifier(classes=1), tiny_classes, "a head for one number and halves has"),
        (
            lambda: LoadedModel(tiny_classifier().model, None, tiny_classifier().card),
            tiny_classes,
            "has no tokenizer",
        ),
    ],
    ids=["generator", "classifier", "classes", "one number", "tokenizer"],
)
def test_a_model_that_the_task_is_not_for_is_refused_before_anything(tmp_path, lm, task, message):
    with pytest.raises(ConfigError, match=message) as error:
        train(lm(), task(), output_dir=tmp_path / "runs")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_decoder_that_knows_no_padding_is_refused(tmp_path):
    lm = tiny_classifier("gpt2")
    lm.model.config.pad_token_id = None
    with pytest.raises(ConfigError, match=r"knows no padding.*set model\.config\.pad_token_id"):
        train(lm, tiny_classes(), output_dir=tmp_path / "runs")


def test_head_and_factors_on_one_layer_are_refused():
    model = tiny_classifier().model
    with pytest.raises(ConfigError, match="both claim classifier"):
        methods.attach(model, [LoraConfig(r=2, target_modules=["classifier"]), HeadConfig()])
    assert methods.attached(model) == {}
    with pytest.raises(ConfigError, match=r"this model has no classification head"):
        methods.attach(tiny_lm().model, HeadConfig())


def test_a_dry_run_counts_the_head_and_so_does_the_closed_form():
    model = tiny_classifier().model
    alone, both = (
        dry_run(model, configs, batch_size=2, sequence_length=8, dtype="bfloat16")
        for configs in ([LORA], [LORA, HeadConfig()])
    )
    head = 32 * 2 + 2
    assert both.gradients - alone.gradients == 4 * head
    assert both.optimizer - alone.optimizer == 4 * (2 * head + 2)  # two moments, two step counts
    plans = [budget(model, configs) for configs in ([LORA], [LORA, HeadConfig()])]
    assert plans[1].parameters_trainable - plans[0].parameters_trainable == head


@pytest.mark.parametrize("field", ["text", "pair"])
def test_half_of_a_character_is_named(tmp_path, field):
    task = tiny_classes(pairs=True)
    rows = [*task.train, dataclasses.replace(task.train[0], **{field: "so \ud83d"})]
    with pytest.raises(TaskError, match=r"^'so \\ud83d' has half of a character"):
        train(tiny_classifier(), dataclasses.replace(task, train=rows[-3:]), output_dir=tmp_path)


def test_a_score_that_is_not_defined_is_0_without_an_interval_and_said():
    examples = [LabeledText("x", "a")] * 5
    task, answers = _task(("a", "b")), ["a", "b", "a", "a", "a"]
    assert task.score(answers, examples) == {"accuracy": 80.0, "matthews": 0.0, "f1": 0.0}
    assert task.intervals(answers, examples).keys() == {"accuracy"}
    assert task.scoring(examples) == {
        "matthews": "not defined and given as 0: the right answers are all of one class",
        "f1": "not defined and given as 0: no right answer is of the second class",
    }
