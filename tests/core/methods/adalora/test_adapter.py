"""AdaLoRA: against PEFT's, against its own formulas, and to the end of a training and back."""

import copy
import io
import json
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.analysis import adapter_spectra
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.adalora.shrink_optimizer import replace_parameters
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_run import tiny_lm, tiny_task

STEPS = 12


def config(**changes) -> ll.AdaLoraConfig:
    """Cuts after steps 4, 6, 8 and, the last one, 9."""
    settings = {"target_r": 1, "init_r": 3, "tinit": 2, "tfinal": 3, "deltaT": 2, "lora_alpha": 6}
    return ll.AdaLoraConfig(**{**settings, "target_modules": "all-linear", **changes})


def attached(name="llama", seed=0, double=False, **changes):
    model = tiny(name)
    model = model.double() if double else model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model, ll.attach(model, config(**changes))


def stirred(adapter) -> None:
    """Give λ values, so that every number counts."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for site in adapter.sites.values():
            site.lambdas.copy_(torch.randn(site.r, generator=generator))


def optimizer_of(adapter, kind=torch.optim.AdamW, **settings):
    return kind(adapter.parameters(), **{"lr": 2e-2, **settings})


def train(model, adapter, optimizer, steps, first=1):
    """Take steps first … first + steps − 1; every step has its own batch."""
    losses = []
    for step in range(first, first + steps):
        batch = tiny_inputs(model, batch=2, length=8, seed=step)
        loss = model(**batch, labels=batch["input_ids"]).loss
        losses.append(loss.item())
        penalty = adapter.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def trained(name="llama", steps=STEPS, **changes):
    model, adapter = attached(name, **changes)
    optimizer = optimizer_of(adapter)
    adapter.begin_training(optimizer, STEPS)
    train(model, adapter, optimizer, steps)
    return model, adapter, optimizer


def logits(model, batch=None):
    with torch.no_grad():
        return model(**(batch or tiny_inputs(model, batch=2))).logits


def emptied(name="llama", roles=("q", "k", "v"), layer=1):
    """A model whose adapter has no triplet left at some sites of one layer."""
    model, adapter = attached(name)
    stirred(adapter)
    with torch.no_grad():
        for site in adapter.sites.values():
            if site.site.layer == layer and site.site.role in roles:
                site.kept = [False] * site.r
                list(site.gather())
    return model, adapter


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


def test_the_budget_is_kept_at_every_step():
    model, adapter = attached()
    optimizer = optimizer_of(adapter)
    adapter.begin_training(optimizer, STEPS)
    totals = []
    for step in range(1, STEPS + 1):
        train(model, adapter, optimizer, 1, step)
        totals.append(sum(adapter.ranks.values()))
        if step in (4, 6, 8):
            for site in adapter.sites.values():
                assert not site.lambdas[~torch.tensor(site.kept)].any()
    # b(t) = 14 + 28·(1 − (t − 2)/7)³, rounded down, after the cuts at 4, 6, 8 and 9.
    assert totals == [42, 42, 42, 24, 24, 16, 16, 14, 14, 14, 14, 14]
    assert adapter.step == STEPS


def test_a_cut_triplet_grows_until_the_next_cut():
    model, adapter = attached(deltaT=3, tinit=0, tfinal=1, target_modules=["q", "v"])
    optimizer = optimizer_of(adapter)
    adapter.begin_training(optimizer, STEPS)
    train(model, adapter, optimizer, 3)
    cut = [~torch.tensor(site.kept) for site in adapter.sites.values()]
    assert sum(int(c.sum()) for c in cut) > 0
    zeroed = [site.lambdas[c] for site, c in zip(adapter.sites.values(), cut, strict=True)]
    assert not torch.cat(zeroed).any()
    train(model, adapter, optimizer, 1, 4)
    grown = [site.lambdas[c] for site, c in zip(adapter.sites.values(), cut, strict=True)]
    assert torch.cat(grown).all()


# Gathering ----------------------------------------------------------------------------------------


def test_after_gathering_it_learns_as_if_the_others_were_held_at_zero():
    """PEFT goes on with all triplets and zeroes the cut ones after every step."""
    pairs = []
    for _ in range(2):
        model, adapter = attached(double=True, orth_reg_weight=0)
        stirred(adapter)
        pairs.append((model, adapter, optimizer_of(adapter)))
    generator = torch.Generator().manual_seed(3)
    kept = {n: torch.rand(3, generator=generator) < 0.4 for n in pairs[0][1].sites}
    assert {int(k.sum()) for k in kept.values()} >= {0, 1, 2}

    def hold(adapter):
        with torch.no_grad():
            for name, site in adapter.sites.items():
                site.lambdas[~kept[name]] = 0

    for model, adapter, optimizer in pairs:
        train(model, adapter, optimizer, 3)
        hold(adapter)
    (model, adapter, optimizer), (masked_model, masked, masked_optimizer) = pairs
    old = [weakref.ref(s.P) for n, s in adapter.sites.items() if not kept[n].all()]
    for name, site in adapter.sites.items():
        site.kept = kept[name].tolist()
    replace_parameters(
        optimizer, dict(pair for site in adapter.sites.values() for pair in site.gather())
    )
    assert not any(reference() for reference in old)  # memory really falls
    for step in range(4, 8):
        train(model, adapter, optimizer, 1, step)
        train(masked_model, masked, masked_optimizer, 1, step)
        hold(masked)
    for name, site in adapter.sites.items():
        left, whole = kept[name], masked.sites[name]
        torch.testing.assert_close(site.P, whole.P[:, left], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(site.lambdas, whole.lambdas[left], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(site.Q, whole.Q[left], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logits(model), logits(masked_model), rtol=1e-9, atol=1e-9)


def test_the_last_cut_leaves_less_of_everything():
    model, adapter, optimizer = trained()
    shapes = {n: (s.site.out_features, s.site.in_features) for n, s in adapter.sites.items()}
    expected = sum(r * (sum(shapes[name]) + 1) for name, r in adapter.ranks.items())
    assert adapter.trainable == expected
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    own = list(adapter.parameters())
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(p) for p in own]
    assert set(optimizer.state) == set(own)
    for parameter in own:
        assert optimizer.state[parameter]["exp_avg_sq"].shape == parameter.shape
    assert adapter.training_state()["scores"] is None
    assert all(site.scale == 2 and site.alpha == 2 * site.r for site in adapter.sites.values())


def test_steps_are_counted_once_where_an_optimizer_calls_its_parents_step():
    torch.optim.AdamW([nn.Parameter(torch.ones(1))])  # torch wraps this class's step from here on

    class Own(torch.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    results = []
    for kind in (torch.optim.AdamW, Own):
        model, adapter = attached()
        optimizer = optimizer_of(adapter, kind)
        adapter.begin_training(optimizer, STEPS)
        train(model, adapter, optimizer, 5)
        assert adapter.step == 5
        results.append(adapter.training_state()["scores"]["uncertainty"])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


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
    with pytest.raises(AdapterError, match="no triplets left at any site"):
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


def test_a_merge_in_the_midst_of_training_changes_nothing():
    ends = []
    for merges in (False, True):
        model, adapter = attached()
        optimizer = optimizer_of(adapter)
        adapter.begin_training(optimizer, STEPS)
        train(model, adapter, optimizer, 5)
        if merges:
            ll.merge(model)
            ll.unmerge(model)
        train(model, adapter, optimizer, STEPS - 5, 6)
        ends.append(adapter)
    assert ends[1].final
    assert ends[0].ranks == ends[1].ranks
    for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_no_hook_is_left_behind():
    model, adapter = attached()
    first, second = optimizer_of(adapter), optimizer_of(adapter)
    adapter.begin_training(first, STEPS)
    adapter.begin_training(second, STEPS)
    assert not first._optimizer_step_pre_hooks
    assert not first._optimizer_step_post_hooks
    assert len(second._optimizer_step_pre_hooks) == len(second._optimizer_step_post_hooks) == 1
    gone = weakref.ref(second)
    ll.detach(model)
    assert not second._optimizer_step_pre_hooks
    assert not second._optimizer_step_post_hooks
    del second
    assert gone() is None  # the adapter does not keep an optimizer's memory


def test_a_copy_of_the_model_hears_of_nobodys_optimizer():
    model, adapter = attached()
    stirred(adapter)
    optimizer = optimizer_of(adapter)
    adapter.begin_training(optimizer, STEPS)
    train(model, adapter, optimizer, 3)
    twin = copy.deepcopy(model)
    ll.activate(twin, None)
    ll.merge(twin, "default")
    ll.unmerge(twin)
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    before = ll.attached(twin)["default"].snapshot()
    train(model, adapter, optimizer, STEPS - 3, 4)
    for now, then in zip(ll.attached(twin)["default"].snapshot(), before, strict=True):
        assert torch.equal(now, then)


def test_a_loop_that_never_asked_for_cuts_is_told_when_it_saves_or_merges(tmp_path):
    model, adapter = attached()
    optimizer = optimizer_of(adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ll.save_adapter(model, tmp_path)  # nothing is learnt yet
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


def test_values_go_back_over_the_last_cut():
    model, adapter = attached()
    optimizer = optimizer_of(adapter)
    adapter.begin_training(optimizer, STEPS)
    train(model, adapter, optimizer, 5)
    values, expected, ranks = adapter.snapshot(), logits(model), adapter.ranks
    train(model, adapter, optimizer, STEPS - 5, 6)
    after, at_end = adapter.snapshot(), logits(model)
    adapter.restore(values)
    assert torch.equal(logits(model), expected)
    assert adapter.ranks == ranks
    adapter.restore(after)
    assert torch.equal(logits(model), at_end)


def test_beside_another_method_it_still_goes_back_over_the_last_cut():
    model = tiny("llama")
    both = ll.attach(
        model, [config(target_modules=["q"]), ll.LoraConfig(r=2, target_modules=["v"])]
    )
    optimizer = optimizer_of(both)
    both.begin_training(optimizer, STEPS)
    train(model, both, optimizer, 2)
    values, expected = both.snapshot(), logits(model)
    train(model, both, optimizer, STEPS - 2, 3)
    assert sorted(both.ranks.values()) != [2, 2, 3, 3]
    both.restore(values)
    assert torch.equal(logits(model), expected)
    assert sorted(both.ranks.values()) == [2, 2, 3, 3]


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


# Going on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [1, 3, 4, 5, 8, 9, 10, 11])
def test_a_resumed_training_is_the_same_bit_for_bit(kill):
    """The last cut comes after step 9."""
    whole, expected, whole_optimizer = trained()
    model, adapter, optimizer = trained(steps=kill)
    file = io.BytesIO()
    torch.save({"method": adapter.training_state(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    model, adapter = attached(seed=99)
    adapter.load_training_state(state["method"])
    optimizer = optimizer_of(adapter)
    optimizer.load_state_dict(state["optimizer"])
    adapter.begin_training(optimizer, STEPS)
    train(model, adapter, optimizer, STEPS - kill, kill + 1)
    assert adapter.step == STEPS
    assert adapter.ranks == expected.ranks
    for a, b in zip(adapter.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
        for key, moment in optimizer.state[a].items():
            assert torch.equal(moment, whole_optimizer.state[b][key])
    assert torch.equal(logits(model), logits(whole))


def test_what_is_kept_does_not_change_with_the_training():
    model, adapter, optimizer = trained(steps=3)
    state = adapter.training_state()
    before = copy.deepcopy(state)
    train(model, adapter, optimizer, 4, 4)
    assert repr(before) == repr(state)
    assert repr(state) != repr(adapter.training_state())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"target_modules": ["q"]}, "of other sites than this adapter"),
        ({"name": "smollm", "hidden_size": 48}, "resume with the model that the run"),
    ],
)
def test_the_state_of_another_adapter_is_refused_and_nothing_changes(other, message):
    _, adapter = attached()
    if "name" in other:
        model = tiny(other["name"], hidden_size=other["hidden_size"])
        state = ll.attach(model, config()).training_state()
    else:
        state = attached(**other)[1].training_state()
    before = [p.clone() for p in adapter.parameters()]
    with pytest.raises(AdapterError, match=message):
        adapter.load_training_state(state)
    assert all(torch.equal(a, b) for a, b in zip(before, adapter.parameters(), strict=True))


# In a run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_trains_cuts_gathers_and_saves(tmp_path, checkpointing):
    from peft import PeftModel

    lm = tiny_lm()
    run = ll.train(
        lm,
        tiny_task(),
        config(tinit=0, deltaT=1, tfinal=4),
        max_steps=STEPS,
        learning_rate=1e-2,
        gradient_checkpointing=checkpointing,
        gradient_accumulation_steps=2,
        output_dir=tmp_path,
    )
    result = run.result(120)
    assert sum(run.adapter.ranks.values()) == 14
    assert run.adapter.final
    assert len(result.losses) == STEPS
    peer = PeftModel.from_pretrained(tiny_lm().model, result.adapter_folder)
    batch = {"input_ids": torch.arange(3, 40)[None]}
    lm.model.eval()
    torch.testing.assert_close(logits(peer, batch), logits(lm.model, batch), rtol=1e-4, atol=1e-4)
    again = tiny_lm().model
    ll.load_adapter(again, result.adapter_folder)
    torch.testing.assert_close(logits(again, batch), logits(lm.model, batch), rtol=1e-4, atol=1e-4)


def test_a_run_that_is_stopped_says_how_far_the_ranks_have_come(tmp_path):
    """14 sites at rank 3, on the way to 1: what is saved is the LoRA of the ranks that are left."""
    lm = tiny_lm()
    run = ll.train(
        lm,
        tiny_task(),
        config(tinit=0, deltaT=1, tfinal=4),
        max_steps=40,
        learning_rate=1e-2,
        save_steps=0,
        eval_examples=0,
        output_dir=tmp_path,
        start=False,
    )
    published = run.publish

    def publish(**changes):
        published(**changes)
        if changes.get("step") == 8:
            run.stop()

    run.publish = publish
    run.start()
    result = run.result(120)
    assert run.snapshot.step == 8
    ranks = run.adapter.ranks
    mean = sum(ranks.values()) / 14
    assert 1 < mean < 3
    said = (
        f"stopped at step 8 of 40: AdaLoRA's ranks are {mean:.1f} in the mean still, on the way to "
        "1.0: the last cut comes after step 36"
    )
    assert said in run.notes
    assert said in json.loads((run.folder / "summary.json").read_text())["notes"]
    again = tiny_lm().model
    loaded = ll.load_adapter(again, result.adapter_folder)
    batch = {"input_ids": torch.arange(3, 40)[None]}
    lm.model.eval()
    torch.testing.assert_close(logits(again, batch), logits(lm.model, batch), rtol=1e-4, atol=1e-4)
    assert loaded.trainable < run.adapter.trainable or mean == 3  # zeroed triplets are left out


def test_a_place_that_the_first_step_cuts_is_not_taken_for_dead(tmp_path):
    """Without a penalty all scores of the first step are 0, and whole sites go at once."""
    run = ll.train(
        tiny_lm(),
        tiny_task(),
        config(tinit=0, deltaT=1, tfinal=1, orth_reg_weight=0),
        max_steps=5,
        warmup_steps=0,
        learning_rate=1e-2,
        output_dir=tmp_path,
    )
    run.result(120)
    assert run.adapter.final


def test_a_dry_run_takes_it():
    found = ll.dry_run(tiny("llama"), config(), batch_size=1, sequence_length=8)
    count = ll.budget(tiny("llama"), config()).parameters_trainable
    assert found.gradients == 4 * count


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "total", "message"),
    [
        ({"tinit": 6, "tfinal": 6}, 12, "leave none of the 12 steps for pruning"),
        ({"tinit": 5, "tfinal": 5, "deltaT": 3}, 12, "or use a deltaT of at most 2"),
        ({"total_step": 20}, 12, "total_step is 20 and the run takes 12 steps"),
        ({"tinit": 0, "tfinal": 3, "deltaT": 1}, 4, "train for at least 5 steps"),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_is_refused(changes, total, message):
    _, adapter = attached(**changes)
    optimizer = optimizer_of(adapter)
    with pytest.raises(ConfigError, match=message):
        adapter.config.check_steps(total)
    with pytest.raises(ConfigError, match=message):
        adapter.begin_training(optimizer, total)
    assert not optimizer._optimizer_step_pre_hooks


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
