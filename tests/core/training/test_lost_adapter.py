"""A run whose adapter is taken from it ends: with the true reason, and what it has learned."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import AdapterError, RunError
from lora_lab.methods.attached import require_adapters
from tests.helpers.tiny_run import CONFIG, tiny_lm, until

pytestmark = pytest.mark.usefixtures("one_thread")

OTHER = ll.LoraConfig(r=2, target_modules=["k"])
CONFIGS = {
    "LoRA": CONFIG,
    "FT": ll.FullConfig(top_layers=1),
    "PreEmbed": ll.PrefixEmbedConfig(2, 1),
    "LoRA+Adapter^P": [CONFIG, ll.BottleneckConfig("P", r=3)],
    "IA3": ll.IA3Config(),
}


def known(model: Any) -> Any:
    return require_adapters(model)


def replaced(model: Any) -> None:
    known(model).trained = None  # nobody is asked
    ll.attach(model, OTHER)


TAKEN = {
    "taken off": (lambda model: known(model).adapters.clear(), "'default' was detached or repla"),
    "replaced": (replaced, "'default' was detached or replaced while the run trained"),
    "switched off": (lambda model: known(model).switch(None), "all adapters were switched off whi"),
    "another one": (lambda model: known(model).switch("other"), "'other' was activated while"),
    "frozen": (lambda model: model.requires_grad_(False), "of the adapter 'default' were frozen"),
    "a base that learns": (
        lambda model: model.requires_grad_(True),
        r"parameters of the base were set to learn \(requires_grad_\(True\)\) while the run tra",
    ),
    "part of the base": (
        lambda model: model.get_input_embeddings().requires_grad_(True),
        "parameters of the base were set to learn",
    ),
    "part frozen": (
        lambda model: next(ll.attached(model)["default"].parameters()).requires_grad_(False),
        "parameters of the adapter 'default' were frozen",
    ),
}


@pytest.mark.filterwarnings("ignore:adapter 'default' was attached already")
@pytest.mark.parametrize("way", TAKEN)
def test_a_run_whose_adapter_is_taken_in_the_midst_of_a_step_says_so(begin, way):
    take, line = TAKEN[way]
    lm = tiny_lm()
    ll.attach(lm.model, OTHER, "other")
    run = begin(lm, max_steps=50, eval_examples=0, start=False)
    passes = []

    def meanwhile(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 4:
            take(lm.model)

    lm.model.model.layers[1].register_forward_pre_hook(meanwhile)
    run.start()
    with pytest.raises(RunError, match=line) as failed:
        run.result(60)
    assert "start a new run" in str(failed.value)
    assert run.snapshot.step == 3
    assert "the adapter is as it was after step 3" in run.snapshot.failure.remedy
    saved = ll.load_adapter(tiny_lm().model, run.folder / "adapter")
    mine, theirs = run.adapter.state(), saved.state()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert any(site.B.any() for site in saved.sites.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_whose_block_was_replaced_in_a_pause_says_so_and_keeps_what_it_learned(begin, name):
    run = begin(config=CONFIGS[name], max_steps=5000, eval_examples=0, max_length=64)
    until(lambda: run.snapshot.step >= 2)
    with run.paused() as model:
        step = run.snapshot.step
        model.model.layers[1] = tiny_lm(seed=1).model.model.layers[1]
        model.lm_head = tiny_lm(seed=1).model.lm_head
    if name == "PreEmbed":  # it is at the model's entrance alone
        until(lambda: run.snapshot.step > step)
        run.stop()
        assert run.result(60)
        return
    with pytest.raises(RunError, match=r"layers\.1.* was replaced .*; start a new run; the ad"):
        run.result(60)
    assert f"as it was after step {step}" in run.snapshot.failure.remedy
    if name != "FT":  # whose own values stand in the block that is gone
        saved = ll.load_adapter(tiny_lm().model, run.folder / "adapter")
        for mine, theirs in zip(run.adapter.snapshot(), saved.snapshot(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_run_whose_parameters_are_replaced_ends_with_its_last_good_adapter(begin):
    """The optimizer goes on with those that it has, which nobody sees any more."""
    lm, passes, learned = tiny_lm(), [], []
    run = begin(lm, max_steps=50, save_steps=1, start=False)

    def meanwhile(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 3:
            learned.append(run.adapter.snapshot())
        if len(passes) == 4:
            others = {name: 2 * tensor for name, tensor in lm.model.state_dict().items()}
            lm.model.load_state_dict(others, assign=True)

    lm.model.model.layers[1].register_forward_pre_hook(meanwhile)
    run.start()
    line = (
        r"of the adapter 'default' were replaced \(load_state_dict\(assign=True\)\) while the run"
    )
    with pytest.raises(RunError, match=line):
        run.result(60)
    assert "the adapter is as it was after step 2" in run.snapshot.failure.remedy
    saved = ll.load_adapter(tiny_lm().model, run.folder / "adapter")
    for mine, theirs in zip(learned[0], saved.snapshot(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def by_data(parameters: Any, dtype: torch.dtype) -> None:
    """Cast as no `Module._apply` does, which is refused beside a run."""
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


CASTS = {
    "all": (lambda model: by_data(model.parameters(), torch.bfloat16), "float32 to bfloat16", 2),
    "what learns": (
        lambda model: by_data(ll.attached(model)["default"].parameters(), torch.float16),
        "float32 to float16",
        2,
    ),
    "the base": (
        lambda model: by_data(
            (p for p in model.parameters() if not p.requires_grad), torch.float64
        ),
        "float32 to float64",
        3,
    ),
    "one of the base's": (
        lambda model: by_data([model.get_input_embeddings().weight], torch.bfloat16),
        "float32 to bfloat16",
        3,
    ),
}


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("way", CASTS)
def test_a_run_whose_model_is_cast_ends_with_its_last_good_adapter(begin, way, paused):
    cast, line, good = CASTS[way]
    lm, passes, learned = tiny_lm(), [], []
    run = begin(lm, max_steps=50, eval_examples=0, save_steps=1, start=False)

    def meanwhile(*_: Any) -> None:
        passes.append(1)
        if len(passes) in (3, 4):
            learned.append(run.adapter.snapshot())
        if len(passes) == 4 and not paused:
            cast(lm.model)

    lm.model.model.layers[1].register_forward_pre_hook(meanwhile)
    if paused:  # at the boundary after step 3
        lm.model.register_forward_hook(lambda *_: run.pause() if len(passes) == 3 else None)
    run.start()
    if paused:
        until(lambda: run.snapshot.state == "paused")
        cast(lm.model)
        learned.append(run.adapter.snapshot())
        run.resume()
    when = "was paused" if paused else "trained"
    with pytest.raises(RunError, match=rf"were cast \({line}\) while the run {when}, so it cann"):
        run.result(60)
    assert f"the adapter is as it was after step {good}" in run.snapshot.failure.remedy
    dtypes = {parameter.dtype for parameter in run.adapter.parameters()}
    assert (dtypes == {torch.float32}) is (good == 3), "it stays as it was cast"
    saved = ll.load_adapter(tiny_lm().model, run.folder / "adapter")
    for mine, theirs in zip(learned[good - 2], saved.snapshot(), strict=True):
        assert theirs.dtype is torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(("saved", "reached"), [("extra", False), ("lm_head", True)])
def test_a_module_trained_whole_that_no_gradient_reaches_is_noted(begin, saved, reached):
    lm = tiny_lm()
    lm.model.extra = torch.nn.Linear(4, 4)  # nobody calls it
    config = CONFIG.replace(target_modules=["q"], modules_to_save=[saved])
    run = begin(lm, config=config, max_steps=1, eval_examples=0)
    run.result(60)
    line = "no gradient reached 1 of 1 modules_to_save (extra) in step 1: the model does not call"
    assert any(note.startswith(line) for note in run.notes) is not reached


def away(model: Any) -> None:
    ll.detach(model)


def another(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ll.attach(model, OTHER)


def for_good(model: Any) -> None:
    ll.merge_and_unload(model, "default")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("take", [away, another, for_good])
def test_what_it_has_learned_is_saved_though_a_pause_took_it(begin, name, take):
    run = begin(config=CONFIGS[name], max_steps=5000, eval_examples=0, max_length=64)
    until(lambda: run.snapshot.step >= 2)
    with run.paused() as model:
        step = run.snapshot.step
        learned = run.adapter.snapshot()
        try:
            take(model)
        except AdapterError:
            pytest.skip("it does not merge")
    with pytest.raises(RunError, match="'default' was detached or replaced while the run was pau"):
        run.result(60)
    assert f"as it was after step {step}" in run.snapshot.failure.remedy
    saved = ll.load_adapter(tiny_lm().model, run.folder / "adapter")
    assert saved.method == run.adapter.method
    for mine, theirs in zip(learned, saved.snapshot(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert "of-a-run" not in str(ll.attached(run.model))


def test_another_one_that_is_merged_stays_and_the_run_says_what_is(begin):
    run = begin(max_steps=5000, eval_examples=0)
    until(lambda: run.snapshot.step >= 1)
    with run.paused() as model:
        another(model)
        ll.merge(model)
    with pytest.raises(RunError, match="'default' was detached or replaced while the run was pau"):
        run.result(60)
    assert ll.active(run.model) == "default"
    assert not (run.folder / "adapter").exists()


def test_what_a_pause_has_frozen_learns_on(begin):
    calm = begin(max_steps=6, eval_examples=0).result(60)
    run = begin(max_steps=6, eval_examples=0)
    with run.paused() as model:
        model.requires_grad_(False)
    assert run.result(60).losses == calm.losses


@pytest.mark.parametrize(
    "verb",
    [
        lambda model: ll.attach(model, OTHER),
        lambda model: ll.attach(model, OTHER, "new"),
        lambda model: ll.detach(model),
        lambda model: ll.activate(model, None),
        lambda model: ll.merge(model),
        lambda model: ll.merge_and_unload(model),
    ],
)
def test_the_verbs_refuse_beside_a_run_and_change_nothing(begin, verb):
    calm = begin(max_steps=40, eval_examples=0).result(60)
    run = begin(max_steps=40, eval_examples=0)
    until(lambda: run.snapshot.step >= 2)
    with pytest.raises(AdapterError, match=f"run {run.id} trains adapter 'default' of this model"):
        verb(run.model)
    assert run.result(60).losses == calm.losses
