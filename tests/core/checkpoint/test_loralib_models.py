"""loralib's own layers load what is written, with the same outputs; their files are attached."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lora_lab as ll
from lora_lab.checkpoint import read_factors
from lora_lab.errors import AdapterError
from tests.helpers.lora_outputs import everything, outputs
from tests.helpers.tiny_models import tiny, tiny_inputs

loralib = pytest.importorskip("loralib")


def state_of(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)


def with_loralib_embedding(model: nn.Module, path: str, pair, alpha: float) -> nn.Module:
    """The model with loralib's Embedding; in eval mode it is merged, and so is a tied head."""
    old = model.get_submodule(path)
    layer = loralib.Embedding(*old.weight.shape, r=len(pair["A"]), lora_alpha=alpha)
    layer.weight = old.weight
    layer.lora_A.data, layer.lora_B.data = pair["A"], pair["B"]
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
    return model.eval()


@pytest.mark.parametrize(("name", "path"), [("llama", "model.embed_tokens"), ("t5", "shared")])
def test_an_embedding_is_loralibs_and_comes_back(name, path, tmp_path):
    model = tiny(name)
    bare, other = copy.deepcopy(model), copy.deepcopy(model)
    batch = tiny_inputs(model)
    ll.attach(model, everything(r=3, lora_alpha=6, target_modules=[path]))
    alpha = ll.save_loralib(model, tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    assert set(state) == {f"{path}.lora_A", f"{path}.lora_B"}
    ll.load_loralib(other, tmp_path / "a.safetensors")
    torch.testing.assert_close(outputs(other, batch), outputs(model, batch))
    if name == "llama":
        pair = {part: state[f"{path}.lora_{part}"] for part in "AB"}
        theirs = with_loralib_embedding(bare, path, pair, alpha)
        torch.testing.assert_close(outputs(theirs, batch), outputs(model, batch))


def with_loralib(model: nn.Module, state, alpha: float, enabled=()) -> nn.Module:
    """The model with loralib's layers in the place of those that a state dict adapts.

    Args:
        enabled: the `enable_lora` of its MergedLinear layers.
    """
    for key in [k for k in state if k.endswith(".lora_A")]:
        path = key.removesuffix(".lora_A")
        B = state[f"{path}.lora_B"]
        old = model.get_submodule(path)
        transposed = type(old).__name__ == "Conv1D"
        out, width = old.weight.shape[::-1] if transposed else old.weight.shape
        merged = enabled and (state[key].shape[0], B.shape[0]) == (
            B.shape[1] * sum(enabled),
            out // 3 * sum(enabled),
        )
        options = {"r": B.shape[1], "lora_alpha": alpha, "fan_in_fan_out": transposed}
        options |= {"bias": old.bias is not None, "merge_weights": False}
        layer = (
            loralib.MergedLinear(width, out, enable_lora=list(enabled), **options)
            if merged
            else loralib.Linear(width, out, **options)
        ).to(old.weight.dtype)
        layer.weight.data = old.weight.data
        layer.bias = old.bias
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)
    wrong = model.load_state_dict(state, strict=False)
    assert not wrong.unexpected_keys
    assert not [key for key in wrong.missing_keys if "lora_" in key]
    return model.eval()


CASES = {
    "linear": ("llama", everything(r=3, lora_alpha=6), ()),
    "several ranks and scales": (
        "llama",
        everything(r=2, rank_pattern={"q": 4}, alpha_pattern={"down": 1.5}),
        (),
    ),
    "rank-stabilized": ("bert", everything(r=4, lora_alpha=3, use_rslora=True), ()),
    "q and v": ("gpt2", everything(r=2, target_modules=["q", "v"]), (True, False, True)),
    "q, k and v": ("gpt2", everything(r=2, target_modules=["q", "k", "v"]), (True, True, True)),
    "k": ("gpt2", everything(r=2, target_modules=["k"]), (False, True, False)),
    "q and k, two ranks": (
        "gpt2",
        everything(r=2, target_modules=["q", "k"], rank_pattern={"k": 3}),
        (True, True, False),
    ),
    "grouped q, k and v": ("phi3", everything(r=2, target_modules=["q", "v", "up"]), ()),
    "interleaved q, k and v": ("gpt-neox", everything(r=2, target_modules=["q", "v"]), ()),
    "started from the base": (
        "gpt2",
        everything(r=2, target_modules=["q", "v", "up"], init_lora_weights="pissa"),
        (True, False, True),
    ),
}


def adapted(case):
    name, config, enabled = CASES[case]
    model = tiny(name).double()
    bare = copy.deepcopy(model)
    adapter = ll.attach(model, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, bare, enabled


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("case", CASES)
def test_loralibs_layers_load_it_with_the_same_outputs(case, suffix, tmp_path):
    model, bare, enabled = adapted(case)
    path = tmp_path / f"adapter{suffix}"
    alpha = ll.save_loralib(model, path)
    theirs = with_loralib(bare, state_of(path), alpha, enabled)
    batch = tiny_inputs(model)
    torch.testing.assert_close(outputs(theirs, batch), outputs(model, batch), rtol=1e-9, atol=1e-9)
    kinds = {type(module) for module in theirs.modules()}
    assert (loralib.MergedLinear in kinds) == bool(enabled)


@pytest.mark.parametrize("case", CASES)
def test_a_file_of_ours_is_attached_again_without_being_told_anything(case, tmp_path):
    model, bare, _ = adapted(case)
    ll.save_loralib(model, tmp_path / "adapter.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ll.load_loralib(bare, tmp_path / "adapter.safetensors")
    batch = tiny_inputs(model)
    torch.testing.assert_close(outputs(bare, batch), outputs(model, batch), rtol=1e-9, atol=1e-9)


def test_a_file_of_loralibs_is_attached(tmp_path):
    model = tiny("gpt2").double()
    bare = copy.deepcopy(model)
    state = {}
    torch.manual_seed(1)
    for n in range(2):
        path = f"transformer.h.{n}.attn.c_attn"
        state[f"{path}.lora_A"] = torch.randn(8, 32, dtype=torch.float64)
        state[f"{path}.lora_B"] = torch.randn(64, 4, dtype=torch.float64)
    torch.save(state, tmp_path / "a.pt")
    theirs = with_loralib(copy.deepcopy(bare), state, 6, (True, False, True))
    with pytest.warns(UserWarning, match="are q and v, as in the paper"):
        adapter = ll.load_loralib(bare, tmp_path / "a.pt", lora_alpha=6, allow_pickle=True)
    assert [site.site.role for site in adapter.sites.values()] == ["q", "v"] * 2
    batch = tiny_inputs(model)
    torch.testing.assert_close(outputs(bare, batch), outputs(theirs, batch), rtol=1e-9, atol=1e-9)

    other = copy.deepcopy(model)
    ll.load_loralib(other, tmp_path / "a.pt", lora_alpha=6, slices=["q", "k"], allow_pickle=True)
    theirs = with_loralib(copy.deepcopy(model), state, 6, (True, True, False))
    torch.testing.assert_close(outputs(other, batch), outputs(theirs, batch), rtol=1e-9, atol=1e-9)


def test_factors_are_read_with_the_alpha_that_ours_notes(tmp_path):
    model = tiny("gpt2")
    ll.attach(model, everything(r=2, lora_alpha=6, target_modules=["q", "k"]))
    ll.save_loralib(model, tmp_path / "a.safetensors")
    found = read_factors(tmp_path / "a.safetensors")
    assert [site.site.role for site in found.sites] == ["q", "k"] * 2
    assert {site.update.scale for site in found.sites} == {3.0}
    assert found.notes == ()


@pytest.mark.parametrize(
    "note",
    ["{", "[]", '{"lora_alpha": "6", "slices": {}}', '{"lora_alpha": 6, "slices": {"a": 1}}'],
)
def test_a_damaged_note_ends_in_one_line(note, tmp_path):
    state = {"h.0.q.lora_A": torch.ones(2, 8), "h.0.q.lora_B": torch.ones(8, 2)}
    save_file(state, tmp_path / "a.safetensors", metadata={"lora_lab_loralib": note})
    with pytest.raises(AdapterError, match="notes of α and slices is damaged"):
        read_factors(tmp_path / "a.safetensors")


def test_what_cannot_be_attached_changes_nothing(tmp_path):
    model = tiny("llama")
    before = [type(module) for module in model.modules()]
    path = "model.layers.0.self_attn.q_proj"
    pair = {f"{path}.lora_A": torch.ones(2, 32), f"{path}.lora_B": torch.ones(32, 2)}

    def message(state, **options):
        save_file(state, tmp_path / "a.safetensors")
        with pytest.raises(AdapterError) as caught:
            ll.load_loralib(model, tmp_path / "a.safetensors", **options)
        assert [type(module) for module in model.modules()] == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "do not hold α" in message(pair)
    assert "holds biases too" in message({**pair, f"{path}.bias": torch.ones(32)}, lora_alpha=2)
    assert "holds weights too" in message({**pair, "score.weight": torch.ones(2, 2)}, lora_alpha=2)
    foreign = {key.replace("q_proj", "c_attn"): value for key, value in pair.items()}
    assert "for another base" in message(foreign, lora_alpha=2)
    torch.save(pair, tmp_path / "a.pt")
    with pytest.raises(AdapterError, match="is a pickle, which can run code"):
        ll.load_loralib(model, tmp_path / "a.pt", lora_alpha=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (everything(use_dora=True), "uses DoRA, which loralib's layers cannot hold"),
        (everything(target_modules=["conv"]), "adapts the convolution conv"),
    ],
)
def test_what_loralib_has_no_layer_for_is_refused(config, message, tmp_path):
    model = tiny("llama")
    model.conv = nn.Conv1d(4, 4, 3)
    ll.attach(model, config)
    with pytest.raises(AdapterError, match=message):
        ll.save_loralib(model, tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_says_no_format_is_refused(tmp_path):
    model = tiny("llama")
    ll.attach(model, everything())
    with pytest.raises(AdapterError, match=r"end it in \.safetensors or \.pt"):
        ll.save_loralib(model, tmp_path / "adapter")
