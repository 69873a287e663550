"""Modules trained whole: PEFT's behaviour, given back bit for bit, beside others' LoRA."""

import copy
import warnings

import pytest
import torch
import transformers
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from tests.helpers.lora_outputs import outputs
from tests.helpers.peft_files import peft_model, settings_of, tensors_of
from tests.helpers.tiny_models import tiny, tiny_inputs


def config(**changes):
    fields = {"r": 2, "target_modules": ["q"], "modules_to_save": ["classifier"]}
    return ll.LoraConfig(**{**fields, "init_lora_weights": False, **changes})


def stir(adapter):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_the_copy_starts_as_the_module_and_alone_is_trained():
    model = tiny("roberta")
    batch, before = tiny_inputs(model), outputs(tiny("roberta"), tiny_inputs(model))
    adapter = ll.attach(model, config(init_lora_weights=True))
    assert torch.equal(outputs(model, batch), before)
    head = sum(p.numel() for p in tiny("roberta").classifier.parameters())
    lora = sum(site.A.numel() + site.B.numel() for site in adapter.sites.values())
    assert adapter.trainable == lora + head
    model(**batch).logits.sum().backward()
    trained = set(map(id, adapter.parameters()))
    for parameter in model.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (id(parameter) in trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_merging_and_detaching(name, dtype):
    model = tiny(name).to(dtype)
    batch = tiny_inputs(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    kinds, flags = [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    bare = outputs(model, batch)
    adapter = ll.attach(model, config())
    assert all(p.dtype == torch.float32 for p in adapter.parameters()), "masters are float32"
    stir(adapter)
    adapted = outputs(model, batch)
    assert not torch.allclose(adapted, bare, atol=1e-2)
    ll.activate(model, None)
    assert torch.equal(outputs(model, batch), bare)
    ll.activate(model, "default")
    for _ in range(2):
        ll.merge(model)
        # What computes is the master cast down, so the head is the merged one bit for bit; W₀ + ΔW
        # is rounded once where the adapted model adds two rounded products.
        for key, own in adapter.saved.state():
            assert torch.equal(model.state_dict()[key], own.to(dtype))
        tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
        torch.testing.assert_close(outputs(model, batch), adapted, rtol=0, atol=tolerance)
        ll.unmerge(model)
    assert torch.equal(outputs(model, batch), adapted)
    ll.merge(model)
    ll.detach(model)
    assert [type(m) for m in model.modules()] == kinds
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("name", ["roberta", "bert", "distilbert", "vit"])
def test_a_classifier_reaches_peft_and_comes_back(name, tmp_path):
    model = tiny(name).double()
    batch = tiny_inputs(model)
    bare, twin = copy.deepcopy(model), copy.deepcopy(model)
    adapter = ll.attach(model, config())
    stir(adapter)
    y = outputs(model, batch)
    ll.save_adapter(model, tmp_path)
    settings = settings_of(tmp_path)
    assert settings["modules_to_save"] == ["classifier"]
    assert settings["task_type"] == (None if name == "vit" else "SEQ_CLS")
    assert "base_model.model.classifier" in " ".join(tensors_of(tmp_path))
    theirs = peft_model(bare, tmp_path)
    torch.testing.assert_close(outputs(theirs, batch), y, rtol=1e-9, atol=1e-9)
    loaded = ll.load_adapter(twin, tmp_path)
    torch.testing.assert_close(outputs(twin, batch), y, rtol=1e-9, atol=1e-9)
    # DistilBERT: PEFT takes "pre_classifier" too, which nobody trained.
    assert list(loaded.saved.copies) == ["classifier"]
    assert loaded.trainable == adapter.trainable


def test_gradients_are_pefts(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = tiny("bert").double()
    fields = {"r": 2, "target_modules": ["query"], "modules_to_save": ["pooler", "classifier"]}
    theirs = get_peft_model(copy.deepcopy(model), LoraConfig(**fields, task_type=None))
    adapter = ll.attach(model, ll.LoraConfig(**fields))
    batch = tiny_inputs(model)
    (model(**batch).logits ** 2).sum().backward()
    (theirs(**batch).logits ** 2).sum().backward()
    for path, own in adapter.saved.copies.items():
        wrapper = theirs.base_model.model.get_submodule(path)
        for one, other in zip(
            own.parameters(), wrapper.modules_to_save["default"].parameters(), strict=True
        ):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3))

    def forward(self, x):
        return self.head(self.body(x))


def head_model():
    torch.manual_seed(0)
    return Head().double().eval()


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).double()


def head_config(**changes):
    return config(target_modules=["body"], modules_to_save=["head"], **changes)


def test_a_sequential_is_taken_apart_and_buffers_are_learnt_and_given_back(tmp_path):
    model, twin = head_model(), head_model()
    before, state = model(X), copy.deepcopy(model.state_dict())
    adapter = ll.attach(model, head_config())
    assert list(adapter.saved.copies) == ["head.0", "head.2", "head.3"]
    assert len(model.head) == 4
    stir(adapter)
    model.train()
    model(X)
    model.eval()
    assert adapter.saved.copies["head.2"].num_batches_tracked == 1
    assert torch.equal(model.head[2].running_mean, state["head.2.running_mean"])
    y = model(X)
    ll.load_adapter(twin, ll.save_adapter(model, tmp_path))
    torch.testing.assert_close(twin(X), y, rtol=1e-12, atol=1e-12)
    ll.merge(model)
    torch.testing.assert_close(model(X), y, rtol=1e-9, atol=1e-9)
    ll.detach(model)
    assert torch.equal(model(X), before)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("first_off", ["a", "b"])
def test_one_adapter_trains_whole_what_another_has_factors_on(order, first_off):
    model = tiny("bert").double()
    batch, kinds = tiny_inputs(model), [type(m) for m in model.modules()]
    bare = outputs(model, batch)
    alone = {}
    # A layer with a copy beside it adds the update in steps of its own: seen on an Intel processor.
    one_rounding = {"rtol": 1e-15, "atol": 1e-15}
    configs = {"a": config(), "b": config(target_modules=["classifier"], modules_to_save=None)}
    for name in order:
        torch.manual_seed(ord(name))
        stir(ll.attach(model, configs[name], name))
        alone[name] = outputs(model, batch)
    for name in "ab":
        ll.activate(model, name)
        torch.testing.assert_close(outputs(model, batch), alone[name], **one_rounding)
    other = "b" if first_off == "a" else "a"
    ll.detach(model, first_off)
    ll.activate(model, other)
    torch.testing.assert_close(outputs(model, batch), alone[other], **one_rounding)
    ll.merge(model)
    torch.testing.assert_close(outputs(model, batch), alone[other], rtol=1e-7, atol=1e-7)
    ll.detach(model)
    assert torch.equal(outputs(model, batch), bare)
    assert [type(m) for m in model.modules()] == kinds


def test_samples_of_one_batch_have_their_own_heads():
    model = tiny("roberta").double()
    batch = tiny_inputs(model, batch=4)
    for seed, name in enumerate(("keys", "b")):  # any name will do
        torch.manual_seed(seed)
        stir(ll.attach(model, config(), name))
        with torch.no_grad():
            for parameter in ll.attached(model)[name].parameters():
                parameter.mul_(1 + seed)
    names = ["keys", None, "b", "keys"]
    expected = []
    for row, name in enumerate(names):
        ll.activate(model, name)
        expected.append(outputs(model, {k: v[row : row + 1] for k, v in batch.items()}))
    with ll.mixed_batch(model, names):
        y = outputs(model, batch)
    torch.testing.assert_close(y, torch.cat(expected), rtol=1e-9, atol=1e-9)


def test_what_is_trained_whole_gets_no_factors_and_is_no_site():
    model = tiny("roberta")
    sites = [site.name for site in ll.anatomy(model).sites]
    adapter = ll.attach(model, config(target_modules=["dense"]))
    assert adapter.sites
    assert not any(name.startswith("classifier") for name in adapter.sites)
    assert [site.name for site in ll.anatomy(model).sites] == sites
    assert ll.anatomy(model).parameters == ll.anatomy(tiny("roberta")).parameters
    with pytest.raises(ConfigError, match="every target lies within modules_to_save"):
        ll.attach(model, config(target_modules=["classifier.dense"]))


def test_a_model_with_copies_can_be_copied():
    model = tiny("bert").double()
    batch = tiny_inputs(model)
    adapter = ll.attach(model, config())
    stir(adapter)
    y = outputs(model, batch)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.zero_()
    assert torch.equal(outputs(twin, batch), y)
    ll.activate(model, None)
    assert torch.equal(outputs(twin, batch), y)


def test_tied_weights_named_at_both_ends_are_trained_as_one(tmp_path):
    model = tiny("smollm").double()
    bare, twin, batch = copy.deepcopy(model), copy.deepcopy(model), tiny_inputs(model)
    adapter = ll.attach(model, config(modules_to_save=["embed_tokens", "lm_head"]))
    own = adapter.saved.copies
    assert own["model.embed_tokens"].weight is own["lm_head"].weight
    whole = [p for p in adapter.parameters() if p.shape == own["lm_head"].weight.shape]
    assert len(whole) == 1
    stir(adapter)
    y = outputs(model, batch)
    ll.save_adapter(model, tmp_path)
    ll.load_adapter(twin, tmp_path)
    torch.testing.assert_close(outputs(twin, batch), y, rtol=1e-9, atol=1e-9)
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(bare, tmp_path)
    torch.testing.assert_close(outputs(theirs, batch), y, rtol=1e-9, atol=1e-9)
    ll.merge(model)
    torch.testing.assert_close(outputs(model, batch), y, rtol=1e-9, atol=1e-9)
    ll.detach(model)
    assert all(
        torch.equal(v, tiny("smollm").double().state_dict()[k])
        for k, v in model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("name", "saved", "tying", "merges"),
    [
        ("smollm", ["embed_tokens", "lm_head"], False, False),
        ("smollm", ["embed_tokens", "lm_head"], True, True),
        ("smollm", ["embed_tokens"], True, True),
        ("smollm", ["embed_tokens"], False, False),
        ("smollm", ["lm_head"], False, False),
        ("gpt2-lm", ["wte", "lm_head"], False, False),
        ("t5", ["shared", "embed_tokens", "lm_head"], False, False),
        ("t5", ["lm_head"], False, False),
    ],
)
def test_two_values_of_one_tensor_are_pefts_and_not_merged(name, saved, tying, merges, tmp_path):
    import peft

    target = {"smollm": "q_proj", "gpt2-lm": "c_attn", "t5": "q"}[name]
    options = {"modules_to_save": list(saved), "ensure_weight_tying": tying}
    theirs = peft.get_peft_model(
        tied(name), peft.LoraConfig(r=2, target_modules=[target], **options)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    model = tied(name)
    before, batch = copy.deepcopy(model.state_dict()), tiny_inputs(model)
    y = outputs(theirs, batch)
    ll.load_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(outputs(model, batch), y, rtol=1e-9, atol=1e-9)
    ll.save_adapter(model, tmp_path / "ours")
    for load in (ll.load_adapter, lambda m, folder: peft.PeftModel.from_pretrained(m, folder)):
        again = tied(name)
        loaded = load(again, tmp_path / "ours")
        again = loaded if isinstance(loaded, nn.Module) else again
        torch.testing.assert_close(outputs(again, batch), y, rtol=1e-9, atol=1e-9)
    if merges:
        ll.merge(model)
        torch.testing.assert_close(outputs(model, batch), y, rtol=1e-9, atol=1e-9)
    else:
        line = r"are one tensor \(tied weights\), which cannot hold the two values"
        with pytest.raises(AdapterError, match=line):
            ll.merge(model)
        with pytest.raises(AdapterError, match=line):
            ll.export_merged(model, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
        torch.testing.assert_close(outputs(model, batch), y, rtol=1e-9, atol=1e-9)
    ll.detach(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def tied(name):
    torch.manual_seed(0)
    if name != "gpt2-lm":
        return tiny(name).double()
    sizes = {"vocab_size": 96, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).double()


def test_an_embedding_has_factors_and_the_output_layer_tied_to_it_is_trained_whole(tmp_path):
    import peft

    model, batch = tied("smollm"), tiny_inputs(tied("smollm"))
    with pytest.warns(UserWarning, match=r"lm_head\.weight is model\.embed_tokens\.weight too"):
        adapter = ll.attach(
            model, config(target_modules=["embed_tokens"], modules_to_save=["lm_head"])
        )
    stir(adapter)
    y = outputs(model, batch)
    ll.save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tied("smollm"), tmp_path)
    torch.testing.assert_close(outputs(theirs, batch), y, rtol=1e-9, atol=1e-9)
    again = tied("smollm")
    ll.load_adapter(again, tmp_path)
    torch.testing.assert_close(outputs(again, batch), y, rtol=1e-9, atol=1e-9)
    with pytest.raises(AdapterError, match="are one tensor"):
        ll.merge(model)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (["clasifier"], "'clasifier' names no module; at the top this model has bert, classifier"),
        (["dropout"], "'dropout' has no parameters"),
    ],
)
def test_a_name_without_a_module_is_refused(saved, message):
    with pytest.raises(ConfigError, match=message):
        ll.attach(tiny("bert"), config(modules_to_save=saved))


@pytest.mark.parametrize("kind", [ll.LoraConfig, ll.IA3Config, ll.OFTConfig])
@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("llama", ["lm_head"]),
        ("llama", ["norm", "layers.1"]),
        ("smollm", ["lm_head"]),  # its weight is the embedding's
        ("smollm", ["embed_tokens", "lm_head"]),
        ("bert", ["classifier"]),
        ("bert", ["classifier", "pooler"]),
    ],
)
def test_what_is_trained_whole_is_in_the_price(kind, name, saved):
    model = tiny(name) if name != "smollm" else tied(name)
    targets = {"target_modules": ["q"] if name == "bert" else ["layers.0.self_attn.q_proj"]}
    bare, beside = kind(**targets), kind(**targets, modules_to_save=saved)
    own = ll.budget(model, beside)
    alone = ll.budget(model, bare).parameters_trainable
    with warnings.catch_warnings(action="ignore"):  # of one end of two
        adapter = ll.attach(model, beside)
    trained = sum(p.numel() for p in dict.fromkeys(adapter.parameters()))
    assert own.parameters_trainable == trained > alone


def test_sums_refuse_modules_trained_whole():
    model = tiny("bert")
    ll.attach(model, config(), "a")
    with pytest.raises(AdapterError, match="merge it into the weights instead"):
        ll.combine(model, {"a": 1.0}, "sum")
