"""The bare base answers one thread, and what is in force the others."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import bare
from tests.helpers.tiny_run import logits, tiny_lm, tiny_task, until

APART = {
    "LoRA": ll.LoraConfig(r=2, target_modules=["q", "v"]),
    "DoRA": ll.LoraConfig(r=2, target_modules=["q", "v"], use_dora=True),
    "a head": ll.LoraConfig(r=2, target_modules=["q"], modules_to_save=["lm_head"]),
    "tokens": ll.LoraConfig(r=2, target_modules=["q"], trainable_token_indices=[5, 6]),
    "PreLayer": ll.PrefixLayerConfig(2, 1),
    "Adapter^P": ll.BottleneckConfig("P", r=3),
    "IA3": ll.IA3Config(),
    "LoRA+PE": [ll.LoraConfig(r=2, target_modules=["q"]), ll.PrefixEmbedConfig(2, 1)],
}
WITHIN = {
    "FT": ll.FullConfig(top_layers=1),
    "LoRA with biases": ll.LoraConfig(r=2, target_modules=["q"], bias="all"),
}


def elsewhere(model: Any) -> torch.Tensor:
    """Return what the model answers to another thread."""
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(logits(model)))
    thread.start()
    thread.join()
    return found[0]


def stirred(config: Any, biased: bool = False) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Return a model, its base's answer, and that of the adapter which it has now."""
    model = tiny_lm().model
    if biased:
        for layer in model.model.layers:
            layer.mlp.down_proj.bias = torch.nn.Parameter(torch.zeros(32))
    base = logits(model)
    adapter = ll.attach(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 5)
    adapted = logits(model)
    assert not torch.allclose(adapted, base)
    return model, base, adapted


@pytest.mark.parametrize("name", APART)
def test_only_who_asks_for_the_bare_base_is_answered_by_it(name: str) -> None:
    model, base, adapted = stirred(APART[name])
    with bare(model), bare(model):
        assert torch.equal(logits(model), base)
        assert torch.equal(elsewhere(model), adapted)
        assert torch.equal(elsewhere(copy.deepcopy(model)), adapted)
    assert torch.equal(logits(model), adapted)


@pytest.mark.parametrize("name", WITHIN)
def test_what_works_within_the_base_is_off_for_all_meanwhile(name: str) -> None:
    model, base, adapted = stirred(WITHIN[name], biased=True)
    with bare(model):
        assert torch.equal(logits(model), base)
        assert torch.equal(elsewhere(model), base)
    assert torch.equal(logits(model), adapted)


def test_a_compiled_model_is_the_bare_base_for_all() -> None:
    """Its graphs are made for what is in force, whoever asks."""
    model, base, adapted = stirred(APART["LoRA"])
    model.compile(backend="eager")
    with bare(model):
        torch.testing.assert_close(logits(model), base)
    torch.testing.assert_close(logits(model), adapted)


def test_a_cell_within_it_may_ask_rows_of_adapters() -> None:
    model, base, adapted = stirred(APART["LoRA"])
    with bare(model), ll.mixed_batch(model, ["default"]):
        torch.testing.assert_close(logits(model), adapted)
    with bare(model):
        assert torch.equal(logits(model), base)


def test_it_is_refused_beside_a_run(tmp_path: Any) -> None:
    lm = tiny_lm()
    run = ll.train(lm, tiny_task(8, 2), APART["LoRA"], output_dir=tmp_path, max_steps=10**6,
                   max_length=32, eval_examples=0)  # fmt: skip
    until(lambda: run.snapshot.step > 0)
    with (
        pytest.raises(AdapterError, match="trains adapter 'default' of this model"),
        bare(lm.model),
    ):
        pass
    run.stop()
    assert run.wait(60)


def test_while_a_run_scores_the_base_other_cells_are_answered_by_its_adapter(tmp_path: Any) -> None:
    lm = tiny_lm()
    config = ll.PrefixLayerConfig(2, 1)  # which answers otherwise from the start
    run = ll.train(lm, tiny_task(8, 2), config, output_dir=tmp_path, max_steps=1, max_length=32,
                   eval_examples=1, kept_texts=0, start=False)  # fmt: skip
    seen: list[torch.Tensor] = []

    def meanwhile(*_: Any) -> None:
        is_the_runs = threading.current_thread().name.startswith("lora-lab")
        if is_the_runs and not seen and "base" in run.snapshot.phase:
            seen.append(elsewhere(lm.model))

    lm.model.model.layers[1].register_forward_pre_hook(meanwhile)
    begun = []
    attached = run._attach

    def attach() -> Any:
        adapter = attached()
        begun.extend(adapter.snapshot())
        return adapter

    run._attach = attach
    run.start().result(60)
    run.adapter.restore(begun)
    assert torch.equal(seen[0], logits(lm.model))
    ll.detach(lm.model)
    assert not torch.allclose(seen[0], logits(lm.model))
