"""CorDA against PEFT on the same samples, and against its formula in float64."""

import copy
import shutil

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora.corda import preprocess_corda

import lora_lab as ll
from lora_lab.errors import ConfigError
from tests.helpers.calibration import inputs_read, samples
from tests.helpers.peft_files import peft_model
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm, tiny_task

R = 3


def config(**more):
    values = {"r": R, "lora_alpha": 6, "target_modules": ["q", "v", "down"]}
    return ll.LoraConfig(**{**values, "init_lora_weights": "corda", **more})


def pefts(model, batches, targets, method):
    """PEFT's s·BA at the start; it wants samples of one sequence."""
    model = copy.deepcopy(model)
    options = peft.LoraConfig(
        r=R,
        lora_alpha=6,
        target_modules=targets,
        init_lora_weights="corda",
        corda_config=peft.tuners.lora.config.CordaConfig(corda_method=method),
    )

    def run():
        for batch in batches:
            model(**batch)

    preprocess_corda(model, options, run_model=run)
    wrapped = peft.get_peft_model(model, options)
    return {
        name.removeprefix("base_model.model."): 2
        * (module.lora_B["default"].weight @ module.lora_A["default"].weight).detach()
        for name, module in wrapped.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_it_starts_where_peft_does(method):
    model = tiny("llama")
    batches = samples(model, count=6, length=12)
    first = model(**batches[0]).logits
    expected = pefts(model, batches, ["q_proj", "v_proj", "down_proj"], method)
    given = config(corda_config=ll.CordaConfig(corda_method=method))
    adapter = ll.attach(model, given, batches=batches)
    assert expected.keys() == adapter.sites.keys()
    for name, site in adapter.sites.items():
        found = site.scale * (site.B @ site.A).detach()
        norm = expected[name].norm()
        assert norm > 1e-4, name
        assert (found - expected[name]).norm() < 1e-4 * norm, name
    torch.testing.assert_close(model(**batches[0]).logits, first, rtol=1e-5, atol=1e-5)


def test_a_batch_of_several_is_as_many_samples_without_their_pads():
    alone = tiny("llama")
    batches = samples(alone, count=4, length=12)
    together = copy.deepcopy(alone)
    ids = torch.cat([b["input_ids"] for b in batches])
    ids = torch.nn.functional.pad(ids, (0, 3), value=7)
    mask = torch.ones_like(ids)
    mask[:, 12:] = 0
    first = ll.attach(alone, config(), batches=batches)
    second = ll.attach(together, config(), batches=[{"input_ids": ids, "attention_mask": mask}])
    for name, site in first.sites.items():
        other = second.sites[name]
        torch.testing.assert_close(site.B @ site.A, other.B @ other.A, rtol=1e-3, atol=1e-5)


def test_a_slice_of_a_fused_matrix_is_its_own_formula():
    model = tiny("gpt2")
    batches = samples(model, count=6)
    adapter = ll.attach(model, config(target_modules=["v"]), batches=batches)
    site = adapter.sites["transformer.h.0.attn.c_attn[v]"]
    W = adapter.base_weight(site.site.name).double()
    ll.detach(model)
    rows = [x[0] for x in inputs_read(model, "transformer.h.0.attn.c_attn", batches)]
    C = sum((x / x.max().abs()).T @ (x / x.max().abs()) for x in rows).numpy()
    C += 0.01 * np.diag(C).mean() * np.eye(len(C))
    U, S, Vt = np.linalg.svd(W.numpy() @ C)
    expected = (U[:, :R] * S[:R]) @ Vt[:R] @ np.linalg.inv(C)
    found = (site.scale * (site.B @ site.A)).detach().double().numpy()
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_a_run_starts_so_and_its_file_is_the_update_of_the_base_as_it_was(tmp_path):
    lm = tiny_lm()
    base = copy.deepcopy(lm.model)
    options = {"max_steps": 3, "max_length": 64, "eval_examples": 0, "learning_rate": 1e-2}
    run = ll.train(lm, tiny_task(), config(), output_dir=tmp_path, **options)
    result = run.result(120)
    ids = torch.arange(8)[None]
    tuned = lm.model(ids).logits
    assert not torch.allclose(tuned, base(ids).logits, atol=1e-3)
    theirs = peft_model(copy.deepcopy(base), result.adapter_folder)
    torch.testing.assert_close(theirs(ids).logits, tuned, rtol=1e-4, atol=1e-5)
    ll.load_adapter(base, result.adapter_folder)
    torch.testing.assert_close(base(ids).logits, tuned, rtol=1e-4, atol=1e-5)
    assert ll.budget(lm.model, config()).parameters_trainable == run.adapter.trainable
    assert ll.dry_run(tiny("llama"), config(corda_config={"corda_method": "kpm"})).peak > 0


def test_a_run_that_was_cut_off_starts_at_the_same_place_again(tmp_path):
    """A₀ and B₀ are not in the checkpoint: the same batches give them again, bit for bit."""
    options = {"max_steps": 4, "max_length": 64, "eval_examples": 0, "save_steps": 2}
    folder = tmp_path / "whole"
    whole = ll.train(tiny_lm(), tiny_task(), config(), output_dir=folder, **options)
    whole.result(120)
    cut = shutil.copytree(whole.folder, tmp_path / "cut" / whole.id)
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "adapter")
    for later in {*(cut / "checkpoints").iterdir()} - {cut / "checkpoints" / "step-2"}:
        shutil.rmtree(later)
    again = ll.resume(cut, tiny_lm(), tiny_task())
    again.result(120)
    assert again.losses == whole.losses
    for name, site in whole.adapter.sites.items():
        other = again.adapter.sites[name]
        assert torch.equal(site.A, other.A)
        assert all(map(torch.equal, site.initial, other.initial))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"corda_config": {"corda_method": "spm"}}, "corda_method is 'spm'; use 'ipm' or 'kpm'"),
        ({"corda_config": {"cache_file": "x"}}, "cache_file is not supported; leave it out"),
        ({"use_dora": True}, "use_dora and init_lora_weights='corda' do not go together"),
    ],
)
def test_what_it_cannot_be_is_said(more, line):
    with pytest.raises(ConfigError, match=line):
        config(**more)


def test_embeddings_and_layers_that_read_nothing_are_said():
    model = tiny("llama")
    with pytest.raises(ConfigError, match=r"'corda' is for linear layers, and model\.embed_tokens"):
        ll.attach(model, config(target_modules=["embed_tokens"]), batches=samples(model))
    with pytest.raises(ConfigError, match=r"self_attn\.._proj read nothing in these batches"):
        ll.attach(model, config(), batches=[])
    assert not ll.attached(model)
