"""Every method of the paper on every kind of model: what all of them promise alike."""

from __future__ import annotations

import copy
import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lora_lab as ll
from lora_lab.errors import AdapterError
from lora_lab.models import LoadedModel
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_seq2seq import tiny_seq2seq
from tests.helpers.tiny_text import tiny_tokenizer

LORA = ll.LoraConfig(r=2, lora_alpha=4)
EMBED = ll.PrefixEmbedConfig(3, 2)
LAYER = ll.PrefixLayerConfig(2, 1)


@dataclass(frozen=True)
class Method:
    """A method, and what it promises.

    Attributes:
        config: what `attach` takes.
        starts_as_base: an untrained adapter changes no output.
        merges: the weights can hold what it learns.
        learns: pattern of the model's own weights that it trains in place, by model.
    """

    config: Any
    starts_as_base: bool = True
    merges: bool = True
    learns: dict[str, str] | None = None


ANY_BIAS = r".*\.bias"
LAST_TWO = {
    "llama": r"model\.layers\.[01]\..*",
    "gpt2": r"transformer\.h\.[01]\..*",
    "bert": r"bert\.encoder\.layer\.[01]\..*",
    "roberta": r"roberta\.encoder\.layer\.[01]\..*",
    "t5": r"decoder\.block\.[12]\..*",  # of three
    "bart": r"model\.decoder\.layers\.[01]\..*",
}
MODELS = list(LAST_TWO)
BIASES = dict.fromkeys(MODELS, ANY_BIAS)

METHODS = {
    "FT": Method(ll.FullConfig(), learns=dict.fromkeys(MODELS, ".*")),
    "FT-Top2": Method(ll.FullConfig(top_layers=2), learns=LAST_TWO),
    "BitFit": Method(ll.BitFitConfig(), learns=BIASES),
    "PreEmbed": Method(EMBED, starts_as_base=False, merges=False),
    "PreLayer": Method(LAYER, starts_as_base=False, merges=False),
    "Adapter^H": Method(ll.BottleneckConfig("H", r=3), merges=False),
    "Adapter^L": Method(ll.BottleneckConfig("L", r=3), merges=False),
    "Adapter^P": Method(ll.BottleneckConfig("P", r=3), merges=False),
    "Adapter^D": Method(ll.BottleneckConfig("D", r=3, drop_layers=0), merges=False),
    "LoRA": Method(LORA),
    "LoRA+PE": Method([LORA, EMBED], starts_as_base=False, merges=False),
    "LoRA+PL": Method([LORA, LAYER], starts_as_base=False, merges=False),
    "AdaLoRA": Method(ll.AdaLoraConfig(target_r=2, init_r=3)),
    "IA3": Method(ll.IA3Config()),
    "OFT": Method(ll.OFTConfig(oft_block_size=4, target_modules=["o", "down"])),
    "LoRA+BitFit+Adapter^P": Method(
        [LORA, ll.BitFitConfig(), ll.BottleneckConfig("P", r=3)], merges=False, learns=BIASES
    ),
}
NO_BIASES = ("llama", "t5")


def loaded(kind: str) -> LoadedModel:
    """The same random weights every time."""
    match kind:
        case "llama":
            return tiny_lm()
        case "gpt2":
            changes = {"vocab_size": 259, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
            return LoadedModel.given(tiny("gpt2", **changes), tiny_tokenizer(), "tiny-gpt2")
        case "bert" | "roberta":
            return tiny_classifier(kind)
    return tiny_seq2seq(kind)


def prepared(kind: str, name: str) -> tuple[LoadedModel, Method, Any]:
    """Return a model, a method, and its config: where a model has no biases it gets new ones."""
    method = METHODS[name]
    config = method.config
    if kind in NO_BIASES and "BitFit" in name:
        new = ll.BitFitConfig(new_biases=True)
        config = [LORA, new, config[2]] if isinstance(config, list) else new
    return loaded(kind), method, config


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    config: Any = model.config
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 259, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    inputs = {"input_ids": ids.where(mask == 1, 0), "attention_mask": mask}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :5]
    return inputs


def logits_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**inputs_of(model)).logits


def loss_of(model: nn.Module) -> Tensor:
    logits = model(**inputs_of(model)).logits
    targets = torch.arange(logits[..., 0].numel()) % logits.shape[-1]
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets)


def moved(model: nn.Module, adapter: Any) -> None:
    """Give an adapter other values than its first, everywhere."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 20)


def traces(model: nn.Module) -> dict[str, Any]:
    """What a model is made of, but for its numbers: a detached adapter leaves nothing of these."""
    return {
        path: (
            type(part),
            part.training,
            sorted(vars(part)),
            list(part._modules),
            [(name, p is None or p.requires_grad) for name, p in part._parameters.items()],
            [len(hooks) for key, hooks in sorted(vars(part).items()) if key.endswith("_hooks")],
        )
        for path, part in model.named_modules()
    }


def each_on(*kinds: str) -> Any:
    def with_each(function: Any) -> Any:
        function = pytest.mark.parametrize("name", METHODS)(function)
        return pytest.mark.parametrize("kind", kinds)(function)

    return with_each


each_pair = each_on(*MODELS)


@each_pair
def test_it_starts_learns_alone_and_leaves_nothing(kind: str, name: str) -> None:
    lm, method, config = prepared(kind, name)
    model = lm.model
    weights = {key: p.detach().clone() for key, p in model.named_parameters()}
    own = dict(model.named_parameters())
    before, first = traces(model), logits_of(model)
    torch.manual_seed(0)
    adapter = ll.attach(model, config)
    assert adapter.method == name
    assert {id(p) for p in adapter.parameters()} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    started = logits_of(model)
    if method.starts_as_base:
        torch.testing.assert_close(started, first, rtol=0, atol=1e-5)
    else:
        assert not torch.allclose(started, first, atol=1e-3)

    learned = list(adapter.parameters())
    optimizer = torch.optim.AdamW(learned, lr=1e-2)
    old = {
        place: [p.detach().clone() for p in ps]
        for place, ps in adapter.parameters_by_location().items()
    }
    model.train()
    loss = loss_of(model)
    penalty = adapter.penalty()
    (loss if penalty is None else loss + penalty).backward()
    assert all(p.grad is None for key, p in own.items() if id(p) not in set(map(id, learned)))
    optimizer.step()
    model.eval()
    for place, parameters in adapter.parameters_by_location().items():
        pairs = zip(parameters, old[place], strict=True)
        assert any(not torch.equal(p, was) for p, was in pairs), place
    pattern = (method.learns or {}).get(kind)
    if pattern is not None and not (kind in NO_BIASES and pattern == ANY_BIAS):
        changed = {key for key, p in own.items() if not torch.equal(p, weights[key])}
        assert changed
        assert all(re.fullmatch(pattern, key) for key in changed)
    else:
        assert all(torch.equal(p, weights[key]) for key, p in own.items())
    assert not torch.equal(logits_of(model), started)

    ll.detach(model)
    model.zero_grad(set_to_none=True)
    assert dict(model.named_parameters()).keys() == weights.keys()
    for key, parameter in model.named_parameters():
        assert parameter is own[key]
        assert torch.equal(parameter, weights[key]), key
    assert traces(model) == before
    assert torch.equal(logits_of(model), first)


@each_pair
def test_it_merges_or_says_why_not(kind: str, name: str) -> None:
    lm, method, config = prepared(kind, name)
    model = lm.model
    first = logits_of(model)
    adapter = ll.attach(model, config)
    moved(model, adapter)
    tuned = logits_of(model)
    if method.merges and not (kind in NO_BIASES and "BitFit" in name):
        if name == "AdaLoRA":  # it was trained by nobody
            with pytest.warns(UserWarning, match="without AdaLoRA's cuts"):
                ll.merge(model)
        else:
            ll.merge(model)
        torch.testing.assert_close(logits_of(model), tuned, rtol=1e-4, atol=1e-4)
        ll.unmerge(model)
    else:
        with pytest.raises(AdapterError) as refused:
            ll.merge(model)
        assert re.search("cannot be merged|has no place for it", str(refused.value))
        assert "\n" not in str(refused.value)
    assert torch.equal(logits_of(model), tuned)
    ll.detach(model)
    assert torch.equal(logits_of(model), first)


def torch_saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch": torch_saved,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", COPIES)
@each_on("llama", "bert")
def test_a_copy_is_equal_and_a_model_of_its_own(kind: str, name: str, way: str) -> None:
    lm, _, config = prepared(kind, name)
    model = lm.model
    first = logits_of(model)
    moved(model, ll.attach(model, config, "other"))
    other = logits_of(model)
    moved(model, ll.attach(model, config))
    moved(model, ll.attached(model)["default"])
    tuned = logits_of(model)
    twin = COPIES[way](model)
    assert torch.equal(logits_of(twin), tuned)
    ll.activate(twin, "other")
    assert torch.equal(logits_of(twin), other)
    moved(twin, ll.attached(twin)["other"])
    assert not torch.equal(logits_of(twin), other)
    ll.detach(twin)
    assert torch.equal(logits_of(twin), first)
    assert traces(twin) == traces(loaded(kind).model)
    assert torch.equal(logits_of(model), tuned)
    ll.activate(model, "other")
    assert torch.equal(logits_of(model), other)


@each_pair
def test_saved_and_loaded_it_answers_the_same(kind: str, name: str, tmp_path: Path) -> None:
    lm, _, config = prepared(kind, name)
    adapter = ll.attach(lm.model, config)
    moved(lm.model, adapter)
    other = copy.deepcopy(loaded(kind)).model
    if name == "AdaLoRA":
        with pytest.warns(UserWarning, match="without AdaLoRA's cuts"):
            ll.save_adapter(lm.model, tmp_path / "adapter")
    else:
        ll.save_adapter(lm.model, tmp_path / "adapter")
    ll.load_adapter(other, tmp_path / "adapter")
    tuned = logits_of(lm.model)
    if name == "AdaLoRA":  # saved as the LoRA of B = s·PΛ: rounded once
        torch.testing.assert_close(logits_of(other), tuned, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(logits_of(other), tuned)


@each_pair
def test_the_forecast_counts_what_is_trained(kind: str, name: str) -> None:
    lm, _, config = prepared(kind, name)
    forecast = ll.budget(lm.model, config, batch_size=1, sequence_length=8)
    adapter = ll.attach(lm.model, config)
    counted = sum(p.numel() for p in lm.model.parameters() if p.requires_grad)
    assert forecast.parameters_trainable == adapter.trainable == counted
    assert forecast.adapted.gradients == 4 * counted


# These two take a third of a second each: one model of every pair has the one, one the other.


@each_on("gpt2", "roberta", "bart")
def test_the_dry_run_trains_as_many(kind: str, name: str) -> None:
    lm, _, config = prepared(kind, name)
    dry = ll.dry_run(lm.model, config, batch_size=1, sequence_length=8)
    assert dry.gradients == 4 * ll.attach(lm.model, config).trainable


@each_on("llama", "bert", "t5")
def test_a_run_trains_it(kind: str, name: str, tmp_path: Path) -> None:
    lm, _, config = prepared(kind, name)
    weights = {key: p.detach().clone() for key, p in lm.model.named_parameters()}
    task = tiny_classes(8, 2) if kind in ("bert", "roberta") else tiny_task(8, 2)
    run = ll.train(
        lm,
        task,
        config,
        output_dir=tmp_path,
        max_steps=2,
        max_length=32,
        per_device_train_batch_size=2,
        eval_examples=0,
        save_steps=0,
    )
    result = run.result(120)
    assert run.snapshot.step == 2
    tuned = logits_of(lm.model.eval())
    ll.detach(lm.model)
    assert all(torch.equal(p, weights[key]) for key, p in lm.model.named_parameters())
    ll.load_adapter(lm.model, result.adapter_folder)
    torch.testing.assert_close(logits_of(lm.model), tuned, rtol=1e-4, atol=1e-5)
