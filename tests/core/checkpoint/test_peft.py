"""Every variant to PEFT and back: the loaded model answers as the saved one does."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lora_lab as ll
from lora_lab.errors import LoraLabError
from tests.helpers.lora_outputs import outputs, stirred
from tests.helpers.peft_files import (
    EXACT,
    assert_changed,
    peft_model,
    peft_trained,
    random_config,
    settings_of,
    tensors_of,
)
from tests.helpers.tiny_models import tiny, tiny_inputs

VARIANTS = {
    "rslora": {"use_rslora": True, "rank_pattern": {"v": 5}},
    "dora": {"use_dora": True},
    "dora on some slices": {"use_dora": True, "target_modules": ["q", "v", "o"]},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, rslora": {"init_lora_weights": "pissa_niter_4", "use_rslora": True},
    "olora on some slices": {"init_lora_weights": "olora", "target_modules": ["k", "down"]},
    "lorafa": {"use_lorafa": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "falcon-grouped"])
def test_a_variant_reaches_peft_and_comes_back(name, variant, tmp_path):
    model = tiny(name).double()
    batch = tiny_inputs(model)
    bare, twin = copy.deepcopy(model), copy.deepcopy(model)
    before = outputs(model, batch)
    stirred(ll.attach(model, random_config(**VARIANTS[variant])))
    y = outputs(model, batch)
    assert_changed(y, before)
    ll.save_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(peft_model(bare, tmp_path), batch), y, **EXACT)
    ll.load_adapter(twin, tmp_path)
    torch.testing.assert_close(outputs(twin, batch), y, **EXACT)


def test_pissa_is_saved_for_the_base_as_it_was(tmp_path):
    model = tiny("llama").double()
    adapter = ll.attach(model, random_config(init_lora_weights="pissa", rank_pattern={"q": 2}))
    stirred(adapter)
    ll.save_adapter(model, tmp_path)
    settings = settings_of(tmp_path)
    assert settings["init_lora_weights"] is True
    assert settings["r"] == 6
    assert set(settings["rank_pattern"].values()) == {4}
    path = "model.layers.0.mlp.up_proj"
    site, tensors = adapter.sites[path], tensors_of(tmp_path)
    A, B = (tensors[f"base_model.model.{path}.lora_{part}.weight"] for part in "AB")
    A0, B0 = site.initial
    assert torch.equal(A, torch.cat([site.A, A0]))
    assert torch.equal(B, torch.cat([site.B, -B0], dim=1))
    twin = tiny("llama").double()
    loaded = ll.load_adapter(twin, tmp_path)
    assert loaded.sites[path].scale == pytest.approx(site.scale, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"target_modules": "all-linear", "use_rslora": True, "r": 5}),
        ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "r": 4}),
        ("gpt-neox", {"target_modules": ["query_key_value"], "use_dora": True}),
        ("falcon-grouped", {"target_modules": ["query_key_value"], "r": 20}),
        ("bert", {"target_modules": ["query", "classifier"], "r": 16}),
        ("bert", {"target_modules": ["query"], "modules_to_save": ["pooler", "classifier"]}),
        ("bert", {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
        ("distilbert", {"target_modules": ["q_lin"], "task_type": "SEQ_CLS"}),
        ("roberta", {"target_modules": "all-linear", "task_type": "SEQ_CLS"}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("gpt-neox", {"target_modules": ["embed_in", "query_key_value"], "use_rslora": True}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        ("vit", {"target_modules": ["projection", "q_proj"]}),
    ],
)
def test_what_peft_trains_is_loaded(name, fields, tmp_path):
    untied = {"tie_word_embeddings": False} if name == "llama" else {}
    model = tiny(name, **untied).double()
    batch = tiny_inputs(model)
    before = outputs(model, batch)
    theirs = peft_trained(model, tmp_path, **fields)
    ll.load_adapter(model, tmp_path)
    y = outputs(model, batch)
    assert_changed(y, before)
    torch.testing.assert_close(y, outputs(theirs, batch), **EXACT)
    ll.merge(model)
    torch.testing.assert_close(outputs(model, batch), y, rtol=1e-7, atol=1e-7)
    ll.detach(model)
    assert torch.equal(outputs(model, batch), before)


def test_pefts_adalora_is_loaded_as_plain_lora(tmp_path):
    from peft import AdaLoraConfig

    model = tiny("llama").double()
    batch = tiny_inputs(model)
    fields = {"init_r": 6, "target_r": 3, "total_step": 10, "target_modules": ["q_proj", "up_proj"]}
    theirs = peft_trained(model, tmp_path, kind=AdaLoraConfig, lora_alpha=5, **fields)
    adapter = ll.load_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(model, batch), outputs(theirs, batch), **EXACT)
    assert type(adapter.config) is ll.LoraConfig


class Nets(nn.Module):
    """An embedding and convolutions, some of them grouped."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(20, 6)
        self.conv1 = nn.Conv1d(6, 8, 3, padding=1, groups=2)
        self.conv2 = nn.Conv2d(8, 4, (1, 3), stride=(1, 2))
        self.conv3 = nn.Conv3d(4, 4, (1, 1, 2))
        self.out = nn.Linear(4, 3)

    def forward(self, ids):
        h = self.conv1(self.wte(ids).mT)
        h = self.conv3(self.conv2(h[:, :, None])[:, :, None])
        return self.out(h.mean((2, 3, 4)))


def nets():
    torch.manual_seed(0)
    return Nets().double()


IDS = torch.randint(0, 20, (2, 9), generator=torch.Generator().manual_seed(0))


def test_embeddings_and_convolutions_reach_peft_and_come_back(tmp_path):
    model = nets()
    bare, twin, before = copy.deepcopy(model), copy.deepcopy(model), model(IDS)
    targets = ["wte", "conv1", "conv2", "conv3", "out"]
    adapter = ll.attach(
        model, random_config(r=2, target_modules=targets, rank_pattern={"conv2": 3})
    )
    y = model(IDS)
    assert_changed(y, before)
    ll.save_adapter(model, tmp_path)
    shapes = {k.removeprefix("base_model.model."): t.shape for k, t in tensors_of(tmp_path).items()}
    assert shapes["wte.lora_embedding_A"] == (2, 20)
    assert shapes["wte.lora_embedding_B"] == (6, 2)
    assert shapes["conv1.lora_A.weight"] == (4, 6, 3)  # r for each of two groups
    assert shapes["conv1.lora_B.weight"] == (8, 2, 1)
    assert shapes["conv2.lora_A.weight"] == (3, 8, 1, 3)
    assert shapes["conv2.lora_B.weight"] == (4, 3, 1, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LoRA adapter added to ConvNd layer with groups")
        from peft import PeftModel

        theirs = PeftModel.from_pretrained(bare, tmp_path)
    torch.testing.assert_close(theirs(IDS), y, **EXACT)
    loaded = ll.load_adapter(twin, tmp_path)
    torch.testing.assert_close(twin(IDS), y, **EXACT)
    for name, site in adapter.sites.items():
        assert torch.equal(loaded.sites[name].A, site.A)
        assert torch.equal(loaded.sites[name].B, site.B)


def test_pefts_convolutions_and_embeddings_are_loaded(tmp_path):
    model = nets()
    theirs = peft_trained(model, tmp_path, r=2, target_modules=["wte", "conv2"])
    ll.load_adapter(model, tmp_path)
    torch.testing.assert_close(model(IDS), theirs(IDS), **EXACT)


def test_a_grouped_convolution_of_peft_is_held_where_a_kernel_can(tmp_path):
    model = nets()
    theirs = peft_trained(model, tmp_path, r=4, target_modules=["conv1"])
    with pytest.raises(
        LoraLabError, match="conv1 is a grouped convolution, and the file's A reads"
    ):
        ll.load_adapter(model, tmp_path)
    A = theirs.base_model.model.conv1.lora_A["default"].weight.data
    A[:2, 3:] = 0
    A[2:, :3] = 0
    theirs.save_pretrained(tmp_path)
    ll.load_adapter(model, tmp_path)
    torch.testing.assert_close(model(IDS), theirs(IDS), **EXACT)


@pytest.mark.parametrize(("name", "table"), [("smollm", "embed_tokens"), ("gpt2", "wte")])
def test_tied_weights_are_saved_once_and_reach_peft_at_both_ends(name, table, tmp_path):
    model = tiny(name).double()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    batch = tiny_inputs(model)
    bare, twin = copy.deepcopy(model), copy.deepcopy(model)
    ll.attach(model, random_config(target_modules=[table, "q"]))
    y = outputs(model, batch)
    ll.save_adapter(model, tmp_path)
    assert not any("lm_head" in key for key in tensors_of(tmp_path))
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # PEFT misses the second copy, which it has tied to the first; GPT-2's others are Conv1D.
        warnings.filterwarnings("ignore", message=r"Found missing adapter keys.*lm_head\.lora_A")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True but the target")
        theirs = PeftModel.from_pretrained(bare, tmp_path)
    torch.testing.assert_close(outputs(theirs, batch), y, **EXACT)
    ll.load_adapter(twin, tmp_path)
    torch.testing.assert_close(outputs(twin, batch), y, **EXACT)


@pytest.mark.parametrize("target", ["shared", "embed_tokens"])
def test_t5s_tied_embeddings_reach_peft_and_come_back(target, tmp_path):
    model = tiny("t5").double()
    bare, twin, batch = copy.deepcopy(model), copy.deepcopy(model), tiny_inputs(model)
    ll.attach(model, random_config(target_modules=[target, "q"]))
    y = outputs(model, batch)
    ll.save_adapter(model, tmp_path)
    theirs = peft_model(bare, tmp_path)  # which holds them as four pairs of equal factors
    torch.testing.assert_close(outputs(theirs, batch), y, **EXACT)
    ll.load_adapter(twin, tmp_path)
    torch.testing.assert_close(outputs(twin, batch), y, **EXACT)


def test_pefts_tied_factors_are_loaded_and_one_sided_ones_refused(tmp_path):
    model = tiny("smollm").double()
    batch = tiny_inputs(model)
    fields = {"target_modules": ["embed_tokens", "q_proj"]}
    tied = peft_trained(model, tmp_path / "tied", ensure_weight_tying=True, **fields)
    peft_trained(model, tmp_path / "one", **fields)
    ll.load_adapter(model, tmp_path / "tied")
    torch.testing.assert_close(outputs(model, batch), outputs(tied, batch), **EXACT)
    with pytest.raises(
        LoraLabError, match="embed_tokens and not lm_head, which here share one weight"
    ):
        ll.load_adapter(tiny("smollm"), tmp_path / "one")
    untied = tiny("smollm", tie_word_embeddings=False)
    with pytest.raises(LoraLabError, match="here it is not; tie them"):
        ll.load_adapter(untied, tmp_path / "tied")


def test_base_embeddings_in_the_file_have_to_be_the_models(tmp_path):
    model = tiny("llama", tie_word_embeddings=False)
    peft_trained(model, tmp_path, target_modules=["embed_tokens"])
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    assert key in tensors_of(tmp_path), "PEFT writes the base's table too"
    other = tiny("llama", seed=1, tie_word_embeddings=False)
    with pytest.raises(LoraLabError, match=r"for another base: 'model\.embed_tokens\.base_layer"):
        ll.load_adapter(other, tmp_path)


class Nasty(nn.Module):
    """Module names that trip up whoever splits, searches or compiles them."""

    NAMES = ("lora_A", "lora_B", "default", "base_model", "model", "a+b", "q(", "x[0-9]*", "weight")

    def __init__(self):
        super().__init__()
        for index, name in enumerate(self.NAMES):
            box = nn.Module()
            # Every second one has a matrix that is called like its box.
            inner = name if index % 2 else "proj"
            setattr(box, inner, nn.Linear(5, 5))
            self.add_module(name, box)
        self.base_layer = nn.Linear(5, 5)

    def forward(self, x):
        for name in self.NAMES:
            for layer in self.get_submodule(name).children():
                x = x + layer(x).tanh()
        return self.base_layer(x)


def test_nasty_names_reach_peft_and_come_back(tmp_path):
    torch.manual_seed(0)
    model = Nasty().double()
    bare, twin, x = copy.deepcopy(model), copy.deepcopy(model), torch.randn(3, 5).double()
    before = model(x)
    ranks = {rf"^{name}\..*": 1 for name in ("lora_A", "default", r"a\+b")}
    adapter = ll.attach(model, random_config(r=2, target_modules=r".*", rank_pattern=ranks))
    assert len(adapter.sites) == len(Nasty.NAMES) + 1
    y = model(x)
    assert_changed(y, before)
    ll.save_adapter(model, tmp_path)
    loaded = ll.load_adapter(twin, tmp_path)
    assert {n: s.r for n, s in loaded.sites.items()} == {n: s.r for n, s in adapter.sites.items()}
    torch.testing.assert_close(twin(x), y, **EXACT)
    torch.testing.assert_close(peft_model(bare, tmp_path)(x), y, **EXACT)


def test_what_peft_makes_of_nasty_names_is_loaded(tmp_path):
    torch.manual_seed(0)
    model, x = Nasty().double(), torch.randn(3, 5).double()
    targets = [path for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    theirs = peft_trained(model, tmp_path, r=2, target_modules=targets)
    ll.load_adapter(model, tmp_path)
    torch.testing.assert_close(model(x), theirs(x), **EXACT)


def test_a_name_with_a_dot_in_it_comes_back(tmp_path):
    model = nn.Module()
    model._modules["a.b"] = nn.Linear(4, 4)
    model._modules["c"] = nn.Linear(4, 4)
    twin = copy.deepcopy(model)
    site = ll.attach(model, random_config(r=2, target_modules=["a.b"])).sites["a.b"]
    loaded = ll.load_adapter(twin, ll.save_adapter(model, tmp_path))
    assert torch.equal(loaded.sites["a.b"].B, site.B)


def test_dora_on_rows_that_no_slice_owns_is_held_by_all_slices(tmp_path):
    """A foreign file may give lengths to k's rows though ours adapted q and v alone."""
    model = tiny("gpt2").double()
    bare, twin = copy.deepcopy(model), copy.deepcopy(model)
    stirred(ll.attach(model, random_config(use_dora=True, target_modules=["q", "v"])))
    ll.save_adapter(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, tensor in tensors.items():
        if key.endswith("magnitude_vector"):
            tensor[40] *= 1.5  # a row of k
    save_file(tensors, path)
    adapter = ll.load_adapter(twin, tmp_path)
    assert len(adapter.sites) == 6
    batch = tiny_inputs(bare)
    theirs = outputs(peft_model(bare, tmp_path), batch)
    torch.testing.assert_close(outputs(twin, batch), theirs, **EXACT)


def test_a_file_that_was_changed_after_saving_is_refused(tmp_path):
    model = tiny("llama")
    ll.attach(model, random_config())
    ll.save_adapter(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1  # one bit of one number
    path.write_bytes(data)
    with pytest.raises(LoraLabError, match="were changed after LoRA Lab had saved them"):
        ll.load_adapter(tiny("llama"), tmp_path)
