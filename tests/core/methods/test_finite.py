"""What is no number is refused by name, before a weight or a file holds it."""

import copy

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.checkpoint.loralib_models import save_loralib
from lora_lab.errors import AdapterError
from tests.helpers.lora_outputs import outputs
from tests.helpers.tiny_models import tiny, tiny_inputs

Q = "model.layers.0.self_attn.q_proj"


def poisoned(config, name="llama"):
    """Return a model whose adapter has one value that is no number, the last one."""
    model = tiny(name)
    adapter = ll.attach(model, config)
    with torch.no_grad():
        list(adapter.state().values())[-1].view(-1)[-1] = float("nan")
    return model


CONFIGS = {
    "LoRA": ll.LoraConfig(r=2, target_modules=["q_proj"]),
    "LoRA on an embedding": ll.LoraConfig(r=2, target_modules=["embed_tokens"]),
    "DoRA": ll.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    "modules_to_save": ll.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]),
    "AdaLoRA": ll.AdaLoraConfig(init_r=4, target_r=2, target_modules=["q_proj"]),
    "FT": ll.FullConfig(top_layers=1),
    "BitFit": ll.BitFitConfig(new_biases=True),
    "PreEmbed": ll.PrefixEmbedConfig(prefix_length=2),
    "combined": [
        ll.LoraConfig(r=2, target_modules=["q_proj"]),
        ll.PrefixEmbedConfig(prefix_length=2),
    ],
}


@pytest.mark.parametrize("name", CONFIGS)
def test_save_refuses_what_is_no_number_and_writes_nothing(name, tmp_path):
    model = poisoned(CONFIGS[name])
    before = tmp_path / "before"
    before.mkdir()
    with pytest.raises(AdapterError, match=r"adapter 'default' holds 1 NaN or infinite values at"):
        ll.save_adapter(model, tmp_path / "adapter")
    assert [p.name for p in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "modules_to_save", "AdaLoRA", "FT"])
def test_merge_and_export_refuse_it_and_change_nothing(name, tmp_path):
    model = poisoned(CONFIGS[name])
    ll.activate(model, None)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for keep in (True, False):
        with pytest.raises(AdapterError, match=r"\S+ would hold [\d,]+ NaN or infinite values in"):
            ll.merge(model, "default", keep_original=keep)
    with pytest.raises(AdapterError, match=r"\S+ would hold [\d,]+ NaN or infinite values in"):
        ll.export_merged(model, tmp_path / "out", "default")
    assert not any(tmp_path.iterdir())
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if ".lora" not in k)
    assert ll.active(model) is None


def test_loralibs_and_uniform_files_are_refused_too(tmp_path):
    model = poisoned(CONFIGS["LoRA"])
    with pytest.raises(AdapterError, match="NaN or infinite values at"):
        save_loralib(model, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match="NaN or infinite values at"):
        ll.export_uniform(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("size", [300.0, 1e20])
def test_what_float16_cannot_hold_is_not_written(size, tmp_path):
    model = tiny("llama").half()
    adapter = ll.attach(model, CONFIGS["LoRA"])
    with torch.no_grad():
        for p in adapter.parameters():
            p.fill_(size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    line = rf"{Q}.weight would hold [\d,]+ NaN or infinite values in float16"
    with pytest.raises(AdapterError, match=line):
        ll.merge(model)
    with pytest.raises(AdapterError, match=line):
        ll.export_merged(model, tmp_path / "half")
    assert not any(tmp_path.iterdir())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    if size < 1e10:
        ll.export_merged(model, tmp_path / "whole", dtype=torch.float32)


def test_weights_beside_the_adapters_are_looked_at_too(tmp_path):
    model = tiny("llama")
    model.lm_head.weight.data[0, 0] = 1e6
    ll.attach(model, CONFIGS["LoRA"])
    with pytest.raises(AdapterError, match=r"lm_head.weight would hold 1 .* in float16"):
        ll.export_merged(model, tmp_path / "out", dtype=torch.float16)
    ll.export_merged(model, tmp_path / "out", dtype=torch.bfloat16)


def test_what_the_base_holds_already_is_no_reason_to_refuse():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data[0, 0] = -torch.inf
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    ll.merge(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rows_of_zeros_stay_zero_under_dora(name, dtype):
    # 0/0 in the paper's formula; PEFT's forward pass gives NaN there.
    model = tiny(name).to(dtype)
    layer = model.get_submodule({"llama": Q, "gpt2": "transformer.h.0.mlp.c_fc"}[name])
    matrix = layer.weight.data if name == "llama" else layer.weight.data.T
    matrix[3:6] = 0
    batch = tiny_inputs(model)
    bare = outputs(model, batch)
    target = {"llama": "q_proj", "gpt2": "c_fc"}[name]
    adapter = ll.attach(model, ll.LoraConfig(r=2, target_modules=[target], use_dora=True))
    exact = dtype == torch.float64  # else it is enough here that all are numbers
    assert outputs(model, batch).isfinite().all()
    if exact:
        torch.testing.assert_close(outputs(model, batch), bare, rtol=1e-9, atol=1e-9)
    site = next(iter(adapter.sites.values()))
    with torch.no_grad():
        for other in adapter.sites.values():
            other.B.normal_()
            other.magnitude.mul_(1.5)
        site.B[3:6] = 0
        site.magnitude[3:6] = 0.7  # no direction has any length
    y = outputs(model, batch)
    result = model(**batch)
    (result.logits if hasattr(result, "logits") else result.last_hidden_state).sum().backward()
    assert all(p.grad.isfinite().all() for p in adapter.parameters())
    twin = copy.deepcopy(model)
    ll.merge(model)
    assert not matrix[3:6].any()
    assert outputs(model, batch).isfinite().all()
    if exact:
        torch.testing.assert_close(outputs(model, batch), y, rtol=1e-9, atol=1e-9)
    with torch.no_grad():  # with a direction, the row is as long as m says
        learned = next(iter(ll.attached(twin)["default"].sites.values()))
        learned.B[3:6] = 1
    ll.merge(twin)
    weight = twin.get_submodule(site.site.module).weight.detach()
    rows = (weight if name == "llama" else weight.T)[3:6].double()
    torch.testing.assert_close(rows.norm(dim=1), torch.full((3,), 0.7).double(), rtol=0.01, atol=0)


def test_saving_dora_on_rows_of_zeros_says_what_peft_makes_of_them(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data[2:] = 0
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["0"], use_dora=True))
    with pytest.warns(UserWarning, match="2 rows of zeros at 0, from which PEFT's DoRA makes NaN"):
        ll.save_adapter(model, tmp_path)
    from peft import PeftModel

    bare = nn.Sequential(nn.Linear(4, 4))
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if ".lora." not in k})
    x = torch.randn(3, 4)
    theirs = PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path)(x)
    assert theirs[:, 2:].isnan().all()
    again = copy.deepcopy(bare)
    ll.load_adapter(again, tmp_path)
    torch.testing.assert_close(again(x), bare(x))
