"""A batch whose samples have adapters of their own, against each sample alone with its adapter."""

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.several_adapters import several
from tests.helpers.tiny_models import tiny_inputs

NAMES = ["a", None, "b", "c"]


def batch_of(model, rows):
    one = tiny_inputs(model)
    torch.manual_seed(1)
    ids = torch.randint(3, 60, (rows, one["input_ids"].shape[1]))
    return {"input_ids": ids}


def logits(model, batch):
    result = model(**batch)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def one_by_one(model, batch, names):
    rows = []
    for i, name in enumerate(names):
        ll.activate(model, name)
        rows.append(logits(model, {k: v[i : i + 1] for k, v in batch.items()}))
    return torch.cat(rows)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "bert", "opt"])
def test_every_sample_is_answered_by_its_own_adapter(name):
    model = several(name)
    batch = batch_of(model, 4)
    with torch.no_grad():
        expected = one_by_one(model, batch, NAMES)
        with ll.mixed_batch(model, NAMES):
            found = logits(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert ll.active(model) == "c", "what was active before is so again"


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_variants_take_part(changes):
    model = several(**changes)
    with torch.no_grad():
        for adapter in ll.attached(model).values():
            for parameter in adapter.parameters():
                parameter.add_(0.1)
        batch = batch_of(model, 4)
        expected = one_by_one(model, batch, NAMES)
        with ll.mixed_batch(model, NAMES):
            torch.testing.assert_close(logits(model, batch), expected, rtol=1e-9, atol=1e-9)


def test_training_a_mixed_batch_teaches_each_adapter_its_own_samples():
    model = several()
    batch = batch_of(model, 4)
    pull = torch.randn(logits(model, batch).shape, dtype=torch.float64)
    (one_by_one(model, batch, NAMES) * pull).sum().backward()
    parameters = [p for a in ll.attached(model).values() for p in a.parameters()]
    expected = [p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    with ll.mixed_batch(model, NAMES):
        (logits(model, batch) * pull).sum().backward()
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-8)


def test_generation_with_beams_keeps_the_samples_apart():
    model = several()
    ids = batch_of(model, 2)["input_ids"]
    settings = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    alone = []
    for row, name in zip(ids, ["a", "b"], strict=True):
        ll.activate(model, name)
        alone.append(model.generate(row[None], **settings))
    with ll.mixed_batch(model, ["a", "b"]):
        together = model.generate(ids, **settings)
    assert together.tolist() == [row.tolist()[0] for row in alone]


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "zzz"], "no adapter is called 'zzz'; attached are 'a', 'b', 'c'"), ([], "is empty")],
)
def test_what_cannot_be_is_refused(names, message):
    model = several()
    with pytest.raises(AdapterError, match=message), ll.mixed_batch(model, names):
        pass


def test_a_batch_of_another_size_is_refused():
    model = several()
    with pytest.raises(AdapterError, match="3 entries"), ll.mixed_batch(model, ["a", "b", "c"]):
        logits(model, batch_of(model, 4))
    assert torch.isfinite(logits(model, batch_of(model, 4))).all()
