"""PreEmbed and PreLayer through every call of the API: starts, counts, refusals."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

import lora_lab as ll
from lora_lab.budget import budget
from lora_lab.budget.dry_run import dry_run
from lora_lab.checkpoint import load_adapter, save_adapter
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.attached import attached_adapters
from lora_lab.methods.combination import Combination
from lora_lab.methods.prompt_tuning.adapter import learned_tokens
from tests.helpers.learned_tokens import BOTH, CAUSAL, EMBED, HEADS, LAYER, adapted
from tests.helpers.plain_prompts import INFIX, PREFIX, ROWS, batch, blocks_of, read_at, run
from tests.helpers.tiny_models import VOCABULARY, tiny, tiny_inputs

# How they start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma", "bert", "t5"])
def test_pre_embed_starts_from_words_of_the_vocabulary(name: str) -> None:
    model = tiny(name)
    torch.manual_seed(5)
    adapter = ll.attach(model, EMBED)
    (tokens,) = adapter.parameters()
    words = model.get_input_embeddings()(torch.arange(VOCABULARY))
    assert all((words == token).all(1).any() for token in tokens)
    torch.manual_seed(5)
    (again,) = ll.attach(model, EMBED, "again").parameters()
    assert torch.equal(tokens, again)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "gpt-neox"])
def test_pre_layer_starts_as_the_model_that_pre_embed_starts_as(name: str) -> None:
    model = tiny(name).double().train()
    logits = []
    for config in (EMBED, LAYER):
        torch.manual_seed(5)
        ll.attach(model, config.replace(infix_length=0))
        model.eval()
        logits.append(model(**batch()).logits)
        model.train()
        ll.detach(model)
    torch.testing.assert_close(*logits, atol=1e-10, rtol=0)
    assert all(part.training for part in model.modules())


def test_the_start_is_the_base_models_own_whatever_is_attached() -> None:
    model = tiny("llama")
    starts = []
    for _ in range(2):
        torch.manual_seed(5)
        adapter = ll.attach(model, LAYER, "tokens")
        starts.append(adapter.snapshot())
        ll.detach(model)
        factors = ll.attach(model, LoraConfig(r=2), "lora")
        with torch.no_grad():
            for parameter in factors.parameters():
                parameter.normal_()
    assert all(map(torch.equal, *starts))
    assert ll.attached(model)["lora"] is not None


# Counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CAUSAL, *(n for n in HEADS if n != "deberta"), "t5", "t5-gated"])
def test_counts_are_the_papers_and_the_budgets(name: str) -> None:
    model = tiny(name)
    width = model.get_input_embeddings().embedding_dim
    layers = len(blocks_of(model))
    for config, expected in (
        (EMBED, width * (PREFIX + INFIX)),
        (LAYER, layers * 32 * (PREFIX + INFIX)),
    ):
        priced = budget(model, config, sequence_length=16).parameters_trainable
        adapter = ll.attach(model, config)
        assert adapter.trainable == priced == expected
        assert len(adapter.parameters_by_location()) == (1 if config is EMBED else layers)
        ll.detach(model)


@BOTH
def test_a_dry_run_takes_a_step(config: Any) -> None:
    model = tiny("llama")
    found = dry_run(model, config, batch_size=2, sequence_length=8)
    assert found.gradients == 4 * budget(model, config, sequence_length=8).parameters_trainable


@BOTH
def test_a_model_without_weights_takes_them(config: Any) -> None:
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(tiny("llama").config)
    adapter = ll.attach(model, config)
    assert all(p.is_meta for p in adapter.parameters())


# The verbs ----------------------------------------------------------------------------------------


def traces(model: nn.Module) -> dict[str, list[str]]:
    """All that a module can have been left: attributes, children, hooks."""
    found = {}
    for path, part in model.named_modules():
        hooks = [f"{k} {list(v)}" for k, v in vars(part).items() if "hooks" in k and v]
        found[path] = [*sorted(vars(part)), *part._modules, *hooks, *map(str, part._parameters)]
    return found


@BOTH
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
@torch.no_grad()
def test_detach_leaves_nothing(name: str, config: Any) -> None:
    model = tiny(name)
    inputs = tiny_inputs(model, batch=2)
    before, places = model(**inputs).logits, traces(model)
    adapted(model, config, "one")
    adapted(model, config, "two")
    assert not torch.equal(model(**inputs).logits, before)
    ll.activate(model, None)
    assert torch.equal(model(**inputs).logits, before)
    ll.detach(model, "one")
    ll.detach(model, "two")
    assert traces(model) == places
    assert torch.equal(model(**inputs).logits, before)


def test_two_are_switched_between() -> None:
    model = tiny("llama")
    inputs = batch()
    alone = {}
    for name, config in {"one": EMBED, "two": LAYER}.items():
        adapted(model, config, name)
        alone[name] = model(**inputs).logits
        assert learned_tokens(model) == PREFIX + INFIX
    assert not torch.equal(alone["one"], alone["two"])
    for name in ("one", "two", "one"):
        ll.activate(model, name)
        assert torch.equal(model(**inputs).logits, alone[name])
    ll.activate(model, None)
    assert learned_tokens(model) == 0


@BOTH
def test_with_lora_it_is_the_lora_model_with_tokens(config: Any) -> None:
    """LoRA + PE and LoRA + PL: the oracle runs on a model with that LoRA alone."""
    model = tiny("llama").double()
    adapter = ll.attach(model, [LoraConfig(r=2, target_modules=["q", "v"]), config])
    assert isinstance(adapter, Combination)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.3)
    assert learned_tokens(model) == PREFIX + INFIX
    logits = model(**batch()).logits
    lora, tokens = adapter.adapters
    learned = [p.detach() for p in tokens.parameters()]
    other = tiny("llama").double()
    ll.attach(other, lora.config).restore(lora.snapshot())
    for row, (prompt, answer) in enumerate(ROWS):
        at = read_at(len(prompt), len(answer))
        own = run(other, learned, prompt, answer).logits[0, at]
        torch.testing.assert_close(logits[row, : len(at)], own, atol=1e-10, rtol=0)


@pytest.mark.parametrize("also", [None, LoraConfig(r=2)], ids=["alone", "with-lora"])
@BOTH
def test_saved_and_loaded_it_is_the_same(tmp_path: Any, config: Any, also: Any) -> None:
    model, other = tiny("llama"), tiny("llama")
    adapter = ll.attach(model, [also, config] if also else config)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    save_adapter(model, tmp_path / "it")
    load_adapter(other, tmp_path / "it")
    assert torch.equal(other(**batch()).logits, model(**batch()).logits)


@BOTH
def test_merging_is_refused(config: Any) -> None:
    model = tiny("llama")
    adapted(model, config)
    logits = model(**batch()).logits
    with pytest.raises(AdapterError, match=f"{config.method} cannot be merged"):
        ll.merge(model)
    assert torch.equal(model(**batch()).logits, logits)


# While it is trained ------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("around_hooks", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_gradient_checkpointing_changes_no_gradient(
    name: str, around_hooks: bool, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny(name, **({"dropout_rate": 0.0} if name == "t5" else {})).double()
        adapter, _ = adapted(model, config)
        model.train()
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        without_cache(model)
        if checkpointing and around_hooks:
            for kind in {type(block) for block in blocks_of(model)}:
                monkeypatch.setattr(kind, "__call__", computed_again)
        elif checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        inputs = batch()
        if name == "bert":
            inputs["labels"] = torch.tensor([0, 1, 0])
        fewer = {key: value[1:].clone() for key, value in inputs.items()}
        (model(**inputs).loss + model(**fewer).loss).backward()  # two layouts, both still needed
        gradients.append([p.grad.clone() for p in adapter.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-10, rtol=0)


def without_cache(model: nn.Module) -> None:
    for part in model.modules():
        if hasattr(getattr(part, "config", None), "use_cache"):
            part.config.use_cache = False


def computed_again(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A call of a block with its hooks, as transformers 5.17 and `checkpoint_wrapper` have it."""
    run = functools.partial(nn.Module.__call__, block, **kwargs)
    return checkpoint(run, *args, use_reentrant=False)


@BOTH
def test_masters_are_float32_over_a_bfloat16_base(config: Any) -> None:
    model = tiny("llama").bfloat16()
    adapter, _ = adapted(model, config)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    output = model(**batch())
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())


@BOTH
def test_autocast(config: Any) -> None:
    model = tiny("llama")
    adapter, _ = adapted(model, config)
    exact = model(**batch()).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch()).loss
    loss.backward()
    torch.testing.assert_close(loss, exact, atol=0.1, rtol=0)
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())


@BOTH
def test_a_copy_of_the_model_is_its_own(config: Any) -> None:
    model = tiny("llama")
    adapter, _ = adapted(model, config)
    before = model(**batch()).logits
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.zero_()
    assert torch.equal(twin(**batch()).logits, before)


# Bad input ----------------------------------------------------------------------------------------


@BOTH
def test_more_tokens_than_positions_are_refused_before_anything_is_changed(config: Any) -> None:
    model = tiny("gpt2")
    places = traces(model)
    with pytest.raises(ConfigError, match=r"64 learned tokens .* the model's 64 positions"):
        ll.attach(model, config.replace(prefix_length=60, infix_length=4))
    assert traces(model) == places


@pytest.mark.parametrize(
    ("name", "most"), [("gpt2", 64), ("opt", 64), ("bert", 64), ("roberta", 63)]
)
def test_a_sequence_too_long_for_both_is_refused(name: str, most: int) -> None:
    model = tiny(name)
    adapted(model, EMBED)
    room = most - PREFIX - INFIX
    model(input_ids=torch.full((1, room), 7))
    with pytest.raises(
        AdapterError, match=f"5 learned tokens .* and {room + 1} others .* {most} pos"
    ):
        model(input_ids=torch.full((1, room + 1), 7))


@pytest.mark.parametrize(("name", "most"), [("bert", 64), ("roberta", 63)])
def test_attach_and_budget_know_the_same_positions(name: str, most: int) -> None:
    """RoBERTa counts from behind its padding token 0: the first of 64 positions is never used."""
    model = tiny(name)
    assert ll.anatomy(model).shape.max_positions == most
    assert ll.anatomy(model.config).shape.max_positions == most
    most_tokens = EMBED.replace(prefix_length=most - 2, infix_length=1)
    assert ll.budget(model, most_tokens, sequence_length=1).parameters_trainable == 32 * (most - 1)
    ll.attach(model, most_tokens)
    ll.detach(model)
    too_many = EMBED.replace(prefix_length=most - 1, infix_length=1)
    for refused in (
        lambda: ll.attach(model, too_many),
        lambda: ll.budget(model, too_many, sequence_length=1),
    ):
        with pytest.raises(ConfigError, match=f"the model's {most} positions"):
            refused()


def test_models_with_rotary_or_relative_positions_go_on() -> None:
    for name in ("llama", "bloom"):
        model = tiny(name)
        adapted(model, EMBED)
        assert model(input_ids=torch.full((1, 70), 7)).logits.isfinite().all()


@BOTH
def test_a_model_without_words_is_refused(config: Any) -> None:
    with pytest.raises(ConfigError, match="needs word embeddings and this model has none"):
        ll.attach(tiny("vit"), config)
    with pytest.raises(ConfigError, match="needs word embeddings and this model has none"):
        ll.attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), config)


def test_two_kinds_of_learned_tokens_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="PreEmbed and PreLayer both claim the learned tokens"):
        ll.attach(tiny("llama"), [EMBED, LAYER])


def test_a_prepared_mask_is_refused() -> None:
    model = tiny("llama")
    adapted(model, EMBED)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(AdapterError, match=r"needs attention_mask of shape \(batch, length\)"):
        model(input_ids=torch.tensor([[4, 5, 6, 7]]), attention_mask=mask)


@BOTH
def test_more_tokens_than_there_is_memory_for_are_refused_before_any_is_made(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("t5")
    monkeypatch.setattr("lora_lab.methods.prompt_tuning.adapter._drawn_words", None)
    with pytest.raises(ConfigError, match="must be at most 1,000,000,000"):
        config.replace(prefix_length=10**10)
    with pytest.raises(AdapterError, match=r"learning 999,999,990 tokens by Pre.* takes"):
        ll.attach(model, config.replace(prefix_length=999_999_990, infix_length=0))
    assert attached_adapters(model) is None
