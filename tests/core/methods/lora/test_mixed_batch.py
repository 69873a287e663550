"""A batch whose samples have adapters of their own, against each sample alone with its adapter."""

import sys

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.several_adapters import several
from tests.helpers.tiny_models import tiny, tiny_inputs

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


@pytest.fixture
def copied(monkeypatch):
    """What our code has made of Python's numbers: on a GPU a copy each, which it waits for."""
    found, make = [], torch.tensor

    def tensor(*args, **options):
        if sys._getframe(1).f_globals["__name__"].startswith("lora_lab"):
            found.append(args)
        return make(*args, **options)

    monkeypatch.setattr(torch, "tensor", tensor)
    return found


@pytest.mark.parametrize(
    "changes", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head", "down_proj"]}]
)
def test_where_the_rows_stand_is_told_once_a_batch(copied, changes):
    model = several(**{"target_modules": ["q", "v", "up"], **changes})
    batch = batch_of(model, 4)
    expected = one_by_one(model, batch, NAMES)
    copied.clear()
    with ll.mixed_batch(model, NAMES):
        with torch.inference_mode():
            torch.testing.assert_close(logits(model, batch), expected.detach())
        y = logits(model, batch)
        y.sum().backward()
        torch.testing.assert_close(y, expected)
        generated = model.generate(batch["input_ids"], max_new_tokens=3, pad_token_id=0)
    assert len(generated) == 4
    assert len(copied) == (1 if changes else 0)
    names = ["c", "b", None, "a"]
    expected = one_by_one(model, batch, names)
    with ll.mixed_batch(model, names):
        torch.testing.assert_close(logits(model, batch), expected)
    assert len(copied) == (2 if changes else 0)


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


def test_rows_are_not_guessed_from_their_number():
    # Chosen and rejected answers stand one behind the other; beams would stand beside each other.
    model = several()
    batch = batch_of(model, 4)
    with torch.no_grad():
        expected = one_by_one(model, batch, ["a", "b", "a", "b"])
        hooks = dict(model._forward_pre_hooks)
        with ll.mixed_batch(model, ["a", "b"]):
            with pytest.raises(
                AdapterError, match="2 entries, and the batch 4 rows; give one name"
            ):
                logits(model, batch)
            with pytest.raises(AdapterError, match="2 entries, and the batch 4 rows"):
                model.generate(batch["input_ids"], max_new_tokens=1, pad_token_id=0)
        with ll.mixed_batch(model, ["a", "b", "a", "b"]):
            torch.testing.assert_close(logits(model, batch), expected, rtol=1e-9, atol=1e-9)
    assert "generate" not in vars(model)
    assert model._forward_pre_hooks == hooks


@pytest.mark.parametrize("name", ["llama", "opt", "t5", "bart"])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "use_cache": False},
    ],
)
def test_rows_that_generate_makes_of_a_prompt_are_the_prompts(name, settings):
    targets = {"target_modules": ["q", "v", "up"]}
    changes = {"num_decoder_layers": 2} if name == "t5" else {}
    model = _bart() if name == "bart" else tiny(name, **changes).double()
    for seed, own in enumerate("ab"):
        torch.manual_seed(seed)
        ll.attach(model, ll.LoraConfig(r=2, init_lora_weights=False, **targets), own)
    ids = batch_of(model, 2)["input_ids"]
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, **settings}
    alone = []
    for row, own in zip(ids, "ab", strict=True):
        ll.activate(model, own)
        alone += model.generate(row[None], **settings).tolist()
    with ll.mixed_batch(model, ["a", "b"]):
        together = model.generate(ids, **settings).tolist()
        written = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        logits(model, {"input_ids": ids, **written})
    assert [_unpadded(row) for row in together] == [_unpadded(row) for row in alone]


def _unpadded(row):
    return row[: max((i + 1 for i, token in enumerate(row) if token), default=0)]


def _bart():
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 96}
    layers = {f"{part}_layers": 1 for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    return BartForConditionalGeneration(BartConfig(**sizes, **layers, **heads)).double().eval()


class Tower(nn.Module):
    """Reads texts, and patches of images that stand one behind the other."""

    def __init__(self):
        super().__init__()
        self.words, self.text, self.vision = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, input_ids, pixel_values=None):
        x = self.text(self.words(input_ids))
        return x if pixel_values is None else x + self.vision(pixel_values).mean(0)


def test_a_tower_with_a_batch_of_its_own_is_named():
    torch.manual_seed(0)
    model = Tower()
    config = ll.LoraConfig(r=2, target_modules=["text", "vision"], init_lora_weights=False)
    for own in "ab":
        ll.attach(model, config, own)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for patches in (torch.randn(6, 4), torch.randn(4, 3, 4)):  # twice the texts; as many as tokens
        with (
            ll.mixed_batch(model, ["a", "b"]),
            pytest.raises(AdapterError, match=r"vision got an input of shape .*a tower"),
        ):
            model(ids, patches)
    rows = torch.randn(2, 4)
    with ll.mixed_batch(model, ["a", "b"]):
        model(ids, rows)
    ll.activate(model, "a")
    alone = model(ids, torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    with ll.mixed_batch(model, ["a", "a"]):  # all of it is a's
        torch.testing.assert_close(
            model(ids, torch.randn(6, 4, generator=torch.Generator().manual_seed(1))), alone
        )


def test_clips_images_are_not_its_texts():
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = {**sizes, "num_attention_heads": 2, "vocab_size": 50, "eos_token_id": 2}
    vision = {**sizes, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    for own in "ab":
        ll.attach(model, ll.LoraConfig(r=2, target_modules=["q_proj"]), own)
    ids, images = torch.ones(2, 4, dtype=torch.long), torch.randn(4, 3, 8, 8)
    with (
        ll.mixed_batch(model, ["a", "b"]),
        pytest.raises(
            AdapterError, match=r"vision_model\.encoder\.layers\.0\.self_attn\.q_proj got"
        ),
    ):
        model(input_ids=ids, pixel_values=images)


def test_saved_heads_ask_the_same():
    model = tiny("bert").eval()
    for own in "ab":
        ll.attach(model, ll.LoraConfig(r=2, modules_to_save=["classifier"]), own)
    batch = batch_of(model, 4)
    with ll.mixed_batch(model, ["a", "b"]), pytest.raises(AdapterError, match="the batch 4 rows"):
        model(**batch)
    with (
        ll.mixed_batch(model, ["a", "b"]),
        pytest.raises(AdapterError, match="classifier got an input of shape"),
    ):
        model.classifier(torch.randn(4, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "changes", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 4, 5]}]
)
def test_modules_that_are_float32_masters_answer_their_rows(changes, dtype):
    model = tiny("llama").to(dtype)
    first = ll.attach(model, ll.LoraConfig(r=2, target_modules=["q"], **changes), "first")
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["q", "down"]), "second")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 10)
        inputs, alone = tiny_inputs(model, batch=3), []
        for name in ("first", None, "second"):
            ll.activate(model, name)
            alone.append(model(**inputs).logits)
        with ll.mixed_batch(model, ["first", None, "second"]):
            mixed = model(**inputs).logits
    expected = torch.stack([alone[row][row] for row in range(3)])
    assert not torch.allclose(alone[0][0], alone[1][0], atol=1e-1)
    tolerance = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(mixed, expected, rtol=0, atol=tolerance)
