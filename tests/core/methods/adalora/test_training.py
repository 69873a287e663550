"""AdaLoRA while it is trained: the budget at every step, cuts, resuming, whole runs."""

import copy
import io
import json
import weakref

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.adalora.shrink_optimizer import replace_parameters
from tests.helpers.adalora import (
    STEPS,
    attached,
    config,
    logits,
    optimizer_of,
    stirred,
    train,
    trained,
)
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm, tiny_task


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


# Beside what a training does ----------------------------------------------------------------------


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
        ({"target_modules": ["q"]}, "of other matrices than this adapter"),
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
