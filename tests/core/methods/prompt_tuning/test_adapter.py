"""PreEmbed and PreLayer against learned tokens put around prompts by hand, and against peft."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import lora_lab as ll
from lora_lab.budget import budget
from lora_lab.budget.dry_run import dry_run
from lora_lab.checkpoint import load_adapter, save_adapter
from lora_lab.configs import LoraConfig, PrefixEmbedConfig, PrefixLayerConfig
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.combination import Combination
from lora_lab.methods.prompt_tuning.adapter import PrefixAdapter, learned_tokens
from tests.helpers.plain_prompts import INFIX, PREFIX, ROWS, batch, blocks_of, padded, read_at, run
from tests.helpers.tiny_models import ARCHITECTURES, VOCABULARY, tiny, tiny_inputs

EMBED = PrefixEmbedConfig(prefix_length=PREFIX, infix_length=INFIX)
LAYER = PrefixLayerConfig(prefix_length=PREFIX, infix_length=INFIX)
BOTH = pytest.mark.parametrize("config", [EMBED, LAYER], ids=["embed", "layer"])
CAUSAL = [
    *(
        n
        for n in ARCHITECTURES
        if n.startswith(("gpt", "llama", "smol", "mistral", "qwen", "gemma"))
    ),
    *("phi3", "bloom", "falcon-grouped", "falcon-multi-query", "falcon-interleaved", "opt"),
    *("openai-gpt", "persimmon", "bigcode"),
]
# Their own attention has no finite mask in float64: the base's logits of pads are NaN.
PADS_NEED_FLOAT32 = {"gemma2", "bloom"}


def adapted(
    model: nn.Module, config: Any, name: str = "default"
) -> tuple[PrefixAdapter, list[Tensor]]:
    """Attach with random tokens; return the adapter and leaf copies of them."""
    adapter = ll.attach(model, config, name)
    assert isinstance(adapter, PrefixAdapter)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=generator)
    return adapter, [p.detach().clone().requires_grad_() for p in adapter.parameters()]


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, each place predicting the next; in the logits' dtype."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


# Decoders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
@BOTH
@pytest.mark.parametrize("name", CAUSAL)
def test_rows_of_a_batch_are_read_as_by_themselves(name: str, config: Any, left: bool) -> None:
    """Logits and gradients of a ragged batch against every row alone, unpadded."""
    dtype = torch.float32 if left and name in PADS_NEED_FLOAT32 else torch.float64
    tolerance = (
        {"atol": 2e-5, "rtol": 2e-4} if dtype == torch.float32 else {"atol": 1e-10, "rtol": 0}
    )
    model = tiny(name).to(dtype)
    adapter, learned = adapted(model, config)
    inputs = batch(left)
    mask, labels = inputs["attention_mask"], inputs["labels"]
    if left and "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(1) - 1) * mask  # as generate() gives them
    logits = model(**inputs).logits
    assert logits.shape[:2] == mask.shape
    token_loss(logits, labels).backward()

    ll.activate(model, None)
    total = torch.zeros((), dtype=dtype)
    for row, (prompt, answer) in enumerate(ROWS):
        own = run(model, learned, prompt, answer).logits[0, read_at(len(prompt), len(answer))]
        torch.testing.assert_close(logits[row][mask[row] == 1], own, **tolerance)
        predicted = own[len(prompt) - 1 : -1]
        total = total + F.cross_entropy(predicted, torch.tensor(answer), reduction="sum")
    (total / sum(len(answer) for _, answer in ROWS)).backward()
    for parameter, leaf in zip(adapter.parameters(), learned, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.abs().sum(1).all()  # every one of the tokens matters
        torch.testing.assert_close(parameter.grad, leaf.grad, **tolerance)


@BOTH
def test_only_prefix_or_only_infix(config: Any) -> None:
    model = tiny("llama").double()
    for changes in ({"prefix_length": 0}, {"infix_length": 0}):
        own = config.replace(**changes)
        adapter, learned = adapted(model, own)
        logits = model(**batch()).logits
        ll.activate(model, None)
        for row, (prompt, answer) in enumerate(ROWS):
            at = read_at(len(prompt), len(answer), own.prefix_length, own.infix_length)
            alone = run(model, learned, prompt, answer, own.infix_length).logits[0, at]
            torch.testing.assert_close(logits[row, : len(at)], alone, atol=1e-10, rtol=0)
        ll.detach(model)
        assert adapter.tokens == own.tokens


@BOTH
def test_without_labels_the_whole_input_is_the_prompt(config: Any) -> None:
    model = tiny("gpt2").double()
    _, learned = adapted(model, config)
    logits = model(input_ids=torch.tensor([[4, 5, 6]])).logits
    ll.activate(model, None)
    alone = run(model, learned, [4, 5, 6]).logits[0, read_at(3, 0)]
    torch.testing.assert_close(logits[0], alone, atol=1e-10, rtol=0)


def test_a_causal_classifier_reads_the_last_infix_token() -> None:
    model = (
        transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=64,
                pad_token_id=0,
            )
        )
        .eval()
        .double()
    )
    _, learned = adapted(model, EMBED)
    inputs = batch()
    classes = torch.tensor([0, 1, 1])
    output = model(inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=classes)
    ll.activate(model, None)
    for row, (prompt, answer) in enumerate(ROWS):
        text = [*prompt, *answer]
        hidden = run(model.transformer, learned, text).last_hidden_state[0, -1]
        torch.testing.assert_close(output.logits[row], model.score(hidden), atol=1e-10, rtol=0)


def test_hidden_states_lose_the_learned_places_too() -> None:
    model = tiny("llama")
    adapted(model, LAYER)
    output = model(**batch(), output_hidden_states=True)
    assert {state.shape[1] for state in output.hidden_states} == {8}
    as_tuple = model(**batch(), return_dict=False)
    assert torch.equal(as_tuple[1], output.logits)


# Encoders -----------------------------------------------------------------------------------------

HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "bert": lambda m, h: m.classifier(m.bert.pooler(h)),
    "roberta": lambda m, h: m.classifier(h),
    "deberta-v2": lambda m, h: m.classifier(m.pooler(h)),
    "distilbert": lambda m, h: m.classifier(m.pre_classifier(h[:, 0]).relu()),
    "modernbert": lambda m, h: m.decoder(m.head(h)),
    "deberta": lambda m, h: m.classifier(m.pooler(h)),
}


@BOTH
@pytest.mark.parametrize("name", HEADS)
def test_an_encoders_head_sees_the_places_that_it_knows(name: str, config: Any) -> None:
    model = tiny(name).double()
    adapter, learned = adapted(model, config)
    inputs = batch()
    logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    logits.pow(2).mean().backward() if name != "modernbert" else logits[:, 0].pow(
        2
    ).mean().backward()
    ll.activate(model, None)
    expected = []
    for row, (prompt, answer) in enumerate(ROWS):
        text = [*prompt, *answer]
        hidden = run(model.base_model, learned, text)[0][:, PREFIX : PREFIX + len(text)]
        own = HEADS[name](model, hidden)
        got = logits[row : row + 1] if own.dim() == 2 else logits[row : row + 1, : len(text)]
        torch.testing.assert_close(got, own, atol=1e-10, rtol=0)
        expected.append(own if own.dim() == 2 else own[:, 0])
    torch.cat(expected).pow(2).mean().backward()
    for parameter, leaf in zip(adapter.parameters(), learned, strict=True):
        torch.testing.assert_close(parameter.grad, leaf.grad, atol=1e-10, rtol=0)


def test_labels_of_an_encoders_tokens_are_no_completion() -> None:
    model = tiny("modernbert")
    adapted(model, EMBED)
    inputs = batch()
    with_labels = model(**inputs).logits
    inputs.pop("labels")
    assert torch.equal(model(**inputs).logits, with_labels)


def test_left_pads_do_not_change_robertas_positions() -> None:
    """It counts them from its pad token on, and only where it is given ids."""
    model = tiny("roberta").double()
    adapted(model, EMBED)
    right, left = batch(), batch(left=True)
    outputs = [
        model.roberta(b["input_ids"], attention_mask=b["attention_mask"])[0][
            b["attention_mask"] == 1
        ]
        for b in (right, left)
    ]
    torch.testing.assert_close(*outputs, atol=1e-10, rtol=0)


def test_learned_tokens_belong_to_their_neighbours_segments() -> None:
    model = tiny("bert").double()
    _, learned = adapted(model, EMBED)
    ids, types = torch.tensor([[4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1]])
    logits = model(ids, token_type_ids=types).logits
    ll.activate(model, None)
    segments = torch.tensor([[0] * PREFIX + [0, 0, 1, 1] + [1] * INFIX])
    hidden = run(model.bert, learned, ids[0].tolist(), token_type_ids=segments)[0]
    own = HEADS["bert"](model, hidden[:, PREFIX : PREFIX + 4])
    torch.testing.assert_close(logits, own, atol=1e-10, rtol=0)


# Encoder-decoder models ---------------------------------------------------------------------------


def tiny_bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


SEQ2SEQ: dict[str, Callable[[], Any]] = {
    "t5": lambda: tiny("t5"),
    "t5-gated": lambda: tiny("t5-gated"),
    "bart": tiny_bart,
}


@BOTH
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_a_decoder_attends_to_what_the_encoder_learned(name: str, config: Any) -> None:
    model = SEQ2SEQ[name]().double()
    adapter, learned = adapted(model, config)
    labels = padded([answer for _, answer in ROWS], -100)
    ids, mask = padded([p for p, _ in ROWS], 0), padded([[1] * len(p) for p, _ in ROWS], 0)
    logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
    F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    ll.activate(model, None)
    total = torch.zeros((), dtype=torch.float64)
    for row, (prompt, answer) in enumerate(ROWS):
        own = run(model, learned, prompt, labels=torch.tensor([answer])).logits[0]
        torch.testing.assert_close(logits[row, : len(answer)], own, atol=1e-10, rtol=0)
        total = total + F.cross_entropy(own, torch.tensor(answer), reduction="sum")
    (total / sum(len(answer) for _, answer in ROWS)).backward()
    for parameter, leaf in zip(adapter.parameters(), learned, strict=True):
        torch.testing.assert_close(parameter.grad, leaf.grad, atol=1e-10, rtol=0)


# peft's prompt tuning is PreEmbed without an infix ------------------------------------------------


def peft_model(base: nn.Module, task: str, tokens: Tensor) -> Any:
    config = peft.PromptTuningConfig(
        task_type=task, num_virtual_tokens=len(tokens), num_transformer_submodules=1
    )
    wrapped = peft.get_peft_model(base, config).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(tokens)
    return wrapped


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bloom", "gpt-neox"])
def test_prompt_tuning_is_pre_embed_without_an_infix(name: str) -> None:
    # peft takes words to be as wide as the blocks.
    changes = {"word_embed_proj_dim": 32} if name == "opt" else {}
    model, base = tiny(name, **changes), tiny(name, **changes)
    adapter, learned = adapted(model, EMBED.replace(infix_length=0))
    other = peft_model(base, "CAUSAL_LM", learned[0])
    inputs = batch()
    ours, theirs = model(**inputs), other(**inputs)
    real = inputs["attention_mask"] == 1
    shorter = theirs.logits[:, PREFIX:]
    torch.testing.assert_close(ours.logits[real], shorter[real], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss)
    ours.loss.backward()
    theirs.loss.backward()
    (parameter,) = adapter.parameters()
    expected = other.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)


def test_prompt_tuning_of_t5_is_pre_embed_without_an_infix() -> None:
    # generate()'s cache wants as many blocks in the decoder as in the encoder.
    model, base = tiny("t5", num_decoder_layers=2), tiny("t5", num_decoder_layers=2)
    adapter, learned = adapted(model, EMBED.replace(infix_length=0))
    other = peft_model(base, "SEQ_2_SEQ_LM", learned[0])
    inputs = {
        "input_ids": padded([p for p, _ in ROWS], 0),
        "attention_mask": padded([[1] * len(p) for p, _ in ROWS], 0),
        "labels": padded([a for _, a in ROWS], -100),
    }
    ours, theirs = model(**inputs), other(**inputs)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss)
    ours.loss.backward()
    theirs.loss.backward()
    (parameter,) = adapter.parameters()
    expected = other.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)
    for beams in (1, 3):
        options = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False}
        inputs.pop("labels", None)
        assert torch.equal(model.generate(**inputs, **options), other.generate(**inputs, **options))


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
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_gradient_checkpointing_changes_no_gradient(name: str, config: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny(name, **({"dropout_rate": 0.0} if name == "t5" else {})).double()
        adapter, _ = adapted(model, config)
        model.train()
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        if checkpointing:
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
