"""EVA against PEFT on the same batch, and against the SVD of what the layers read in float64."""

import copy
import warnings

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.utils.incremental_pca import IncrementalPCA

import lora_lab as ll
from lora_lab.errors import ConfigError
from tests.helpers.calibration import inputs_read, samples, sine
from tests.helpers.peft_files import peft_model
from tests.helpers.quantized_layers import quantized
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm, tiny_task

R = 3


@pytest.fixture
def exact(monkeypatch):
    """PEFT with its exact SVD: by default its directions are a random sketch's."""
    full = lambda **given: IncrementalPCA(**{**given, "lowrank": False})  # noqa: E731
    monkeypatch.setattr("peft.tuners.lora.eva.IncrementalPCA", full)


def config(**more):
    values = {"r": R, "target_modules": ["q", "v", "down"], "init_lora_weights": "eva"}
    return ll.LoraConfig(**{**values, **more})


def wrapped_by_peft(model, batches, **eva):
    """PEFT's model; where there is one batch it looks at it until nothing moves."""
    targets = ["c_attn", "c_proj"] if "gpt2" in type(model).__name__.lower() else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(
            copy.deepcopy(model),
            peft.LoraConfig(
                r=R,
                target_modules=targets or ["q_proj", "v_proj", "down_proj"],
                init_lora_weights="eva",
                eva_config=peft.EvaConfig(**{"rho": 1.0, "tau": 0.9999, **eva}),
            ),
        )
        initialize_lora_eva_weights(wrapped, batches, show_progress_bar=False)
    return wrapped


def pefts(model, batches, **eva):
    """PEFT's A of every target."""
    wrapped = wrapped_by_peft(model, batches, **eva)
    return {
        name.removeprefix("base_model.model."): module.lora_A["default"].weight.detach()
        for name, module in wrapped.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("whiten", [False, True])
def test_it_starts_where_peft_does(whiten, exact):
    model = tiny("llama")
    before = samples(model, count=1, length=40)
    first = model(**before[0]).logits
    expected = pefts(model, before, whiten=whiten)
    adapter = ll.attach(model, config(eva_config={"whiten": whiten}), batches=before)
    assert expected.keys() == adapter.sites.keys()
    for name, site in adapter.sites.items():
        assert not site.B.any()
        assert sine(site.A, expected[name]) < 1e-4, name
        ratio = expected[name].norm(dim=1) / site.A.detach().norm(dim=1)
        torch.testing.assert_close(
            site.A.detach(), expected[name] / ratio[:, None], rtol=0, atol=1e-4
        )
        # Whitened, PEFT's length depends on how often it has seen the batch, and where several
        # layers read one input it divides once for each.
        if not whiten:
            np.testing.assert_allclose(ratio, 1.0, rtol=1e-4)
        elif "down" in name:
            np.testing.assert_allclose(ratio, float(ratio[0]), rtol=1e-4)
    assert torch.equal(model(**before[0]).logits, first)


def test_pefts_sketch_finds_the_same_where_directions_stand_out():
    model = tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.3 ** torch.arange(32))
    batches = samples(model, count=1, length=40)
    expected = pefts(model, batches)
    adapter = ll.attach(model, config(), batches=batches)
    for leaf in ("q_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{leaf}"
        assert sine(adapter.sites[name].A, expected[name]) < 1e-4


@pytest.mark.parametrize("adjusts", [True, False])
def test_ranks_move_as_pefts_do(adjusts, exact, tmp_path):
    model = tiny("llama")
    with torch.no_grad():  # what the first layer reads has few directions
        model.model.embed_tokens.weight.mul_(0.6 ** torch.arange(32))
    base, batches = copy.deepcopy(model), samples(model, count=1, length=40)
    options = {"rho": 2.0, "adjust_scaling_factors": adjusts}
    theirs = wrapped_by_peft(model, batches, **options)
    expected = {
        name.removeprefix("base_model.model."): module
        for name, module in theirs.named_modules()
        if hasattr(module, "lora_A")
    }
    adapter = ll.attach(model, config(eva_config=options, lora_alpha=8), batches=batches)
    assert len(set(adapter.ranks.values())) > 1
    assert sum(adapter.ranks.values()) == 6 * R
    # Of layers that read one input PEFT breaks ties by chance: q's and v's are counted together.
    for layer in range(2):
        pair = [f"model.layers.{layer}.self_attn.{leaf}_proj" for leaf in "qv"]
        theirs_ranks = [expected[name].r["default"] if name in expected else 0 for name in pair]
        assert sum(adapter.ranks.get(name, 0) for name in pair) == sum(theirs_ranks)
    for name in expected.keys() & adapter.sites.keys():
        site, theirs_rank = adapter.sites[name], expected[name].r["default"]
        if "down" in name:
            assert site.r == theirs_rank
            np.testing.assert_allclose(site.scale, expected[name].scaling["default"])
        r = min(site.r, theirs_rank)
        assert sine(site.A[:r], expected[name].lora_A["default"].weight[:r]) < 1e-4
    with torch.no_grad():
        for site in adapter.sites.values():
            site.B.normal_()
    ll.save_adapter(model, tmp_path)
    tuned = model(**batches[0]).logits
    theirs = peft_model(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(theirs(**batches[0]).logits, tuned, rtol=1e-4, atol=1e-4)
    assert ll.load_adapter(base, tmp_path).ranks == adapter.ranks


def test_tokens_without_a_label_have_no_part_in_it(exact):
    model = tiny("llama")
    (batch,) = samples(model, count=1, length=40, size=2)
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, :15] = -100
    batch["attention_mask"][1, 32:] = 0
    for masked in (True, False):
        expected = pefts(model, [batch], use_label_mask=masked)
        options = ll.EvaConfig(use_label_mask=masked)
        adapter = ll.attach(model, config(eva_config=options), "default", batches=[batch])
        for name, site in adapter.sites.items():
            assert sine(site.A, expected[name]) < 1e-4, (name, masked)
        ll.detach(model)


def test_of_several_batches_it_is_the_svd_of_all_rows():
    model = tiny("qwen2")
    batches = samples(model, count=5)
    adapter = ll.attach(model, config(), batches=batches)
    ll.activate(model, None)
    for path in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"):
        X = torch.cat(inputs_read(model, path, batches), 1)[0].numpy()
        _, S, Vt = np.linalg.svd(X - X.mean(0), full_matrices=False)
        signs = np.sign(Vt[np.arange(len(Vt)), np.abs(Vt).argmax(1)])
        expected = torch.from_numpy(Vt[:R] * signs[:R, None]).float()
        assert S[R - 1] > 1.02 * S[R], "else the directions are not told apart"
        torch.testing.assert_close(adapter.sites[path].A.detach(), expected, rtol=0, atol=1e-4)


def test_slices_of_a_fused_matrix_read_one_input(exact):
    model = tiny("gpt2")
    batches = samples(model, count=1, length=40)
    expected = pefts(model, batches)
    adapter = ll.attach(model, config(), batches=batches)
    for layer in range(2):
        for role in "qv":
            name = f"transformer.h.{layer}.attn.c_attn"
            assert sine(adapter.sites[f"{name}[{role}]"].A, expected[name]) < 1e-4


def test_a_quantized_base_needs_no_weights_for_it():
    model = quantized("llama")
    adapter = ll.attach(model, config(), batches=samples(model))
    A = adapter.sites["model.layers.0.self_attn.q_proj"].A.double()
    torch.testing.assert_close(A @ A.T, torch.eye(R).double(), rtol=0, atol=1e-5)


def test_a_run_starts_so_and_is_saved_as_any_lora(tmp_path):
    lm = tiny_lm()
    base = copy.deepcopy(lm.model)
    options = {"max_steps": 3, "max_length": 64, "eval_examples": 0}
    run = ll.train(lm, tiny_task(), config(), output_dir=tmp_path, **options)
    result = run.result(120)
    record = ll.list_runs(tmp_path)[0].config["configs"][0]
    assert record["init_lora_weights"] == "eva"
    tuned = lm.model(torch.arange(8)[None]).logits
    theirs = peft_model(base, result.adapter_folder)
    torch.testing.assert_close(theirs(torch.arange(8)[None]).logits, tuned, rtol=1e-4, atol=1e-5)
    forecast = ll.budget(lm.model, config())
    assert forecast.parameters_trainable == run.adapter.trainable
    assert ll.dry_run(tiny("llama"), config(), sequence_length=8).peak > 0


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"eva_config": {"rho": 0.5}}, "rho is 0.5; it must be at least 1"),
        ({"eva_config": {"whitten": True}}, "EvaConfig has no field 'whitten'; did you mean"),
        ({"eva_config": 3}, "eva_config is 3; give a mapping, or EvaConfig"),
    ],
)
def test_what_it_cannot_be_is_said(more, line):
    with pytest.raises(ConfigError, match=line):
        config(**more)


def test_too_few_tokens_are_said_and_nothing_changes():
    model = tiny("llama")
    before = [type(part) for part in model.modules()]
    with pytest.raises(ConfigError, match="the batches hold 3; pass more batches"):
        ll.attach(model, config(), batches=samples(model, count=1, length=3))
    with pytest.raises(ConfigError, match="'eva' starts from what the layers read; pass batches"):
        ll.attach(model, config())
    assert [type(part) for part in model.modules()] == before


def test_settings_without_it_are_left_out_with_a_warning_as_in_peft():
    with pytest.warns(UserWarning, match="eva_config has no effect: it is for .*'eva'"):
        given = config(init_lora_weights=True, eva_config={"whiten": True})
    assert given == config(init_lora_weights=True)


def test_pefts_own_dataclass_will_do_and_the_config_goes_through_a_file():
    given = config(eva_config=peft.EvaConfig(rho=1.0, whiten=True))
    assert given == config(eva_config=ll.EvaConfig(whiten=True))
    assert ll.LoraConfig.from_dict(given.to_dict()) == given
    assert eval(given.to_python(), {"ll": ll}) == given
