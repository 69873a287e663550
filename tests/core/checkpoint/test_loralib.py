"""loralib's own layers write the files, and their merged weights say what ΔW is."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_lab.anatomy import anatomy
from lora_lab.checkpoint import read_factors
from lora_lab.errors import AdapterError
from tests.helpers.tiny_models import tiny

loralib = pytest.importorskip("loralib")

ALPHA, R, WIDTH = 6, 4, 32


def gpt2_with(enable):
    """A tiny GPT-2 whose c_attn are loralib's MergedLinear, with random factors."""
    model = tiny("gpt2")
    for block in model.transformer.h:
        layer = loralib.MergedLinear(
            WIDTH, 3 * WIDTH, r=R, lora_alpha=ALPHA, enable_lora=enable, fan_in_fan_out=True
        )
        block.attn.c_attn = layer
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter)
    return model


def merged_update(layer):
    """What loralib adds to the weight when it merges, (out, in)."""
    layer = copy.deepcopy(layer).double()
    layer.train()  # returns nothing, in loralib
    before = layer.weight.detach().clone()
    layer.eval()
    delta = (layer.weight - before).detach().numpy()
    return delta.T if layer.fan_in_fan_out else delta


def assert_same_update(site, delta):
    A, B, scale, *_ = site.update
    built = scale * B.astype(np.float64) @ A.astype(np.float64)
    np.testing.assert_allclose(built, delta, atol=1e-5 * np.abs(delta).max())
    s = np.asarray(site.update.triplets()[1], np.float64)
    exact = np.linalg.svd(delta, compute_uv=False)[: len(s)]
    np.testing.assert_allclose(s, exact, atol=1e-5 * exact[0])


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
@pytest.mark.parametrize("base", [False, True], ids=["alone", "with base"])
@pytest.mark.parametrize(
    ("enable", "slices"),
    [
        ([True, False, True], None),
        ([True, True, True], None),
        ([True, True, False], ("q", "k")),
        ([False, True, False], ("k",)),
    ],
)
def test_a_merged_linear_falls_into_its_slices(enable, slices, base, wrapped, tmp_path):
    model = gpt2_with(enable)
    state = loralib.lora_state_dict(model)
    path = tmp_path / "gpt2.pt"
    torch.save({"model_state_dict": state} if wrapped else state, path)
    found = read_factors(
        path,
        lora_alpha=ALPHA,
        slices=slices,
        allow_pickle=True,
        anatomy=anatomy(tiny("gpt2")) if base else None,
    )
    roles = [role for role, on in zip("qkv", enable, strict=True) if on]
    assert [(site.site.layer, site.site.role) for site in found.sites] == [
        (layer, role) for layer in range(2) for role in roles
    ]
    for site in found.sites:
        delta = merged_update(model.transformer.h[site.site.layer].attn.c_attn)
        at = "qkv".index(site.site.role) * WIDTH
        assert site.update.r == R
        assert_same_update(site, delta[at : at + WIDTH])
    assumed = [note for note in found.notes if note.startswith("assumed")]
    assert len(assumed) == (sum(enable) == 2 and slices is None)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_linear_is_read_and_biases_are_left_out(suffix, tmp_path):
    model = tiny("roberta")
    for block in model.roberta.encoder.layer:
        block.attention.self.query = loralib.Linear(WIDTH, WIDTH, r=R, lora_alpha=ALPHA)
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter)
    state = loralib.lora_state_dict(model, bias="lora_only")
    path = tmp_path / f"roberta{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    found = read_factors(path, lora_alpha=ALPHA, allow_pickle=True)
    assert [(site.site.layer, site.site.role) for site in found.sites] == [(0, "q"), (1, "q")]
    for site in found.sites:
        assert_same_update(site, merged_update(model.get_submodule(site.site.module)))
    assert "left out: biases" in found.notes[0]


def test_an_embedding_is_left_out_aloud(tmp_path):
    model = nn.Module()
    model.wte = loralib.Embedding(96, WIDTH, r=R)
    model.head = loralib.Linear(WIDTH, 8, r=R)
    torch.save(loralib.lora_state_dict(model), tmp_path / "a.pt")
    found = read_factors(tmp_path / "a.pt", lora_alpha=ALPHA, allow_pickle=True)
    assert [site.site.name for site in found.sites] == ["head"]
    assert "factors of embeddings" in found.notes[0]


def test_slices_that_are_not_the_bases_own_rows_stay_exact(tmp_path):
    base = anatomy(tiny("gpt-neox"))  # interleaves q, k and v by head; MergedLinear cuts thirds
    path = "gpt_neox.layers.1.attention.query_key_value"
    layer = loralib.MergedLinear(
        WIDTH, 3 * WIDTH, r=R, lora_alpha=ALPHA, enable_lora=[True, False, True]
    )
    nn.init.normal_(layer.lora_B)
    save_file(
        {f"{path}.{key}": value for key, value in loralib.lora_state_dict(layer).items()},
        tmp_path / "a.safetensors",
    )
    found = read_factors(tmp_path / "a.safetensors", lora_alpha=ALPHA, anatomy=base)
    assert [site.site.role for site in found.sites] == ["q", "k", "v"]
    delta = merged_update(layer)
    for site in found.sites:
        rows = site.site.rows
        own = delta.reshape(rows.groups, rows.group_size, WIDTH)
        own = own[:, rows.offset : rows.offset + rows.width].reshape(-1, WIDTH)
        assert_same_update(site, own)


def write(folder, **tensors):
    save_file({f"h.0.attn.{k}": v for k, v in tensors.items()}, folder / "a.safetensors")
    return folder / "a.safetensors"


def test_what_does_not_fit_ends_in_one_line(tmp_path):
    def message(**options):
        with pytest.raises(AdapterError) as caught:
            read_factors(tmp_path / "a.safetensors", **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    A, B = torch.ones(8, 32), torch.ones(64, 4)
    write(tmp_path, **{"q.lora_A": A, "q.lora_B": B})
    assert "do not hold α; give the one of its training (--alpha)" in message()
    assert "must be a positive number" in message(lora_alpha=0.0)
    assert "name 2 of q, k and v" in message(lora_alpha=4, slices=("q",))
    assert "name 2 of q, k and v" in message(lora_alpha=4, slices=("q", "w"))
    write(tmp_path, **{"q.lora_A": A, "q.lora_B": torch.ones(64, 3)})
    assert "neither loralib's Linear nor its MergedLinear" in message(lora_alpha=4)
    write(tmp_path, **{"q.lora_A": A})
    assert "lora_A without its partner lora_B" in message(lora_alpha=4)
    write(tmp_path, **{"q.lora_A": A * float("nan"), "q.lora_B": B})
    assert "is not a finite matrix" in message(lora_alpha=4)
    write(tmp_path, **{"q.lora_A.weight": A})
    assert "is not loralib's; for PEFT's format name the folder" in message(lora_alpha=4)
    write(tmp_path, **{"q.weight": A})
    assert "holds no LoRA factors of matrices" in message(lora_alpha=4)
    torch.save({}, tmp_path / "a.pt")
    with pytest.raises(AdapterError, match="is a pickle, which can run code"):
        read_factors(tmp_path / "a.pt", lora_alpha=4)
    for missing in (tmp_path / "b.pt", tmp_path):
        with pytest.raises(AdapterError, match=r"there is no file .*; name loralib's own"):
            read_factors(missing, lora_alpha=4)
