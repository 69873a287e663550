"""An adapter on disk, looked into: numbers against float64 with ΔW and W₀ built, and bad input."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch

import lora_lab as ll
from lora_lab.errors import LoraLabError
from lora_lab.reports.inspect import inspect_adapter
from lora_lab.reports.inspection_page import write_inspection
from tests.helpers.html_pages import EVIL, read
from tests.helpers.lora_outputs import everything
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer


def save_base(folder, name="llama"):
    """A tiny base model in a folder, as the hub would have it."""
    model = tiny(name)
    model.save_pretrained(folder / name)
    return model, folder / name


def save_adapter(model, folder, seed=0, **settings):
    model = copy.deepcopy(model)
    torch.manual_seed(seed)
    adapter = ll.attach(model, everything(**{"r": 3, "lora_alpha": 5, **settings}))
    ll.save_adapter(model, folder)
    return {
        name: (site.delta().detach().double().numpy(), adapter.base_weight(name).double().numpy())
        for name, site in adapter.sites.items()
    }


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_every_number_beside_the_base_is_that_of_the_matrices_built(name, tmp_path):
    model, base = save_base(tmp_path, name)
    expected = save_adapter(model, tmp_path / "a", target_modules=["q", "v", "down"])
    found = inspect_adapter(tmp_path / "a", base=base)
    assert [row.name for row in found.analysis.rows] == list(expected)
    for row, triple in zip(found.to_json()["sites"], found.amplifications, strict=True):
        delta, W = expected[row["name"]]
        U, s, Vt = np.linalg.svd(delta)
        along = np.linalg.norm(U[:, :3].T @ W @ Vt[:3].T)
        own = np.linalg.norm(np.linalg.svd(W, compute_uv=False)[:3])
        np.testing.assert_allclose(row["singular_values"], s[:3], rtol=1e-5)
        assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert row["stable_rank"] == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-4)
        assert row["amplification"] == pytest.approx(np.linalg.norm(delta) / along, rel=1e-4)
        assert row["along_delta"] == pytest.approx(along, rel=1e-4)
        assert row["along_own"] == pytest.approx(own, rel=1e-4)
        assert row["random_level"] == pytest.approx(
            np.linalg.norm(W) * 3 / np.sqrt(W.size), rel=1e-5
        )
        assert triple.r == 3
    intruders = {row["name"]: row["intruders"] for row in found.to_json()["sites"]}
    for name_, (delta, W) in expected.items():
        left = np.linalg.svd(W, full_matrices=False)[0]
        tuned = np.linalg.svd(W + delta)[0][:, :10]
        assert intruders[name_] == int((np.abs(tuned.T @ left).max(1) < 0.5).sum())
    json.dumps(found.to_json(), allow_nan=False)


def test_without_a_base_there_is_what_the_factors_tell(tmp_path):
    model, _ = save_base(tmp_path)
    expected = save_adapter(model, tmp_path / "a", target_modules=["q", "v"])
    found = inspect_adapter(tmp_path / "a")
    for row in found.to_json()["sites"]:
        s = np.linalg.svd(expected[row["name"]][0], compute_uv=False)[:3]
        p = s / s.sum()
        np.testing.assert_allclose(row["singular_values"], s, rtol=1e-5)
        assert row["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
        assert row["r"] == 3
        assert (row["layer"], row["role"]) in {(0, "q"), (0, "v"), (1, "q"), (1, "v")}
        assert "amplification" not in row
    assert found.parameters == 4 * 3 * 32 + 4 * 3 * 32 - 2 * 3 * 16  # v is 16 × 32
    strongest = sorted(expected, key=lambda name: -np.linalg.norm(expected[name][0]))[:3]
    assert [view.site for view in found.lone_spectra] == strongest


@pytest.mark.parametrize("with_base", [False, True])
def test_two_adapters_are_compared_where_both_are(with_base, tmp_path):
    model, base = save_base(tmp_path)
    first = save_adapter(model, tmp_path / "small", r=2, target_modules=["q", "v"])
    second = save_adapter(model, tmp_path / "large", seed=1, r=5, target_modules=["q", "k"])
    found = inspect_adapter(
        tmp_path / "small", against=tmp_path / "large", base=base if with_base else None
    )
    assert {o.site for o in found.overlaps} == first.keys() & second.keys()
    for overlap in found.overlaps:
        right = [np.linalg.svd(d[overlap.site][0])[2].T for d in (first, second)]
        phi = np.linalg.norm(right[0][:, :2].T @ right[1][:, :5]) ** 2 / 2
        assert (overlap.first, overlap.second, overlap.side) == ("r=2", "r=5", "input")
        assert overlap.values[1, 4] == pytest.approx(phi, abs=1e-4)
    assert set(found.details) <= first.keys() & second.keys()
    assert "2 matrices have no φ map" in found.notes[0]
    row = next(row for row in found.to_json()["sites"] if row["role"] == "q")
    assert row["overlap"]["random"] == pytest.approx(5 / 32)


def test_a_site_that_is_asked_for_is_shown_from_both_sides(tmp_path):
    model, base = save_base(tmp_path)
    save_adapter(model, tmp_path / "a")
    save_adapter(model, tmp_path / "b", seed=1)
    name = "model.layers.1.mlp.up_proj"
    found = inspect_adapter(tmp_path / "a", base=base, against=tmp_path / "b", site=name)
    assert found.details == (name,)
    assert [(o.side, o.second) for o in found.base_overlaps] == [("input", "W₀"), ("output", "W₀")]
    assert [(o.side, o.first) for o in found.shown_overlaps] == [("input", "a"), ("output", "a")]


def test_after_pissa_the_update_is_the_change_of_the_original_weights(tmp_path):
    from peft import LoraConfig, get_peft_model

    for name, targets in (("llama", ["q_proj"]), ("gpt2", ["c_attn"])):
        bare, base = save_base(tmp_path, name)
        config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights="pissa")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fan_in_fan_out is corrected
            theirs = get_peft_model(copy.deepcopy(bare), config)
        torch.manual_seed(0)
        with torch.no_grad():
            for key, parameter in theirs.named_parameters():
                if "lora_" in key:
                    parameter += 0.02 * torch.randn_like(parameter)
        theirs.save_pretrained(tmp_path / f"{name}-pissa")
        merged = theirs.merge_and_unload()
        found = inspect_adapter(tmp_path / f"{name}-pissa", base=base)
        for row in found.analysis.rows:
            path = row.name.partition("[")[0]
            delta = merged.get_submodule(path).weight - bare.get_submodule(path).weight
            delta = delta.detach().double().numpy()
            if name == "gpt2":
                at = 32 * "qkv".index(row.role)
                delta = delta.T[at : at + 32]
            s = np.linalg.svd(delta, compute_uv=False)[: len(row.singular_values)]
            np.testing.assert_allclose(row.singular_values, s, atol=2e-5)
            assert row.frobenius_norm == pytest.approx(np.linalg.norm(delta), rel=1e-3)
        assert any("against the original W₀" in note for note in found.notes)
        (note,) = inspect_adapter(tmp_path / f"{name}-pissa").notes
        assert "BA is ΔW and the part of W₀" in note


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a tiny model on disk, and its base model."""
    folder = tmp_path_factory.mktemp("trained")
    lm = tiny_lm()
    base = folder / "base"
    tiny_llama().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    run = ll.train(
        lm, tiny_task(), CONFIG, output_dir=folder / "runs", max_steps=6, eval_examples=2
    )
    run.result()
    return run.folder, base


def test_a_runs_folder_brings_its_steps_and_its_sweep(trained):
    folder, _ = trained
    found = inspect_adapter(folder, sweep=folder.parent)
    assert found.name == folder.name
    assert found.steps.steps[-1] == 6
    assert found.capacity.bits == 2 * found.parameters
    assert found.sweep.ranks == (4,)
    assert found.to_json()["steps"][0] == 0
    by_hand = inspect_adapter(folder / "adapter", run=folder)
    assert np.array_equal(by_hand.steps.steps, found.steps.steps)
    assert by_hand.sweep is None


def test_a_run_that_was_cut_off_gives_its_last_checkpoint(trained, tmp_path):
    import shutil

    run = shutil.copytree(trained[0], tmp_path / "run")
    for step in (8, 10):
        shutil.copytree(run / "adapter", run / "checkpoints" / f"step-{step}")
    shutil.rmtree(run / "adapter")
    found = inspect_adapter(run)
    assert found.notes[0] == "the run has no end yet: this is step 10"


def test_scaling_the_intruders_is_measured_on_a_task(trained, tmp_path, monkeypatch):
    folder, base = trained
    monkeypatch.setattr("lora_lab.reports.inspect.load_task", lambda name: tiny_task())
    expected = save_adapter(tiny_llama(), tmp_path / "strong", lora_alpha=300)
    count = 0
    for delta, W in expected.values():
        left = np.linalg.svd(W, full_matrices=False)[0]
        tuned = np.linalg.svd(W + delta)[0][:, :10]
        count += int((np.abs(tuned.T @ left).max(1) < 0.5).sum())
    assert count > 0
    curve = inspect_adapter(tmp_path / "strong", base=base, task="letters").curve
    assert curve.count == count
    assert set(curve.factors) >= {0.0, 1.0}
    assert np.isfinite(curve.task_losses).all()
    assert len(set(curve.task_losses.tolist())) == len(curve.factors)

    none = inspect_adapter(folder, base=base, task="letters")
    assert none.curve is None
    assert none.notes[-1] == "no intruder to scale"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"site": "model.layers.0.self_attn.q"},
            "has no matrix .*; near: model.layers.0.self_attn",
        ),
        ({"against": "other"}, "share no matrix"),
        ({"against": "nothing"}, "there is no folder"),
        ({"base": "gpt2"}, "for another base"),
        ({"base": "nothing"}, "no model is called|there is no folder"),
        ({"run": "a"}, "holds no spectra"),
        ({"sweep": "a"}, "no runs|nothing"),
        ({"sweep": "nothing"}, "there is no folder .*; name the one that holds the runs"),
        ({"task": "mini-e2e"}, "needs the base model; name it too"),
        ({"lora_alpha": 4.0}, "there is no file .*; name loralib's own"),
    ],
)
def test_what_cannot_be_looked_into_says_so_in_one_line(options, message, tmp_path):
    model, _ = save_base(tmp_path)
    save_base(tmp_path, "gpt2")
    save_adapter(model, tmp_path / "a", target_modules=["q"])
    save_adapter(model, tmp_path / "other", target_modules=["k"])
    paths = ("against", "base", "run", "sweep")
    options = {k: tmp_path / v if k in paths else v for k, v in options.items()}
    with pytest.raises(LoraLabError, match=message) as caught:
        inspect_adapter(tmp_path / "a", **options)
    assert "\n" not in str(caught.value)


def test_the_report_holds_every_figure_that_applies(trained, tmp_path):
    folder, base = trained
    found = inspect_adapter(folder, base=base, against=folder, sweep=folder.parent)
    page = read(write_inspection(tmp_path / "new" / "a.html", found))
    library, figures, _ = page.scripts
    assert "plotly.js" in library[:500]
    # The map, three sites (spectrum, φ with W₀, φ with the other), Table 7, intruders, steps,
    # capacity and sweep.
    assert len(json.loads(figures)) == 1 + 3 * 3 + 5
    for told in (*found.summaries(), "Every matrix’s numbers", "All 14 matrices", "base model: "):
        assert told.removesuffix("base model: ") in page.text
    alone = read(write_inspection(tmp_path / "alone.html", inspect_adapter(folder / "adapter")))
    assert len(json.loads(alone.scripts[1])) == 1 + 3
    assert "Intruder dimensions" not in alone.text


def test_names_in_a_report_are_escaped(tmp_path):
    model, _ = save_base(tmp_path)
    save_adapter(model, tmp_path / "a", target_modules=["q"])
    path = tmp_path / "a" / "adapter_config.json"
    settings = json.loads(path.read_text())
    token = "hf_aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF3h"
    settings |= {"base_model_name_or_path": f"{EVIL} {token}", "target_modules": [EVIL]}
    path.write_text(json.dumps(settings))
    weights = tmp_path / "a" / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = {
        key.replace("q_proj", EVIL.replace(".", "")): value
        for key, value in load_file(weights).items()
    }
    save_file(tensors, weights)
    page = read(write_inspection(tmp_path / "a.html", inspect_adapter(tmp_path / "a")))
    assert len(page.scripts) == 3
    assert "img" not in page.tags
    assert token not in page.text
    json.loads(page.scripts[1])
