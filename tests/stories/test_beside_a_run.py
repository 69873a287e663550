"""A run learns what a calm one does, bit for bit, whatever cells beside it read of its model."""

from __future__ import annotations

import copy
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError
from lora_lab.tasks.families.language_modeling import LanguageModelingTask
from tests.helpers.beside import outcome
from tests.helpers.tiny_classes import tiny_classes
from tests.helpers.tiny_run import tiny_lm, tiny_task, until
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores
from tests.stories.test_every_method import METHODS, inputs_of, prepared


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cell(model: Any) -> None:
    """What people do in cells with a model: they ask it, in this mode and that one."""
    inputs = inputs_of(model)
    model.eval()
    model(**inputs)
    if hasattr(model, "generate"):
        inputs.pop("decoder_input_ids", None)
        alone = not model.config.is_encoder_decoder
        model.generate(**inputs, max_new_tokens=2, do_sample=True, use_cache=alone)
    model.train()
    short = {name: tensor[:1, :5] for name, tensor in inputs_of(model).items()}
    classes = "Classification" in type(model).__name__
    labels = torch.zeros(1, dtype=torch.long) if classes else short["input_ids"]
    short.pop("decoder_input_ids", None)
    model(**short, labels=labels)
    torch.manual_seed(3)
    torch.rand(2)
    random.seed(4)


def lively(model: nn.Module) -> None:
    """Give a model dropout."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.1


def both(kind: str, name: str, folder: Any, **training: Any) -> tuple[Any, Any]:
    """Return what a calm run leaves, and one with a cell in the midst of its passes."""
    found = []
    for beside in (None, cell):
        lm, _, config = prepared(kind, name)
        if isinstance(config, ll.LoraConfig):
            config = config.replace(lora_dropout=0.2)
        lively(lm.model)
        task = tiny_classes(8, 2) if kind == "bert" else tiny_task(8, 2)
        torch.manual_seed(0)
        found.append(outcome(lm, task, config, folder, beside, **training))
        assert lm.model.training == (beside is not None), "as the cell has left it"
    return found[0], found[1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name, tmp_path):
    kept = {} if name == "LoRA" else {"kept_texts": 0}  # the base writes them, whatever is trained
    calm, beside = both("gpt2", name, tmp_path, **kept)
    assert beside == calm


@pytest.mark.parametrize(
    ("kind", "name"),
    [("bert", "PreLayer"), ("bert", "Adapter^D"), ("t5", "LoRA+PE"), ("t5", "Adapter^D")],
)
def test_every_kind_of_model(kind, name, tmp_path):
    calm, beside = both(kind, name, tmp_path)
    assert beside == calm


TEXTS = [" ".join("abcdefgh"[i % 8 : i % 8 + 3]) * 2 for i in range(10)]
OTHER_TASKS = {
    "numbers": (tiny_scorer, tiny_scores(8, 2)),
    "numbers of pairs": (lambda: tiny_scorer("roberta"), tiny_scores(8, 2, pairs=True)),
    "whole texts": (tiny_lm, LanguageModelingTask("texts", True, TEXTS[:8], TEXTS[8:])),
}


@pytest.mark.parametrize("kind", OTHER_TASKS)
def test_every_kind_of_task(kind, tmp_path):
    make, task = OTHER_TASKS[kind]
    config, found = ll.LoraConfig(r=2, target_modules=["q", "v"], lora_dropout=0.2), []
    for beside in (None, cell):
        lm = make()
        lively(lm.model)
        found.append(outcome(lm, task, config, tmp_path, beside))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["PreLayer", "Adapter^D", "LoRA"])
def test_with_gradient_checkpointing(name, tmp_path):
    calm, beside = both("llama", name, tmp_path, gradient_checkpointing=True)
    assert beside == calm


def mixes(model: Any) -> None:
    """Ask for rows of other adapters, in a batch of other size than the run's."""
    ids = torch.arange(5, 11).view(3, 2)
    with ll.mixed_batch(model, ["default", None, "default"]):
        model(input_ids=ids)
        model.generate(input_ids=ids, max_new_tokens=2)


def test_a_mixed_batch(tmp_path):
    config = ll.LoraConfig(r=2, target_modules=["q", "v"], use_dora=True)
    calm, beside = (
        outcome(tiny_lm(), tiny_task(8, 2), config, tmp_path, each) for each in (None, mixes)
    )
    assert beside == calm


def test_a_module_that_is_trained_whole_beside_a_base_in_half_precision(tmp_path):
    # Its float32 masters are cast down for each pass: not within the module, where another
    # thread's pass would find them, and may leave them.
    config = ll.LoraConfig(r=2, target_modules=["q"], modules_to_save=["lm_head"])
    found = []
    for beside in (None, cell):
        lm = tiny_lm()
        lm.model.to(torch.bfloat16)
        found.append(outcome(lm, tiny_task(8, 2), config, tmp_path, beside, eval_examples=0))
    assert found[0] == found[1]


def reads(model: Any) -> None:
    """Read the model and what it comes to, and write another adapter than the run's."""
    copy.deepcopy(model).eval()
    ll.budget(model, ll.LoraConfig(r=2), batch_size=1, sequence_length=8)
    ll.dry_run(model, ll.LoraConfig(r=2), batch_size=1, sequence_length=8)
    ll.attach(model, ll.LoraConfig(r=2, target_modules="all-linear"), "other", activate=False)
    with tempfile.TemporaryDirectory() as folder:
        ll.save_adapter(model, Path(folder) / "adapter", "other")
        ll.export_merged(model, Path(folder) / "merged", "other")
    ll.detach(model, "other")
    repr(model), model.state_dict()


@pytest.mark.filterwarnings("ignore:the model's state dict")
@pytest.mark.parametrize("config", [ll.LoraConfig(r=2, target_modules=["q", "v"]), ll.IA3Config()])
def test_what_reads_merges_elsewhere_and_attaches_beside(config, tmp_path):
    calm, beside = (
        outcome(tiny_lm(), tiny_task(8, 2), config, tmp_path, each, eval_examples=0)
        for each in (None, reads)
    )
    assert beside == calm


WRITES_THE_BASE = {
    "attach": lambda model, _: ll.attach(model, ll.LoraConfig(r=2), "other", activate=False),
    "mixed_batch": lambda model, _: ll.mixed_batch(model, [None, None]).__enter__(),
}


@pytest.mark.parametrize("verb", WRITES_THE_BASE)
def test_what_needs_the_base_in_place_of_what_learns_is_refused(verb, tmp_path):
    refused: list[str] = []

    def asks(model: Any) -> None:
        with pytest.raises(AdapterError) as said:
            WRITES_THE_BASE[verb](model, tmp_path)
        refused.append(str(said.value))

    calm, beside = (
        outcome(tiny_lm(), tiny_task(8, 2), ll.FullConfig(top_layers=1), tmp_path, each,
                eval_examples=0)
        for each in (None, asks)
    )  # fmt: skip
    assert beside == calm
    assert all(
        "trains adapter 'default' of this model now; do it within" in line for line in refused
    )


def test_ofts_limit_is_written_by_the_run_alone(tmp_path):
    # What is cut to the limit twice differs in its last bits, which no loss shows.
    config = ll.OFTConfig(oft_block_size=4, coft=True, eps=1e-3, target_modules=["o", "down"])
    calm, beside = (
        outcome(tiny_lm(), tiny_task(8, 2), config, tmp_path, each, max_steps=4)
        for each in (None, cell)
    )
    assert beside == calm


LEARNED = {
    "LoRA": ll.LoraConfig(r=2, target_modules=["q", "v"]),
    "AdaLoRA": ll.AdaLoraConfig(init_r=3, target_r=1, tinit=1, tfinal=1, target_modules=["q"]),
    "a head": ll.LoraConfig(r=2, target_modules=["q"], modules_to_save=["lm_head"]),
    "PreLayer": ll.PrefixLayerConfig(2, 1),
    "FT": ll.FullConfig(top_layers=1),
}


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_backward_pass_is_refused_before_it_adds_anything(name, checkpointing, tmp_path):
    def learns(model: Any) -> None:
        ids = torch.arange(5, 15)[None]
        loss = model(input_ids=ids, labels=ids).loss
        with pytest.raises(AdapterError, match=r"add to the gradients of run .*, which trains now"):
            loss.backward()
        copied = copy.deepcopy(model)
        copied(input_ids=ids, labels=ids).loss.backward()
        assert any(p.grad is not None for p in copied.parameters())

    settings = {"max_steps": 4, "gradient_accumulation_steps": 2, "eval_examples": 0}
    calm, beside = (
        outcome(tiny_lm(), tiny_task(8, 2), LEARNED[name], tmp_path, each,
                gradient_checkpointing=checkpointing, **settings)
        for each in (None, learns)
    )  # fmt: skip
    assert beside == calm


def every_grad(model: Any) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def steps_by(kind: Any, **options: Any) -> Any:
    return lambda model: kind([*model.parameters()], **options).step()


MEDDLES = {
    "zero_grad": lambda model: model.zero_grad(),
    "zero_grad to zeros": lambda model: model.zero_grad(set_to_none=False),
    "each to zeros": lambda model: [gradient.zero_() for gradient in every_grad(model)],
    "clipping": lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-9),
    "SGD": steps_by(torch.optim.SGD, lr=1.0, weight_decay=0.1),
    "AdamW": steps_by(torch.optim.AdamW, lr=1.0),
    "AdamW, fused": steps_by(torch.optim.AdamW, lr=1.0, fused=True),
}


@pytest.mark.parametrize("meddle", MEDDLES)
def test_a_cell_that_zeros_or_clips_gradients_or_steps_by_them_changes_nothing(meddle, tmp_path):
    settings = {"max_steps": 3, "gradient_accumulation_steps": 2, "eval_examples": 0}
    calm, beside = (
        outcome(tiny_lm(), tiny_task(8, 2), LEARNED["LoRA"], tmp_path, each, **settings)
        for each in (None, MEDDLES[meddle])
    )
    assert beside == calm


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("half", [False, True])
def test_every_method_has_its_gradients_to_itself(name, half, tmp_path):
    def meddles(model: Any) -> None:
        assert not every_grad(model)
        for meddle in MEDDLES.values():
            meddle(model)

    settings = {"max_steps": 3, "gradient_accumulation_steps": 2, "eval_examples": 0}
    found = []
    for each in (None, meddles):
        lm = tiny_lm()
        lm.model.to(torch.bfloat16 if half else torch.float32)
        found.append(outcome(lm, tiny_task(8, 2), LEARNED[name], tmp_path, each, **settings))
        assert {type(p) for p in lm.model.parameters()} == {nn.Parameter}
    assert found[0] == found[1]


CASTS = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "to float64": lambda model: model.to(torch.float64),
    "of a block": lambda model: model.get_input_embeddings().to(torch.bfloat16),
    "to another device": lambda model: model.to("meta"),
}


@pytest.mark.parametrize("name", LEARNED)
def test_a_cell_that_casts_the_model_is_refused_before_anything_is_cast(name, tmp_path):
    def casts(model: Any) -> None:
        for cast in CASTS.values():
            with pytest.raises(AdapterError, match=r"the weights that run .* trains on; do it wit"):
                cast(model)
        model.to("cpu").float()
        copy.deepcopy(model).half()

    calm, beside = (
        outcome(tiny_lm(), tiny_task(8, 2), LEARNED[name], tmp_path, each, max_steps=3)
        for each in (None, casts)
    )
    assert beside == calm


def test_a_pause_and_the_time_after_a_run(tmp_path):
    lm = tiny_lm()
    run = ll.train(
        lm, tiny_task(8, 2), LEARNED["LoRA"], output_dir=tmp_path, max_steps=100_000,
        max_length=32, eval_examples=0,
    )  # fmt: skip
    until(lambda: run.snapshot.step > 1)
    with run.paused() as model:
        with pytest.raises(AdapterError, match="do it with a copy"):
            model.bfloat16()
        model.to("cpu").float()
    step = run.snapshot.step
    until(lambda: run.snapshot.step > step + 1)
    run.stop()
    run.wait(120)
    assert lm.model.bfloat16().dtype is torch.bfloat16


def test_in_a_pause_and_after_the_end_gradients_are_whoevers_has_the_model(tmp_path):
    lm, ids = tiny_lm(), torch.arange(5, 15)[None]
    run = ll.train(
        lm, tiny_task(8, 2), LEARNED["a head"], output_dir=tmp_path, max_steps=100_000,
        max_length=32, eval_examples=0,
    )  # fmt: skip
    until(lambda: run.snapshot.step > 1)
    with run.paused() as model:
        model(input_ids=ids, labels=ids).loss.backward()
    run.stop()
    run.wait(120)
    assert not any("logits" in note for note in run.notes), "the hooks cost none of the others"
    lm.model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in run.adapter.parameters())
