"""One rank, one scale, every layer: what PEFT, and loaders without patterns, make of it."""

import copy
import json
import re
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.lora_outputs import everything, outputs
from tests.helpers.tiny_models import tiny, tiny_inputs

CONFIGS = {
    "llama": everything(
        r=4,
        lora_alpha=6,
        target_modules=["q", "model.layers.1.self_attn.v_proj", "down"],
        rank_pattern={"q": 3},
        alpha_pattern={"down": 1.5},
    ),
    "gpt2": everything(r=2, target_modules=["q", "v", "up"], rank_pattern={"up": 5}),
    "gpt-neox": everything(r=3, target_modules=["k", "gpt_neox.layers.0.mlp.dense_4h_to_h"]),
    "phi3": everything(r=2, lora_alpha=5, target_modules=["q", "gate", "up"], use_rslora=True),
    "t5": everything(r=2, target_modules=["cross.v", "encoder.block.0.layer.0.SelfAttention.q"]),
    "mistral": everything(r=2, target_modules=["q", "up"], init_lora_weights="olora"),
}


def adapted(name, config=None):
    model = tiny(name).double()
    bare = copy.deepcopy(model)
    adapter = ll.attach(model, config or CONFIGS[name])
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, bare


def read(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_loads_it_with_the_same_outputs(name, tmp_path):
    from peft import PeftModel

    model, bare = adapted(name)
    batch = tiny_inputs(model)
    folder = ll.export_uniform(model, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = PeftModel.from_pretrained(bare, folder)
    torch.testing.assert_close(outputs(theirs, batch), outputs(model, batch), rtol=1e-9, atol=1e-9)


def served(bare: nn.Module, folder) -> nn.Module:
    """The base with the adapter as a server without patterns applies it, weights built.

    vLLM's two rules: a tensor's name is base_model.model.<module>.lora_A.weight or lora_B.weight;
    the scale of every module is the config's alpha/r, whatever the patterns say.
    """
    config, tensors = read(folder)
    assert not any(config[name] for name in ("modules_to_save", "use_dora", "use_rslora"))
    assert config["bias"] == "none"
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        first, second, *module, half, last = key.split(".")
        assert (first, second, last) == ("base_model", "model", "weight")
        assert half in ("lora_A", "lora_B")
        halves.setdefault(".".join(module), {})[half] = tensor
    scale = config["lora_alpha"] / config["r"]
    for module, pair in halves.items():
        weight = bare.get_submodule(module).weight
        delta = scale * pair["lora_B"] @ pair["lora_A"]
        transposed = type(bare.get_submodule(module)).__name__ == "Conv1D"
        weight.data += delta.T if transposed else delta
    return bare


@pytest.mark.parametrize("name", CONFIGS)
def test_a_server_that_knows_one_scale_has_the_same_outputs(name, tmp_path):
    model, bare = adapted(name)
    batch = tiny_inputs(model)
    theirs = served(bare, ll.export_uniform(model, tmp_path / "out"))
    torch.testing.assert_close(outputs(theirs, batch), outputs(model, batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_a_server_that_stacks_layers_finds_all_of_them_in_one_shape(name, tmp_path):
    # LoRAX's rule: of each kind of module, the A's of all layers are stacked, and so are the B's.
    model, bare = adapted(name)
    config, tensors = read(ll.export_uniform(model, tmp_path / "out"))
    modules = [path for path, module in bare.named_modules() if hasattr(module, "weight")]
    written = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        for key in tensors
        if key.endswith("lora_A.weight")
    }
    kinds = {re.sub(r"\.\d+\.", ".N.", path) for path in written}
    assert written == {path for path in modules if re.sub(r"\.\d+\.", ".N.", path) in kinds}
    assert set(config["target_modules"]) == written
    for kind in kinds:
        own = [path for path in written if re.sub(r"\.\d+\.", ".N.", path) == kind]
        for half in ("A", "B"):
            torch.stack([tensors[f"base_model.model.{path}.lora_{half}.weight"] for path in own])
    assert {tensors[k].shape[0] for k in tensors if ".lora_A" in k} == {config["r"]}


def test_a_plain_adapter_keeps_its_bits(tmp_path):
    model = tiny("llama")
    adapter = ll.attach(model, everything(r=4, lora_alpha=4))
    _, tensors = read(ll.export_uniform(model, tmp_path / "out"))
    for path, site in adapter.sites.items():
        assert torch.equal(tensors[f"base_model.model.{path}.lora_A.weight"], site.A)
        assert torch.equal(tensors[f"base_model.model.{path}.lora_B.weight"], site.B)


def test_an_adapter_by_name_also_while_merged(tmp_path):
    model = tiny("llama")
    ll.attach(model, everything(r=2), "one")
    ll.attach(model, everything(r=5), "two")
    ll.merge(model, "two")
    assert read(ll.export_uniform(model, tmp_path / "one", "one"))[0]["r"] == 2
    assert read(ll.export_uniform(model, tmp_path / "two"))[0]["r"] == 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (everything(use_dora=True), "uses DoRA, which loaders without patterns cannot hold"),
        (everything(target_modules=["embed_tokens"]), "adapts the embedding model.embed_tokens"),
        (everything(modules_to_save=["lm_head"]), "trains lm_head whole"),
    ],
)
def test_what_such_loaders_cannot_hold_is_refused_in_one_line(config, message, tmp_path):
    model = tiny("llama")
    ll.attach(model, config)
    with pytest.raises(AdapterError, match=message) as caught:
        ll.export_uniform(model, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    model = tiny("llama")
    ll.attach(model, everything())
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(AdapterError, match="holds files already; name a new or empty folder"):
        ll.export_uniform(model, tmp_path)
    with pytest.raises(AdapterError, match="is a file already"):
        ll.export_uniform(model, tmp_path / "note.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]
    (tmp_path / "empty").mkdir()
    ll.export_uniform(model, tmp_path / "empty")


def test_a_disk_that_refuses_leaves_nothing_behind(tmp_path, monkeypatch):
    model = tiny("llama")
    ll.attach(model, everything())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(AdapterError, match=r"cannot write .*: No space left on device; free some"):
        ll.export_uniform(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
