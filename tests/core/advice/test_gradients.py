"""Gradient norms of a few backward passes, against an independent backward pass in float64.

Oracle: a copy of the model in float64, its cross-entropy written out, `loss.backward()`, and the
rows of each matrix cut out by hand.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lora_lab import activate, attach, load_task, merge, train
from lora_lab.advice.gradients import gradient_norms, layer_gradients
from lora_lab.anatomy import anatomy
from lora_lab.configs import BitFitConfig, LoraConfig
from lora_lab.errors import AdapterError, ConfigError, ModelError
from lora_lab.models import LoadedModel
from lora_lab.tasks.families.seq2seq import step_loss
from tests.helpers.quantized_layers import Linear4bit, quantized
from tests.helpers.tiny_architectures import tiny_architecture
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task, until
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores
from tests.helpers.tiny_seq2seq import tiny_seq2seq
from tests.helpers.tiny_text import tiny_tokenizer

IGNORED = -100


def batches_of(model: Any, count: int = 2) -> list[dict[str, torch.Tensor]]:
    """Token ids with labels, a few of them left out."""
    found = []
    for seed in range(count):
        inputs = tiny_inputs(model, batch=3, length=9, seed=seed)
        labels = inputs.get("decoder_input_ids", inputs["input_ids"]).clone()
        labels[0, :4] = IGNORED
        if "decoder_input_ids" in inputs:  # as the family of such tasks makes batches
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
        found.append({**inputs, "labels": labels})
    return found


def oracle(
    model: nn.Module, batches: list[dict[str, torch.Tensor]]
) -> list[dict[str, torch.Tensor]]:
    """Return {parameter: its gradient}, float64, one dict a batch."""
    exact: Any = copy.deepcopy(model).double().eval().requires_grad_(True)
    exact.config._experts_implementation = "eager"  # the default has no float64
    found = []
    for batch in batches:
        exact.zero_grad()
        inputs = {k: t.double() if t.is_floating_point() else t for k, t in batch.items()}
        labels = inputs.pop("labels")
        if exact.config.is_encoder_decoder:
            logits, wanted = exact(**inputs).logits, labels
        else:
            logits, wanted = exact(**inputs).logits[:, :-1], labels[:, 1:]
        cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED).backward()
        found.append({n: p.grad.clone() for n, p in exact.named_parameters() if p.grad is not None})
    return found


def norm_at(site: Any, gradients: dict[str, torch.Tensor]) -> float:
    """Return the norm of a matrix's own rows."""
    gradient = gradients[f"{site.module}.{site.parameter}"]
    if site.transposed and site.kind == "linear":
        gradient = gradient.T
    if site.rows is None:
        return float(gradient.norm())
    rows, taken = site.rows, []
    for group in range(rows.groups):
        first = group * rows.group_size + rows.offset
        taken.append(gradient[first : first + rows.width])
    return float(torch.cat(taken).norm())


@pytest.mark.parametrize(
    "name",
    ["llama", "smollm", "gpt2", "qwen3", "gemma2", "bloom", "falcon-grouped", "phi3", "t5", "opt"],
)
def test_norms_are_those_of_an_independent_backward_pass(name: str) -> None:
    model = tiny(name)
    batches = batches_of(model)
    found = gradient_norms(model, batches, step_loss if name == "t5" else None)
    exact = oracle(model, batches)
    sites = anatomy(model).grid_sites
    assert {site.name for site in sites} <= found.by_pass.keys()
    for site in sites:
        expected = [norm_at(site, gradients) for gradients in exact]
        assert found.by_pass[site.name] == pytest.approx(expected, rel=1e-5), site.name
        mean = sum(expected) / 2
        assert found.norms[site.name] == pytest.approx(mean, rel=1e-5)
        deviation = (sum((value - mean) ** 2 for value in expected)) ** 0.5  # n − 1 is 1
        assert found.spread[site.name] == pytest.approx(deviation, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_experts_of_one_tensor_have_one_norm(name: str) -> None:
    model = tiny_architecture(name)
    batches = batches_of(model, 1)
    found = gradient_norms(model, batches)
    exact = oracle(model, batches)[0]
    experts = [site for site in anatomy(model).grid_sites if site.kind == "experts"]
    assert experts
    for site in experts:
        assert found.norms[site.name] == pytest.approx(norm_at(site, exact), rel=1e-5)


def test_a_head_on_texts_has_its_own_loss() -> None:
    lm, task = tiny_classifier(), tiny_classes()
    found = layer_gradients(lm, task, passes=2, batch_size=3, max_length=16)
    exact: Any = copy.deepcopy(lm.model).double().requires_grad_(True)
    for number, batch in enumerate(map(dict, found.batches)):
        exact.zero_grad()
        labels = batch.pop("labels")
        cross_entropy(exact(**batch).logits, labels).backward()
        gradients = {n: p.grad for n, p in exact.named_parameters()}
        for site in anatomy(lm.model).grid_sites:
            expected = norm_at(site, gradients)
            assert found.by_pass[site.name][number] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["prompts", "texts", "seq2seq", "numbers"])
def test_every_family_of_tasks_has_norms(kind: str) -> None:
    """And the batches that are told give them again."""
    texts = load_task([{"text": f"{word} says {word}. " * 4} for word in "abcdefghij"])
    made: dict[str, Callable[[], tuple[LoadedModel, Any]]] = {
        "prompts": lambda: (tiny_lm(), tiny_task()),
        "texts": lambda: (tiny_lm(), texts),
        "seq2seq": lambda: (tiny_seq2seq(), tiny_task()),
        "numbers": lambda: (tiny_scorer(), tiny_scores()),
    }
    lm, task = made[kind]()
    found = layer_gradients(lm, task, passes=2, max_length=48)
    assert len(found.batches) == 2
    batches = [dict(batch) for batch in found.batches]
    exact = oracle(lm.model, batches) if kind != "numbers" else squared(lm.model, batches)
    for site in anatomy(lm.model).grid_sites:
        expected = [norm_at(site, gradients) for gradients in exact]
        assert found.by_pass[site.name] == pytest.approx(expected, rel=1e-5)


def squared(
    model: nn.Module, batches: list[dict[str, torch.Tensor]]
) -> list[dict[str, torch.Tensor]]:
    """The same as `oracle` of the mean squared error."""
    exact: Any = copy.deepcopy(model).double().eval().requires_grad_(True)
    found = []
    for batch in batches:
        exact.zero_grad()
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        errors = exact(**inputs).logits.squeeze(-1) - batch["labels"].double()
        errors.square().mean().backward()
        found.append({n: p.grad.clone() for n, p in exact.named_parameters() if p.grad is not None})
    return found


def test_nothing_of_the_model_changes() -> None:
    lm = tiny_lm()
    model: Any = lm.model
    for number, (_, parameter) in enumerate(model.named_parameters()):
        parameter.requires_grad_(number % 2 == 0)
        if number % 3 == 0 and parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, float(number))
    model.train()
    model.model.layers[0].eval()

    def state() -> dict[str, Any]:
        return {
            "weights": [tensor.clone() for tensor in model.state_dict().values()],
            "objects": [*map(id, model.parameters())],
            "learns": [p.requires_grad for p in model.parameters()],
            "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "places": [None if p.grad is None else id(p.grad) for p in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "classes": [type(module) for module in model.modules()],
            "hooks": [
                len(module._forward_hooks) + len(module._forward_pre_hooks)
                for module in model.modules()
            ],
            "random": torch.get_rng_state(),
            "cache": model.config.use_cache,
            "keys": [sorted(module.__dict__) for module in model.modules()],
        }

    before = state()
    layer_gradients(lm, tiny_task(), passes=2)
    for name, value in state().items():
        assert same(value, before[name]), name


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return all(map(same, one, other))
    return bool(one == other)


def test_a_mode_of_the_cell_is_none_of_the_probe() -> None:
    """Dropout, no_grad, inference_mode, autocast: the norms are those without."""
    model = tiny("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    batches = batches_of(model, 1)
    plain = gradient_norms(model, batches).by_pass
    model.train()
    assert gradient_norms(model, batches).by_pass == plain
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            assert gradient_norms(model, batches).by_pass == plain


def test_the_active_adapter_has_no_part_in_it() -> None:
    lm, task = tiny_lm(), tiny_task()
    plain = layer_gradients(lm, task, passes=2).norms
    adapter = attach(lm.model, LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    assert layer_gradients(lm, task, passes=2).norms == pytest.approx(plain, rel=1e-6)
    activate(lm.model, None)
    assert layer_gradients(lm, task, passes=2).norms == pytest.approx(plain, rel=1e-6)
    activate(lm.model, "default")
    merge(lm.model)
    with pytest.raises(AdapterError, match="merged"):
        layer_gradients(lm, task, passes=2)


def test_a_base_that_an_adapter_has_changed_is_measured_as_it_was() -> None:
    model: Any = tiny("gpt2", vocab_size=259)
    lm, task = LoadedModel.given(model, tiny_tokenizer(), "tiny"), tiny_task()
    plain = layer_gradients(lm, task, passes=1, max_length=32).norms
    adapter = attach(lm.model, BitFitConfig())
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(1.0)
    assert layer_gradients(lm, task, passes=1, max_length=32).norms == pytest.approx(plain)


def test_while_a_run_trains_the_model_it_is_refused(tmp_path: Path) -> None:
    lm, task = tiny_lm(), tiny_task()
    run = train(lm, task, CONFIG, output_dir=tmp_path, max_steps=100_000, eval_examples=0)
    until(lambda: run.snapshot.step >= 2)
    try:
        with pytest.raises(AdapterError, match=f"run {run.id} trains adapter"):
            layer_gradients(lm, task)
        with run.paused():
            paused = layer_gradients(lm, task, passes=1).norms
        assert run.state == "running"
    finally:
        run.stop()
        run.wait(60)
    assert paused == pytest.approx(layer_gradients(lm, task, passes=1).norms, rel=1e-6)


def test_packed_weights_are_left_out_and_said() -> None:
    model = quantized()
    with pytest.raises(ModelError, match=r"its weight is packed \(4-bit\)"):
        gradient_norms(model, batches_of(model, 1))
    mixed: Any = tiny("llama")
    mixed.model.layers[0].mlp.up_proj = Linear4bit(mixed.model.layers[0].mlp.up_proj)
    found = gradient_norms(mixed, batches_of(mixed, 1))
    assert found.left_out == {"model.layers.0.mlp.up_proj": "its weight is packed (4-bit)"}
    assert len(found.by_pass) == 13


def test_a_matrix_that_no_loss_reaches_is_left_out_and_said() -> None:
    model: Any = tiny("llama")

    class Cut(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return torch.zeros_like(args[0] if args else kwargs["x"])

    model.model.layers[1].mlp = Cut(model.model.layers[1].mlp)
    found = gradient_norms(model, batches_of(model, 1))
    unreached = [name for name in found.left_out if ".mlp." in name]
    assert unreached
    assert found.left_out[unreached[0]] == "no gradient reaches it"
    assert not found.by_pass.keys() & found.left_out.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_small_gradients(dtype: torch.dtype) -> None:
    model = tiny("llama").to(dtype)
    batches = batches_of(model, 1)
    found, exact = gradient_norms(model, batches).norms, oracle(model, batches)[0]
    for site in anatomy(model).grid_sites:
        assert found[site.name] == pytest.approx(norm_at(site, exact), rel=0.05)


def test_numbers_that_are_none_are_an_error_that_names_the_place() -> None:
    model: Any = tiny("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.\d\..* is not finite"):
        gradient_norms(model, batches_of(model, 1))


def test_what_cannot_be_probed_is_refused_first() -> None:
    lm, task = tiny_lm(), tiny_task()
    with pytest.raises(ConfigError, match="classes"):
        layer_gradients(lm, tiny_classes())
    with pytest.raises(ConfigError, match="no training examples"):
        layer_gradients(lm, dataclasses.replace(task, train=()))
    with torch.inference_mode():
        made = tiny_lm()
    with pytest.raises(ConfigError, match="made within torch"):
        layer_gradients(made, task)
    with pytest.raises(ConfigError, match="passes is 0"):
        layer_gradients(lm, task, passes=0)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        layer_gradients(lm, task, batch_size=0)
    long = dataclasses.replace(task, train=[dataclasses.replace(task.train[0], prompt="x " * 60)])
    short = LoadedModel.given(tiny("gpt2", vocab_size=259), tiny_tokenizer(), "tiny")
    with pytest.raises(ConfigError, match="max_length=128 is more than the 64 positions"):
        layer_gradients(short, long)
    assert layer_gradients(short, long, max_length=64).norms


def test_it_tells_of_each_pass_and_may_be_ended() -> None:
    told: list[int] = []
    layer_gradients(tiny_lm(), tiny_task(), passes=3, done=told.append)
    assert told == [1, 2, 3]

    def stop(_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layer_gradients(tiny_lm(), tiny_task(), passes=3, done=stop)
