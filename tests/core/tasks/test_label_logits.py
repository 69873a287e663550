"""The loss from logits of labels alone is the one from all logits: its value and every gradient.

Oracle: transformers' own forward pass and torch's cross_entropy, without the block.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.models.auto import modeling_auto

from lora_lab.configs import (
    AdaLoraConfig,
    BottleneckConfig,
    FullConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PrefixEmbedConfig,
)
from lora_lab.methods.api import attach
from lora_lab.tasks import chunk_rows
from lora_lab.tasks.chunked_loss import summed_cross_entropy
from lora_lab.tasks.label_logits import LabelLogits, label_logits
from lora_lab.tasks.own_loss import causal_share, summed_loss
from tests.helpers.tiny_architectures import ARCHITECTURES, tiny_architecture

# Heads of decoders in the tables of transformers, those that the tests' tiny configs build.
# GIT reads images, Whisper sounds; ProphetNet predicts two tokens at once, by a loss of its own.
OTHERS = {"git", "whisper", "prophetnet"}
NAMES = sorted({*modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} & {*ARCHITECTURES} - OTHERS)


def batch_of(learned=(3, 5), ids_above=3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(ids_above, 90, (2, 9), generator=generator)
    labels = torch.full_like(ids, -100)
    for row, count in enumerate(learned):
        labels[row, 9 - count :] = ids[row, 9 - count :]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(chunk_rows, "CHUNK", 3 * 96)  # three rows of these vocabularies


def taken(model: Any, batch: dict[str, torch.Tensor], own: bool = True, alone: bool = True) -> Any:
    """The loss, the gradients, and why all logits were computed."""
    model.zero_grad()
    inputs = batch if own else {k: v for k, v in batch.items() if k != "labels"}
    most = int((batch["labels"] != -100).sum())
    if alone:
        with label_logits(model, most) as seen:
            output = model(**inputs)
            loss = output.loss if own else causal_share(output, batch["labels"], 7)
        why = seen.whole
        assert isinstance(output.logits, LabelLogits) == (not why)
    else:
        output, why = model(**inputs), ""
        loss = output.loss if own else causal_share(output, batch["labels"], 7)
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, why


def assert_same(model: Any, batch: dict[str, torch.Tensor], own: bool = True, rel=1e-5) -> None:
    loss, gradients, why = taken(model, batch, own)
    gradients = {name: g.clone() for name, g in gradients.items()}
    expected, others, _ = taken(model, batch, own, alone=False)
    assert why == ""
    torch.testing.assert_close(loss, expected, rtol=rel, atol=0)
    assert gradients.keys() == others.keys()
    scale = max(g.abs().max() for g in others.values()).item()
    for name, gradient in gradients.items():
        most = max(others[name].abs().max().item(), 0.1 * scale)
        assert (gradient - others[name]).abs().max() <= rel * most, name


@pytest.mark.parametrize("name", NAMES)
def test_every_decoder(name):
    """Soft caps, scales, biases, routers' losses and tied weights among them; all weights learn."""
    model = tiny_architecture(name)
    batch = batch_of()
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"].clone()
    assert_same(model, batch, rel=2e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere", "gpt2"])
@pytest.mark.parametrize("own", [True, False])
def test_in_float64(name, own):
    assert_same(tiny_architecture(name).double(), batch_of(), own, rel=1e-6)


@pytest.mark.parametrize("name", ["bart", "t5", "marian"])
def test_encoder_decoders(name):
    """BART's and Marian's logits have a bias added to each word."""
    model = tiny_architecture(name)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.copy_(torch.linspace(-2, 2, 96))
    batch = batch_of((9, 4))
    batch["decoder_input_ids"] = batch["input_ids"].clone()
    assert_same(model, batch)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["lm_head"]),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        LoraConfig(r=2, target_modules=["lm_head", "q_proj"], use_dora=True),
        AdaLoraConfig(target_modules=["lm_head"]),
        IA3Config(target_modules=["lm_head"], feedforward_modules=[]),
        OFTConfig(target_modules=["lm_head"], oft_block_size=4),
        BottleneckConfig(),
        PrefixEmbedConfig(prefix_length=2, infix_length=1),
        FullConfig(),
    ],
    ids=lambda config: f"{config.method} {getattr(config, 'target_modules', '')}",
)
def test_methods_on_the_head_and_before_it(config):
    model = tiny_architecture("llama")
    torch.manual_seed(0)
    adapter = attach(model, config)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.train()
    assert_same(model, batch_of(ids_above=60))


def test_an_embedding_adapted_at_the_head_that_is_tied_to_it():
    model = tiny_architecture("gemma2")
    assert model.config.tie_word_embeddings
    adapter = attach(model, LoraConfig(r=2, target_modules=["embed_tokens"]))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    assert_same(model.train(), batch_of())


@pytest.mark.parametrize("learned", [(0, 1), (1, 0), (9, 9), (8, 8)])
def test_any_number_of_labels(learned):
    assert_same(tiny_architecture("llama"), batch_of(learned))


def test_no_label_at_all_is_a_sum_of_nothing():
    model, batch = tiny_architecture("llama"), batch_of((0, 0))
    loss, gradients, _ = taken(model, batch, own=False)
    assert loss.item() == 0
    assert all(not g.any() for g in gradients.values())


def test_in_float16_gradients_have_the_size_that_the_loss_scale_means():
    """The weights of improbable words learn from gradients below float16's least number."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(4096, 8, generator=generator).half()
    W[0] = 5.0  # the label: likely everywhere
    W.requires_grad_()
    rows = torch.rand(4, 8, generator=generator).half().requires_grad_()
    labels, scale = torch.zeros(4, dtype=torch.int64), 2.0**12

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        W.grad = None
        (loss * scale).backward()
        return W.grad[1:].double() / scale

    def of_labels(expected: float) -> torch.Tensor:
        return gradient(
            summed_cross_entropy(
                lambda x: x @ W.T, rows, labels, vocabulary=len(W), ignored=-100, leaves=(W,),
                expected=expected,
            )
        )  # fmt: skip

    exact = W.detach().double().requires_grad_()
    cross_entropy(rows.detach().double() @ exact.T, labels, reduction="sum").backward()
    expected = exact.grad[1:]
    plain = gradient(cross_entropy((rows @ W.T).float(), labels, reduction="sum"))

    def error(found: torch.Tensor) -> float:
        return ((found - expected).norm(dim=1) / expected.norm(dim=1)).median().item()

    assert error(of_labels(scale)) == pytest.approx(error(plain), rel=0.1)
    assert error(of_labels(1.0)) > 3 * error(plain)


# What it leaves alone -----------------------------------------------------------------------------


def test_nothing_is_left_behind_and_other_threads_are_as_ever():
    model, batch = tiny_architecture("llama"), batch_of()
    with torch.no_grad():
        expected = model(**batch).logits
        found = []
        with label_logits(model, 8):
            other = threading.Thread(target=lambda: found.append(model(**batch).logits))
            other.start()
            other.join()
            assert isinstance(model(**batch).logits, LabelLogits)
        found.append(model(**batch).logits)
    for logits in found:
        assert type(logits) is torch.Tensor
        assert torch.equal(logits, expected)


def test_two_threads_take_the_same_way_at_a_time():
    """A run's pass and a cell's evaluation: neither sees the other's, nor computes otherwise."""
    model, batch = tiny_architecture("llama"), batch_of()
    with torch.no_grad(), label_logits(model, 8) as seen:
        expected = model(**batch).loss
    within, done, found = threading.Event(), threading.Event(), []

    def other() -> None:
        with torch.no_grad(), label_logits(model, 8) as own:
            within.set()
            done.wait(60)
            found.append((model(**batch).loss, own.whole))

    thread = threading.Thread(target=other)
    thread.start()
    within.wait(60)
    with torch.no_grad(), label_logits(model, 8) as seen:
        found.append((model(**batch).loss, seen.whole))
    done.set()
    thread.join()
    assert [(torch.equal(loss, expected), why) for loss, why in found] == [(True, "")] * 2


def test_who_reads_logits_otherwise_gets_them_whole():
    model, batch = tiny_architecture("llama"), batch_of()
    expected = model(**batch).logits
    with label_logits(model, 8) as seen:
        logits = model(**batch).logits
    assert (logits.shape, logits.dtype, logits.device) == (
        expected.shape, expected.dtype, expected.device,
    )  # fmt: skip
    assert seen.whole == ""
    torch.testing.assert_close(logits[:, -1].softmax(-1), expected[:, -1].softmax(-1))
    assert seen.whole == "__getitem__ reads them"
    logits.pow(2).sum().backward()
    own = model.model.layers[0].mlp.down_proj.weight.grad.clone()
    model.zero_grad()
    expected.pow(2).sum().backward()
    torch.testing.assert_close(own, model.model.layers[0].mlp.down_proj.weight.grad)


def test_a_loss_of_another_kind_is_computed_from_all():
    model, batch = tiny_architecture("llama"), batch_of()
    labels = batch["labels"].flatten()

    def weighted() -> torch.Tensor:
        return cross_entropy(
            model(**batch).logits.flatten(0, 1), labels, weight=torch.linspace(1, 2, 96)
        )

    with label_logits(model, 8) as seen:
        found = weighted()
    torch.testing.assert_close(found, weighted())
    assert seen.whole == "cross_entropy reads them"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.lm_head.register_forward_hook(lambda *_: None), "has hooks"),
        (lambda m: m.lm_head.weight.register_hook(lambda g: g), "have hooks"),
        (lambda m: setattr(m, "get_output_embeddings", lambda: None), "no output layer"),
        (lambda m: setattr(m, "get_output_embeddings", lambda: nn.Linear(2, 2)), "not call"),
        # What `model.compile()` sets; nothing is compiled.
        (lambda m: setattr(m, "_compiled_call_impl", m._call_impl), "compiled"),
    ],
)
def test_what_cannot_be_done_is_told_and_is_right_all_the_same(change, why):
    model, batch = tiny_architecture("llama"), batch_of()
    expected = model(**batch).loss.item()
    change(model)
    with label_logits(model, 8) as seen:
        assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-6)
    assert why in seen.whole


def test_what_torch_hands_to_c_directly_is_refused_not_wrong():
    model, batch = tiny_architecture("llama"), batch_of()

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            return torch.Tensor._make_subclass(torch.Tensor, torch.zeros(())) + logits.sum()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    with label_logits(model, 8):
        logits = model(**batch).logits
        loss = Kernel.apply(logits)
    assert not loss.requires_grad  # so that a run says that nothing learns


def test_evaluation_takes_the_same_way():
    model, batch = tiny_architecture("cohere"), batch_of()
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double()
        found = summed_loss(model, batch)
    labels = batch["labels"][:, 1:].flatten()
    total = cross_entropy(logits[:, :-1].flatten(0, 1), labels, reduction="sum").item()
    assert found == (pytest.approx(total, rel=1e-5), 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smoothed_labels(dtype):
    model = tiny_architecture("llama").to(dtype)
    batch = batch_of()

    def of(alone: bool) -> tuple[float, torch.Tensor, str]:
        model.zero_grad()
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        with label_logits(model, 8, why_whole="" if alone else "the oracle") as seen:
            loss = causal_share(model(**inputs), batch["labels"], 8, label_smoothing=0.3)
        loss.backward()
        return loss.item(), model.lm_head.weight.grad.clone(), seen.whole

    loss, gradient, whole = of(alone=True)
    expected, its, _ = of(alone=False)
    assert whole == ""
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, its, rtol=1e-4, atol=1e-6)
    rate = causal_share(model(**batch), batch["labels"], 8).item()
    assert loss != pytest.approx(rate, rel=1e-3)
