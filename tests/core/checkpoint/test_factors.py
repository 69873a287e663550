"""Factors read without a model are those that PEFT itself applies, whoever wrote the file."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_lab as ll
from lora_lab.anatomy import anatomy
from lora_lab.checkpoint import read_factors
from lora_lab.errors import LoraLabError
from tests.helpers.lora_outputs import everything
from tests.helpers.tiny_models import tiny


def peft_adapter(name, folder, **config):
    """Write an adapter with PEFT; returns the bare model and {module: ΔW (out, in) float64}."""
    import peft

    kind = config.pop("kind", peft.LoraConfig)
    bare = tiny(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fan_in_fan_out is corrected, embeddings are saved
        theirs = peft.get_peft_model(copy.deepcopy(bare), kind(**config))
        torch.manual_seed(0)
        for key, parameter in theirs.named_parameters():
            if "lora_" in key and "magnitude" not in key:
                torch.nn.init.normal_(parameter, std=0.3)
        theirs.save_pretrained(folder)
    deltas = {}
    for path, module in theirs.base_model.model.named_modules():
        if getattr(module, "lora_A", None):
            delta = module.get_delta_weight("default").detach().double().numpy()
            transposed = type(module.get_base_layer()).__name__ == "Conv1D"
            deltas[path] = delta.T if transposed else delta
    return bare, deltas


def built(site):
    A, B, scale, *_ = site.update
    return scale * B.astype(np.float64) @ A.astype(np.float64)


def assert_same_update(site, delta):
    np.testing.assert_allclose(built(site), delta, atol=1e-5 * np.abs(delta).max())
    s = np.asarray(site.update.triplets()[1], np.float64)
    exact = np.linalg.svd(delta, compute_uv=False)[: len(s)]
    np.testing.assert_allclose(s, exact, atol=1e-5 * exact[0])


LINEAR = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}
PATTERNS = {
    "rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
    "alpha_pattern": {"down_proj": 3, r"^model\.layers\.0\.self_attn\.q_proj": 11},
}


@pytest.mark.parametrize("base", [False, True], ids=["alone", "with base"])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", LINEAR),
        ("llama", LINEAR | PATTERNS),
        ("llama", LINEAR | PATTERNS | {"use_rslora": True}),
        ("t5", LINEAR | {"target_modules": ["q", "v", "wo"]}),
        ("bert", LINEAR | {"target_modules": ["query", "dense"]}),
        ("roberta", LINEAR | {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
        ("vit", LINEAR | {"target_modules": r".*\.(q_proj|fc\d|query|dense)"}),
    ],
)
def test_what_peft_writes_is_read_with_its_own_update(name, config, base, tmp_path):
    bare, deltas = peft_adapter(name, tmp_path, **config)
    found = read_factors(tmp_path, anatomy=anatomy(bare) if base else None)
    assert {site.site.module for site in found.sites} == deltas.keys()
    for site in found.sites:
        assert_same_update(site, deltas[site.site.module])


@pytest.mark.parametrize("name", ["llama", "t5", "bert", "gemma2", "opt", "qwen3"])
def test_names_alone_give_the_layers_and_roles_of_the_model(name, tmp_path):
    model = tiny(name)
    adapter = ll.attach(model, everything(r=2))
    found = read_factors(ll.save_adapter(model, tmp_path))

    def told(sites, within):
        return [
            (s.site.name, s.site.layer, s.site.role, s.site.stack)
            for s in sites
            if (s.site.layer is not None) == within
        ]

    assert told(found.sites, within=True) == told(adapter.sites.values(), within=True)
    # Outside the layers nothing in a file says the model's order (OPT's project_out comes first).
    outside = told(adapter.sites.values(), within=False)
    assert told(found.sites, within=False) == sorted(outside)


@pytest.mark.parametrize("base", [False, True], ids=["alone", "with base"])
def test_a_fused_matrix_of_peft_falls_into_slices_where_the_base_is_known(base, tmp_path):
    bare, deltas = peft_adapter("gpt2", tmp_path, r=4, target_modules=["c_attn", "c_fc"])
    found = read_factors(tmp_path, anatomy=anatomy(bare) if base else None)
    c_attn = [site for site in found.sites if site.site.module.endswith("c_attn")]
    assert len(c_attn) == (6 if base else 2)
    assert [site.site.role for site in c_attn[:3]] == (["q", "k", "v"] if base else ["c_attn"] * 2)
    width = 32
    for site in found.sites:
        delta = deltas[site.site.module]
        if base and site.site.role in "qkv":
            at = "qkv".index(site.site.role) * width
            delta = delta[at : at + width]
        assert_same_update(site, delta)


@pytest.mark.parametrize("base", [False, True], ids=["alone", "with base"])
@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "phi3", "falcon-grouped"])
def test_our_own_fused_slices_are_read_back_site_by_site(name, base, tmp_path):
    model = tiny(name)
    adapter = ll.attach(model, everything(r=2, target_modules=["q", "v"], rank_pattern={"v": 3}))
    ll.save_adapter(model, tmp_path)
    found = read_factors(tmp_path, anatomy=anatomy(model) if base else None)
    assert [site.site.name for site in found.sites] == list(adapter.sites)
    for site in found.sites:
        own = adapter.sites[site.site.name]
        assert site.site.rows == own.site.rows
        np.testing.assert_allclose(built(site), own.delta().detach().double().numpy(), atol=1e-6)


def test_adalora_is_read_as_the_update_that_peft_applies(tmp_path):
    from peft import AdaLoraConfig

    settings = {"init_r": 6, "target_r": 3, "total_step": 10, "lora_alpha": 5}
    _, deltas = peft_adapter(
        "llama", tmp_path, kind=AdaLoraConfig, target_modules=["q_proj", "down_proj"], **settings
    )
    found = read_factors(tmp_path)
    assert len(found.sites) == len(deltas) == 4
    for site in found.sites:
        assert_same_update(site, deltas[site.site.module])


def test_a_pruned_adalora_keeps_the_scale_that_it_was_trained_with(tmp_path):
    from peft import AdaLoraConfig, PeftModel, get_peft_model

    bare = tiny("llama").double()
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["q_proj"])
    theirs = get_peft_model(copy.deepcopy(bare), config)
    for key, parameter in theirs.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter)
    paths = [f"model.layers.{n}.self_attn.q_proj" for n in range(2)]
    theirs.peft_config["default"].rank_pattern = {
        f"{paths[0]}.lora_E.default": [True, False, True, False],
        f"{paths[1]}.lora_E.default": [False, True, True, True],
    }
    theirs.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path)
    found = {site.site.module: site for site in read_factors(tmp_path).sites}
    assert [found[path].update.r for path in paths] == [2, 3]
    for path in paths:
        layer = again.base_model.model.get_submodule(path)
        assert_same_update(found[path], layer.get_delta_weight("default").detach().numpy())


@pytest.mark.parametrize(
    ("name", "config", "note"),
    [
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}, "factors of embeddings"),
        ("llama", {"target_modules": ["q_proj"], "use_dora": True}, "DoRA's magnitudes"),
        (
            "bert",
            {"target_modules": ["query"], "modules_to_save": ["classifier"]},
            "weights trained whole, no low-rank factors (base_model.model.classifier.weight)",
        ),
        ("bert", {"target_modules": ["query"], "bias": "all"}, "left out: biases"),
        ("llama", {"target_modules": ["q_proj"], "lora_bias": True}, "left out: biases"),
        (
            "vit",
            {"target_modules": ["q_proj", "query", "projection"]},  # the newer name, the older
            "factors of convolutions",
        ),
    ],
)
def test_what_is_no_factor_of_a_matrix_is_left_out_aloud(name, config, note, tmp_path):
    _, deltas = peft_adapter(name, tmp_path, r=4, lora_alpha=6, **config)
    found = read_factors(tmp_path)
    assert note in " ".join(found.notes)
    assert found.sites
    if not config.get("use_dora"):  # there get_delta_weight is not the whole of PEFT's change
        for site in found.sites:
            assert_same_update(site, deltas[site.site.module])


def test_an_adapter_on_the_output_embedding_is_read(tmp_path):
    bare, deltas = peft_adapter("llama", tmp_path, r=4, target_modules=["q_proj", "lm_head"])
    for base in (None, anatomy(bare)):
        *_, head = read_factors(tmp_path, anatomy=base).sites
        assert (head.site.name, head.site.layer, head.site.role) == ("lm_head", None, "lm_head")
        assert_same_update(head, deltas["lm_head"])


def test_a_head_on_top_of_the_base_does_not_hide_its_modules(tmp_path):
    _, deltas = peft_adapter("bert", tmp_path, r=4, target_modules=["query"])
    bare = tiny("bert").bert  # the adapter's paths begin with "bert."
    found = read_factors(tmp_path, anatomy=anatomy(bare))
    assert [site.site.name for site in found.sites] == [
        path.removeprefix("bert.") for path in deltas
    ]


def test_a_pissa_adapter_says_what_its_factors_are(tmp_path):
    peft_adapter("llama", tmp_path, r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    found = read_factors(tmp_path)
    assert found.changed_base == "pissa"
    assert "began at pissa" in found.notes[0]
    with pytest.raises(LoraLabError, match="pissa took a part out of the base's weights"):
        ll.load_adapter(tiny("llama"), tmp_path)


def test_half_precision_factors_are_read_in_float32(tmp_path):
    _, deltas = peft_adapter("llama", tmp_path, r=4, target_modules=["q_proj"])
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(path).items()}, path)
    for site in read_factors(tmp_path).sites:
        assert site.update.A.dtype == site.update.B.dtype == np.float32
        np.testing.assert_allclose(built(site), deltas[site.site.module], atol=0.05)


def test_a_pickle_is_read_only_when_it_is_asked_for(tmp_path):
    _, deltas = peft_adapter("llama", tmp_path, r=4, target_modules=["q_proj"])
    weights = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(LoraLabError, match="holds a pickle"):
        read_factors(tmp_path)
    found = read_factors(tmp_path, allow_pickle=True)
    by_name = read_factors(tmp_path / "adapter_model.bin", allow_pickle=True)
    for site, same in zip(found.sites, by_name.sites, strict=True):
        assert_same_update(site, deltas[site.site.module])
        np.testing.assert_array_equal(site.update.A, same.update.A)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("the pickle ran",))


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def hostile(what, folder):
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    settings, tensors = json.loads(config.read_text()), load_file(weights)
    metadata = {}
    match what:
        case "nested":
            config.write_text("[" * 100_000)
            return
        case "list":
            config.write_text("[]")
            return
        case "latin":
            config.write_bytes(b'{"peft_type": "\xff"}')
            return
        case "evil":
            weights.unlink()
            torch.save({"a": Evil()}, folder / "adapter_model.bin")
            return
        case "noise":
            weights.unlink()
            (folder / "adapter_model.bin").write_bytes(b"\x80\x02noise")
            return
        case "html":
            weights.write_text("<html>rate limited</html>" * 10)
            return
        case "rank":
            settings["r"] = "8"
        case "ranks":
            settings["rank_pattern"] = {"q_proj": -1}
        case "alpha":
            settings["lora_alpha"] = float("nan")
        case "alphas":
            settings["alpha_pattern"] = {"q_proj": None}
        case "pattern":
            settings["alpha_pattern"] = {"(q_proj": 4}
        case "experts":
            settings["target_parameters"] = 3
        case "qalora":
            settings["use_qalora"] = True
        case "kind":
            settings["peft_type"] = "LOHA"
        case "slices":
            metadata = {"lora_lab_slices": '{"model.layers.0.self_attn.q_proj": [["q", 1, [0]]]}'}
        case "variant":
            tensors["model.layers.0.self_attn.q_proj.lora_diag"] = torch.ones(4)
        case "integers":
            tensors[KEY.format("A")] = torch.ones(4, 32, dtype=torch.int32)
        case "empty":
            tensors[KEY.format("A")] = torch.ones(4, 0)
        case "deep":
            tensors[f"{'a.' * 200}lora_A.weight"] = torch.ones(4, 4)
        case "twice":
            tensors[KEY.format("A").replace("weight", "other.weight")] = torch.ones(4, 32)
        case "whole":
            tensors = {"model.embed.weight": torch.ones(2, 2)}
        case "nothing":
            tensors = {}
    config.write_text(json.dumps(settings))
    save_file(tensors, weights, metadata=metadata or None)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nested", "is not readable JSON"),
        ("list", "is not a JSON object of settings"),
        ("latin", "is not readable JSON"),
        ("evil", "nothing else is unpickled"),
        ("noise", "nothing else is unpickled"),
        ("html", "is damaged"),
        ("rank", "rank 'r' is '8', not a whole number above 0"),
        ("ranks", "rank 'q_proj' is -1"),
        ("alpha", "alpha 'lora_alpha' is nan, not a number"),
        ("alphas", "alpha 'q_proj' is None, not a number"),
        ("pattern", "is not a regular expression"),
        ("experts", "target_parameters is no list of names"),
        ("qalora", "with use_qalora ΔW is not s·BA"),
        ("kind", "describes 'LOHA', not a LoRA adapter"),
        ("slices", "list of fused slices does not fit its tensors"),
        ("variant", "belongs to a variant of LoRA"),
        ("integers", "is not a finite matrix"),
        ("empty", "is not a finite matrix"),
        ("deep", "is no name of a module"),
        ("twice", "has two lora_A"),
        ("whole", "holds no LoRA factors of matrices; left out: weights trained whole"),
        ("nothing", "is empty"),
    ],
)
def test_a_hostile_file_ends_in_one_line(what, message, tmp_path):
    peft_adapter("llama", tmp_path, r=4, target_modules=["q_proj"])
    hostile(what, tmp_path)
    with pytest.raises(LoraLabError) as caught:
        read_factors(tmp_path, allow_pickle=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_adapters_says_which_it_holds(tmp_path):
    peft_adapter("llama", tmp_path / "second", r=4, target_modules=["q_proj"])
    with pytest.raises(LoraLabError, match="it holds second: name one of them"):
        read_factors(tmp_path)
    with pytest.raises(LoraLabError, match="there is no folder"):
        read_factors(tmp_path / "third")


def test_an_adapter_for_another_base_names_the_difference(tmp_path):
    peft_adapter("llama", tmp_path, r=4, target_modules=["q_proj"])
    with pytest.raises(LoraLabError, match=r"another base: this model has no .*layers\.0"):
        read_factors(tmp_path, anatomy=anatomy(tiny("gpt2")))
    wider = anatomy(tiny("llama", hidden_size=64))
    with pytest.raises(LoraLabError, match=r"q_proj is 64 × 64 here, 32 × 32 in the file"):
        read_factors(tmp_path, anatomy=wider)


@pytest.mark.parametrize("spelling", ["no prefix", "adapter's name"])
def test_other_makers_spell_the_keys_in_their_own_ways(spelling, tmp_path):
    _, deltas = peft_adapter("llama", tmp_path, r=4, target_modules=["q_proj"])
    path = tmp_path / "adapter_model.safetensors"
    change = {
        "no prefix": lambda key: key.removeprefix("base_model.model."),
        "adapter's name": lambda key: key.replace(".weight", ".my-adapter.weight"),
    }[spelling]
    save_file({change(key): tensor for key, tensor in load_file(path).items()}, path)
    found = read_factors(tmp_path).sites
    assert {site.site.module for site in found} == deltas.keys()
    for site in found:
        assert_same_update(site, deltas[site.site.module])
