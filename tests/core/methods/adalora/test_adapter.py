"""AdaLoRA: against PEFT's, against its own formulas, and through every call of the API."""

import copy
import warnings

import numpy as np
import pytest
import torch

import lora_lab as ll
from lora_lab.analysis import adapter_spectra
from lora_lab.errors import AdapterError, ConfigError
from tests.helpers.adalora import (
    STEPS,
    attached,
    config,
    emptied,
    logits,
    optimizer_of,
    stirred,
    train,
    trained,
)
from tests.helpers.tiny_models import tiny, tiny_inputs

# Against PEFT -------------------------------------------------------------------------------------


def pefts(model, adapter, total=STEPS, **changes):
    """PEFT's AdaLoRA on the same model with the same weights."""
    from peft import AdaLoraConfig, get_peft_model

    own = adapter.config
    settings = {
        key: getattr(own, key)
        for key in ("target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2")
    }
    modules = sorted({site.site.module.rpartition(".")[2] for site in adapter.sites.values()})
    peer = get_peft_model(
        model,
        AdaLoraConfig(
            **settings,
            orth_reg_weight=own.orth_reg_weight,
            total_step=total,
            lora_alpha=6,
            target_modules=modules,
            task_type="CAUSAL_LM",
            **changes,
        ),
    )
    layers = {n: peer.base_model.model.get_submodule(n) for n in adapter.sites}
    with torch.no_grad():
        for name, site in adapter.sites.items():
            layers[name].lora_A["default"].copy_(site.Q)
            layers[name].lora_B["default"].copy_(site.P)
            layers[name].lora_E["default"].copy_(site.lambdas[:, None])
    return peer, layers


def test_outputs_loss_and_gradients_are_pefts():
    # PEFT divides by init_r + 1e-5 where s is α/init_r here.
    model, adapter = attached(double=True, lora_alpha=6 * 3 / (3 + 1e-5))
    stirred(adapter)
    peer, layers = pefts(tiny("llama").double(), adapter)
    batch = tiny_inputs(model, batch=2, length=8)
    ours, theirs = (m(**batch, labels=batch["input_ids"]) for m in (model, peer))
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-10, atol=1e-10)

    def compare(rtol, atol):
        for name, site in adapter.sites.items():
            for own, key in ((site.Q, "A"), (site.P, "B"), (site.lambdas, "E")):
                peers = getattr(layers[name], f"lora_{key}")["default"]
                torch.testing.assert_close(own.grad, peers.grad.view_as(own), rtol=rtol, atol=atol)
                own.grad = peers.grad = None

    for output in (ours, theirs):
        output.logits.square().mean().backward(retain_graph=True)
    compare(rtol=1e-8, atol=1e-12)
    # transformers takes the loss in float32, and PEFT adds its regularizer to that.
    loss = ours.loss + adapter.penalty()
    assert loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert loss.item() > ours.loss.item() + 0.1
    loss.backward()
    theirs.loss.backward()
    compare(rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "schedule",
    [{}, {"tinit": 0, "deltaT": 1, "tfinal": 0}, {"tinit": 1, "deltaT": 5, "tfinal": 4}],
)
def test_masks_are_pefts_step_by_step_on_given_gradients(schedule):
    """The authors' rule, as PEFT's RankAllocator has it.

    PEFT is told of a step after the optimizer took it, and scores the moved weights with the
    gradients from before; here, as Algorithm 1 has it, both are from before. A learning rate of 0
    makes them the same. Neither scores the gradients of the last cut's own step.
    """
    _, adapter = attached(**schedule)
    stirred(adapter)
    peer, layers = pefts(tiny("llama"), adapter)
    assert adapter.trainable == peer.get_nb_trainable_parameters()[0]
    optimizer = optimizer_of(adapter, torch.optim.SGD, lr=0.0)
    adapter.begin_training(optimizer, STEPS)
    last = STEPS - adapter.config.tfinal
    generator = torch.Generator().manual_seed(1)
    cuts = 0
    for step in range(1, last + 1):
        before = {name: site.lambdas.detach().clone() for name, site in adapter.sites.items()}
        for name, site in adapter.sites.items():
            for own, key in ((site.Q, "A"), (site.P, "B"), (site.lambdas, "E")):
                own.grad = torch.randn(own.shape, generator=generator)
                peers = getattr(layers[name], f"lora_{key}")["default"]
                peers.grad = own.grad.clone().view_as(peers)
        optimizer.step()
        peer.base_model.update_and_allocate(step)
        theirs = {
            name: layer.lora_E["default"].detach().flatten() for name, layer in layers.items()
        }
        cuts += sum(torch.count_nonzero(t).item() for t in theirs.values()) < 14 * 3
        for name, site in adapter.sites.items():
            left = theirs[name] != 0
            if step < last:
                assert torch.equal(site.lambdas, theirs[name]), (step, name)
            else:  # gathered
                assert torch.equal(site.lambdas, before[name][left]), name
                assert adapter.ranks[name] == int(left.sum())
    assert cuts > 2
    assert sum(adapter.ranks.values()) == 14


def test_the_trained_adapter_is_plain_lora_to_peft_and_to_us(tmp_path):
    from peft import PeftModel

    model, adapter, _ = trained()
    assert 0 in adapter.ranks.values()  # or the test would not see what PEFT has no form for
    ll.save_adapter(model, tmp_path)
    expected = logits(model)
    peer = PeftModel.from_pretrained(tiny("llama"), tmp_path)
    torch.testing.assert_close(logits(peer), expected, rtol=1e-5, atol=1e-5)
    again = tiny("llama")
    loaded = ll.load_adapter(again, tmp_path)
    assert loaded.method == "LoRA"
    assert loaded.ranks == {name: r for name, r in adapter.ranks.items() if r}
    torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 5, STEPS])
def test_fused_slices_are_saved_at_every_stage(tmp_path, steps):
    model, _, _ = trained("gpt2", steps, target_modules=["q", "v", "up"])
    ll.save_adapter(model, tmp_path / "own")
    ll.export_uniform(model, tmp_path / "uniform")
    expected = logits(model)
    for folder in ("own", "uniform"):
        again = tiny("gpt2")
        ll.load_adapter(again, tmp_path / folder)
        torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
    assert (torch.equal(expected, logits(tiny("gpt2")))) == (steps == 0)


# Its own formulas ---------------------------------------------------------------------------------


def test_it_starts_as_the_paper_says():
    model, adapter = attached()
    bare = logits(tiny("llama"))
    assert torch.equal(logits(model), bare)
    together = torch.cat([p.detach().flatten() for s in adapter.sites.values() for p in (s.P, s.Q)])
    assert together.mean().item() == pytest.approx(0, abs=1e-3)
    assert together.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(site.scale == 2 for site in adapter.sites.values())
    assert adapter.ranks == dict.fromkeys(adapter.sites, 3)
    assert adapter.trainable == ll.budget(tiny("llama"), config()).parameters_trainable


def test_the_penalty_is_the_mean_norm_over_all_matrices_left():
    _, adapter = emptied()
    stirred(adapter)
    norms = []
    for site in adapter.sites.values():
        if site.r == 0:
            continue
        P, Q = site.P.detach().double().numpy(), site.Q.detach().double().numpy()
        norms += [np.linalg.norm(P.T @ P - np.eye(3)), np.linalg.norm(Q @ Q.T - np.eye(3))]
    assert len(norms) == 2 * (14 - 3)
    expected = 0.5 * np.mean(norms)
    assert adapter.penalty().item() == pytest.approx(expected, rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert adapter.penalty().item() == pytest.approx(expected, rel=1e-6)
    assert attached(orth_reg_weight=0)[1].penalty() is None


def test_orthonormal_vectors_have_a_penalty_and_a_gradient_of_zero():
    _, adapter = attached(target_modules=["q"])
    with torch.no_grad():
        for site in adapter.sites.values():
            site.P.copy_(torch.eye(*site.P.shape))
            site.Q.copy_(torch.eye(*site.Q.shape))
    penalty = adapter.penalty()
    penalty.backward()
    assert penalty.item() == 0
    assert all(not p.grad.any() for s in adapter.sites.values() for p in (s.P, s.Q))


# A site without triplets --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("roles", [("q", "k", "v"), ("q",), ("k", "v", "up")])
def test_a_site_without_triplets_adds_nothing(name, roles):
    model, adapter = emptied(name, roles)
    reference = tiny(name)
    kept = ll.attach(reference, config())
    with torch.no_grad():
        for key, site in kept.sites.items():
            own = adapter.sites[key]
            if own.r:
                site.replace(own.P, own.lambdas, own.Q, own.kept)
            else:
                site.lambdas.zero_()
    batch = tiny_inputs(model, batch=2)
    outputs = [m(**batch, labels=batch["input_ids"]) for m in (model, reference)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    for output in outputs:
        output.loss.backward()
    for key, site in adapter.sites.items():
        if site.r:
            for own, theirs in zip(site.triplets, kept.sites[key].triplets, strict=True):
                torch.testing.assert_close(own.grad, theirs.grad)
    spectra = adapter_spectra(adapter)
    for key, site in adapter.sites.items():
        if not site.r:
            assert not spectra[key].any()
            assert key not in adapter.parameters_by_location()
            assert not site.update.triplets()[1].any()
    assert ll.analyze(model).rows


def test_an_adapter_without_any_triplet_is_not_saved(tmp_path):
    model, adapter = emptied("gpt2", ("q", "v"), layer=0)
    for site in adapter.sites.values():
        site.kept = [False] * site.r
        list(site.gather())
    with pytest.raises(AdapterError, match="no triplets left at any matrix"):
        ll.save_adapter(model, tmp_path)
    assert not list(tmp_path.iterdir())


# The verbs ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*without AdaLoRA's cuts")
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_merging_and_detaching(name):
    model = tiny(name)
    before = copy.deepcopy(model.state_dict())
    classes = [type(m) for m in model.modules()]
    adapter = ll.attach(model, config())
    stirred(adapter)
    batch = tiny_inputs(model, batch=2)
    adapted = logits(model, batch)
    ll.merge(model)
    torch.testing.assert_close(logits(model, batch), adapted, rtol=1e-4, atol=1e-5)
    ll.unmerge(model)
    assert torch.equal(logits(model, batch), adapted)
    ll.detach(model)
    ll.detach(model)
    assert [type(m) for m in model.modules()] == classes
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not [n for n, p in model.named_parameters() if not p.requires_grad]


def test_a_loop_that_never_asked_for_cuts_is_told_when_it_saves_or_merges(tmp_path):
    model, adapter = attached()
    optimizer = optimizer_of(adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ll.save_adapter(model, tmp_path)  # nothing is learned yet
    train(model, adapter, optimizer, 2)
    line = r"without AdaLoRA's cuts: every rank is init_r 3 .* call adapter\.begin_training"
    with pytest.warns(UserWarning, match=line):
        ll.save_adapter(model, tmp_path)
    with pytest.warns(UserWarning, match=line):
        ll.merge(model)
    ll.unmerge(model)
    both = ll.attach(model, [config(), ll.BitFitConfig(new_biases=True)], "both")
    stirred(both.adapters[0])
    with pytest.warns(UserWarning, match=line):
        ll.save_adapter(model, tmp_path)
    model, _, _ = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ll.save_adapter(model, tmp_path)
        ll.merge(model)


def test_sums_and_mixed_batches_take_it_as_lora():
    model, _ = emptied()
    expected = logits(model)
    bare = logits(tiny("llama"))
    model.eval()
    batch = tiny_inputs(model, batch=2)
    with ll.mixed_batch(model, ["default", None]):
        mixed = logits(model, batch)
    torch.testing.assert_close(mixed[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], bare[1], rtol=1e-4, atol=1e-5)
    ll.combine(model, {"default": 1.0}, "sum")
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"init_r": 40}, "rank 40 at .* use at most 32"),
        ("llama", {"target_modules": ["embed_tokens"]}, "AdaLoRA is for linear layers"),
        ("llama", {"target_modules": ["nowhere"]}, "matches nothing in this model"),
    ],
)
def test_what_it_cannot_adapt_is_refused_before_anything_is_changed(name, changes, message):
    model = tiny(name)
    before = [(n, type(m)) for n, m in model.named_modules()]
    with pytest.raises(ConfigError, match=message):
        ll.attach(model, config(**changes))
    assert [(n, type(m)) for n, m in model.named_modules()] == before
    assert all(p.requires_grad for p in model.parameters())


def test_intruders_are_not_scaled_in_triplets():
    model, _ = attached()
    with (
        pytest.raises(AdapterError, match="is AdaLoRA; only LoRA's factors can be exchanged"),
        ll.analysis.scaled_intruders(model, [], 0.5),
    ):
        pass
