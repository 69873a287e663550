"""float16 is trained with torch.amp.GradScaler's loss scale: to the bit."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.configs import AdaLoraConfig, BitFitConfig, FullConfig, LoraConfig
from lora_lab.methods.api import attach
from lora_lab.models import LoadedModel
from lora_lab.training import loss_scale as module
from lora_lab.training.loss_scale import LossScale, computes_in_float16, precision_notes
from lora_lab.training.resume import resume
from lora_lab.training.step import FLOAT16_NOTE, DeadAdapterError, NotFiniteError
from tests.helpers.half_precision import by_hand
from tests.helpers.recorded_fit import Recorded
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task, until
from tests.helpers.tiny_text import tiny_tokenizer
from tests.helpers.whole_logits import whole_logits  # noqa: F401 (a fixture)

pytestmark = pytest.mark.usefixtures("one_thread")


def half_lm(dtype: torch.dtype = torch.float16) -> LoadedModel:
    lm = tiny_lm()
    lm.model.to(dtype)
    return lm


def gpt2_lm() -> LoadedModel:
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = tiny("gpt2", vocab_size=259, n_positions=128, **quiet).half()
    return LoadedModel.given(model, tiny_tokenizer(), "tiny-gpt2")


def autocast_lm(*paths: str, dtype: torch.dtype = torch.float16) -> LoadedModel:
    """float32 weights; the model, or some layers, under autocast, as `Accelerator.prepare` does."""
    lm = tiny_lm()
    for part in map(lm.model.get_submodule, paths or ("",)):
        part.forward = torch.autocast("cpu", dtype=dtype)(part.forward)
    return lm


# The rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_scale_is_grad_scalers(monkeypatch, seed):
    monkeypatch.setattr(module, "_INTERVAL", 3)
    peer = torch.amp.GradScaler("cpu", growth_interval=3)
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    own = LossScale()
    assert own.value == peer.get_scale()  # which it begins with
    for finite in (torch.rand(60, generator=torch.manual_seed(seed)) > 0.2).tolist():
        peer.scale(weight.sum() * (1.0 if finite else float("nan"))).backward()
        peer.step(optimizer)
        peer.update()
        optimizer.zero_grad()
        own.update(finite)
        state = peer.state_dict()
        assert {key: own.state()[key] for key in ("scale", "_growth_tracker")} == {
            key: state[key] for key in ("scale", "_growth_tracker")
        }


def test_its_numbers_are_grad_scalers():
    peer = torch.amp.GradScaler("cpu").state_dict()
    numbers = module._START, module._GROWTH, module._BACKOFF, module._INTERVAL
    names = "scale", "growth_factor", "backoff_factor", "growth_interval"
    assert numbers == tuple(peer[name] for name in names)


def test_it_never_grows_to_infinity():
    own = LossScale()
    own.value, own._good_steps = 2.0**127, module._INTERVAL - 1
    own.update(finite=True)
    assert own.value == 2.0**127


# Who has one --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_other_types_have_none(tmp_path, dtype):
    assert not computes_in_float16(half_lm(dtype).model)
    state = {}
    fit = Recorded(tmp_path, half_lm(dtype), max_steps=1)
    fit.fit.on_step = lambda _: bool(state.update(fit.fit.state()))
    fit.run()
    assert "loss_scale" not in state


def test_who_computes_in_float16():
    assert computes_in_float16(half_lm().model)
    mixed = tiny("llama")
    mixed.model.layers[0].mlp.half()  # one block is enough
    assert computes_in_float16(mixed)
    four_bit = tiny("llama")  # QLoRA's layers: packed weights, other weights in float32
    four_bit.model.layers[1].self_attn.q_proj.compute_dtype = torch.float16
    assert computes_in_float16(four_bit)
    four_bit.model.layers[1].self_attn.q_proj.compute_dtype = torch.bfloat16
    assert not computes_in_float16(four_bit)


@pytest.mark.parametrize("paths", [(), ("model.layers.0.mlp",), ("model.layers.1.mlp.down_proj",)])
def test_autocast_in_the_model_itself_is_scaled(tmp_path, paths):
    notes = {}
    for dtype in (torch.float16, torch.bfloat16):
        fit = Recorded(tmp_path, autocast_lm(*paths, dtype=dtype), max_steps=2).run()
        notes[dtype] = fit.steps[0].notes
    assert notes == {torch.float16: [FLOAT16_NOTE], torch.bfloat16: []}


def test_a_layer_that_casts_by_itself_is_scaled(tmp_path):
    """Packed layers' kernels (GPTQ's, AWQ's) do, and say it nowhere."""
    lm = tiny_lm()
    layer = lm.model.model.layers[0].mlp
    real = layer.up_proj.forward
    layer.up_proj.forward = lambda x: real(x).half().to(x.dtype)
    config = LoraConfig(r=2, target_modules=["q", "v"])
    assert Recorded(tmp_path, lm, config, max_steps=1).run().steps[0].scaled


# What else half precision does --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "dtype", "share"),
    [
        ("pissa", torch.bfloat16, "1/256"),
        ("olora", torch.float16, "1/2048"),
        ("pissa_niter_2", torch.bfloat16, "1/256"),
        ("pissa", torch.float32, ""),
        (True, torch.bfloat16, ""),
    ],
)
def test_a_start_from_the_base_in_half_precision_is_noted(init, dtype, share):
    lm = half_lm(dtype)
    adapter = attach(lm.model, CONFIG.replace(init_lora_weights=init))
    found = [note for note in precision_notes(lm.model, adapter) if "BA − B₀A₀" in note]
    assert len(found) == bool(share)
    assert not share or f"{str(dtype)[6:]} both products are rounded to {share} of" in found[0]


def test_and_that_is_how_much_it_is():
    """Against the formula in float64: of BAx about half a unit in bfloat16's last place."""
    model = nn.Sequential(nn.Linear(256, 256, bias=False)).bfloat16()
    adapter = attach(model, LoraConfig(r=16, target_modules=["0"], init_lora_weights="pissa"))
    site, x = adapter.sites["0"], torch.randn(64, 256).bfloat16()
    with torch.no_grad():
        site.B += 1e-3 * torch.randn_like(site.B) * site.B.std()
        W = model[0].weight.double()
        learned = (
            site.B.double() @ site.A.double() - site.B0.double() @ site.A0.double()
        ) * site.scale
        error = model(x).double() - x.double() @ (W + learned).T
        product = x.double() @ (site.scale * site.B.double() @ site.A.double()).T
    assert 1 / 1024 < error.norm() / product.norm() < 1 / 64
    assert error.norm() > (x.double() @ learned.T).norm()  # of a small step nothing is seen


# Steps --------------------------------------------------------------------------------------------

SIBLINGS = {
    "LoRA": (half_lm, CONFIG, {}),
    "accumulated": (half_lm, CONFIG, {"gradient_accumulation_steps": 2}),
    "not clipped": (half_lm, CONFIG, {"max_grad_norm": 0.0}),
    "gpt2": (gpt2_lm, CONFIG, {}),
    "FT": (half_lm, FullConfig(), {"learning_rate": 1e-3}),
    "FT, accumulated": (half_lm, FullConfig(), {"gradient_accumulation_steps": 2}),
    "the last block": (half_lm, FullConfig(top_layers=1), {}),
    "BitFit": (gpt2_lm, BitFitConfig(), {}),
    "biases": (gpt2_lm, LoraConfig(r=2, target_modules=["q", "v"], bias="all"), {}),
    "a head": (half_lm, LoraConfig(r=2, target_modules=["q"], modules_to_save=["lm_head"]), {}),
    "DoRA": (half_lm, LoraConfig(r=2, target_modules=["q", "v"], use_dora=True), {}),
    "autocast": (autocast_lm, CONFIG, {}),
    "autocast, accumulated": (autocast_lm, CONFIG, {"gradient_accumulation_steps": 2}),
}


@pytest.mark.usefixtures("whole_logits")  # of labels alone: test_label_logits.py, to rounding
@pytest.mark.parametrize("case", SIBLINGS)
def test_every_step_is_grad_scalers(tmp_path, monkeypatch, case):
    """Losses, skipped steps, rates and what is learned; with much too large a scale at first."""
    make, config, changes = SIBLINGS[case]
    monkeypatch.setattr(module, "_START", start := 2.0**20)
    recorded = Recorded(
        tmp_path, make(), config, **{"max_steps": 10, "learning_rate": 1e-2, **changes}
    ).run()
    lm = make()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapter = attach(lm.model, config)
    scaler = torch.amp.GradScaler("cpu", init_scale=start)
    peer = by_hand(lm.model, adapter, recorded.batches, recorded.training, scaler)
    assert recorded.losses == peer.losses
    assert [step.number for step in recorded.steps if step.skipped] == peer.skipped
    assert [step.learning_rate for step in recorded.steps] == peer.rates
    assert 0 < len(peer.skipped) < 8
    for own, theirs in zip(recorded.adapter.parameters(), adapter.parameters(), strict=True):
        assert torch.equal(own, theirs)


def test_gradients_are_float32s_where_a_step_has_many_tokens(tmp_path):
    """Of 32,768 tokens a step, float16 alone is wrong by a fifth; so it was trained."""

    def first_moments(lm: LoadedModel) -> torch.Tensor:
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        # The rounding of float16 itself, 1 to 5 % by the start, is 0.012 here however many tokens.
        fit = Recorded(tmp_path, lm, config, max_steps=12, max_grad_norm=0.0, seed=3)
        plain = fit.fit

        def share(output, labels, items):
            found = nn.functional.cross_entropy(
                output.logits[:, :-1].flatten(0, 1).float(),
                labels[:, 1:].flatten(),
                reduction="sum",
            )
            return found / (items * 4096)  # as if the step had so many times its tokens

        plain.loss = share
        found = []

        def on_step(step):
            if step.skipped:
                return False
            states = plain.optimizer.state.values()
            found.append(torch.cat([state["exp_avg"].flatten().double() for state in states]))
            return True

        plain.on_step = on_step
        plain.run()
        return found[0]

    exact, half = first_moments(half_lm(torch.float32)), first_moments(half_lm())
    assert (half - exact).norm() / exact.norm() < 0.02
    assert (half == 0).double().mean() < 0.01


def overflowing(lm: LoadedModel, at: set[int], value: float = float("inf")) -> LoadedModel:
    """Put an infinite gradient below the passes of some steps, whatever the scale."""
    passes = iter(range(1, 10**6))

    def spoil(_module, _args, output):
        number = next(passes)
        if number in at and output.requires_grad:
            output.register_hook(lambda grad: torch.full_like(grad, value))

    lm.model.model.layers[0].register_forward_hook(spoil)
    return lm


@pytest.mark.parametrize("value", [float("inf"), float("nan"), float("-inf")])
def test_a_step_that_overflows_moves_nothing(tmp_path, value):
    seen = []

    def on_step(step):
        fit.steps.append(step)
        seen.append([p.detach().clone() for p in fit.adapter.parameters()])
        assert all(p.grad is None for p in fit.adapter.parameters())

    fit = Recorded(tmp_path, overflowing(half_lm(), {4}, value), max_steps=6)
    fit.fit.on_step = on_step
    fit.run()
    assert [step.number for step in fit.steps if step.skipped] == [1, 4]  # 1: 65,536 is too much
    assert all(map(torch.equal, seen[2], seen[3]))
    assert not all(map(torch.equal, seen[3], seen[4]))


def test_gradients_that_are_infinite_at_every_scale_are_one_line(tmp_path):
    fit = Recorded(tmp_path, overflowing(half_lm(), set(range(1, 99))), max_steps=99)
    line = (
        r"a gradient is (inf|nan) at step 17, with a loss scale of 1: the model computes in "
        r"float16, which ends at 65,504; load it with dtype='float32', or 'bfloat16' where"
    )
    with pytest.raises(NotFiniteError, match=line) as caught:
        fit.run()
    assert not caught.value.adapter_suspect
    assert len(fit.steps) == 16


def test_a_loss_that_is_infinite_is_no_matter_of_the_scale(tmp_path):
    lm = half_lm()
    with torch.no_grad():
        lm.model.lm_head.weight.fill_(60_000.0)
        lm.model.model.norm.weight.fill_(60_000.0)
    with pytest.raises(NotFiniteError, match=r"the loss is (nan|inf) at step 1: the model"):
        Recorded(tmp_path, lm).run()


def test_a_dead_site_is_found_behind_skipped_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_START", 2.0**30)
    lm = half_lm()
    layer = lm.model.model.layers[1].self_attn.v_proj
    layer.register_forward_hook(lambda _m, _a, output: output.detach())
    fit = Recorded(tmp_path, lm, LoraConfig(r=2, target_modules=["q", "v"]), max_steps=40)
    with pytest.raises(DeadAdapterError, match=r"no gradient reached 1 of 4 matrices"):
        fit.run()
    assert fit.steps
    assert all(step.skipped for step in fit.steps)


@pytest.mark.parametrize("skipped", [{1, 2, 3}, {3, 6}, {8}, {7, 8}, {2, 4, 5, 8}])
def test_adaloras_schedule_counts_skipped_steps(tmp_path, monkeypatch, skipped):
    """As PEFT's `update_and_allocate(global_step)` does: the ranks end where they shall."""
    monkeypatch.setattr(module, "_START", 2.0**4)
    config = AdaLoraConfig(target_r=2, init_r=4, tinit=1, tfinal=0, deltaT=1)
    fit = Recorded(tmp_path, overflowing(half_lm(), skipped), config, max_steps=8).run()
    assert {step.number for step in fit.steps if step.skipped} == skipped
    ranks = fit.adapter.ranks.values()
    assert sum(ranks) == 2 * len(ranks)
    assert fit.adapter.pending_schedule() is None


# In a run -----------------------------------------------------------------------------------------


def begin(folder, config=CONFIG, make=half_lm, **changes):
    settings = {"max_steps": 12, "learning_rate": 1e-2, "eval_examples": 0, "save_steps": 5}
    return ll.train(
        make(), tiny_task(), config, output_dir=folder, max_length=64, **settings | changes
    )


def test_a_run_counts_shows_and_keeps_its_skipped_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_START", 2.0**19)
    run = begin(tmp_path)
    run.result(60)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    skipped = [row["step"] for row in rows if row.get("skipped")]
    assert skipped
    assert run.snapshot.skipped_steps == len(skipped)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["skipped_steps"] == len(skipped)
    assert f"{len(skipped)} of 12 steps were skipped" in " ".join(summary["notes"])
    assert "the model computes in float16: the loss is scaled" in " ".join(summary["notes"])
    assert len(rows) == run.snapshot.step == 12


@pytest.mark.parametrize(
    ("config", "make"), [(CONFIG, half_lm), (FullConfig(), half_lm), (CONFIG, autocast_lm)]
)
def test_a_resumed_run_has_its_scale_and_its_count(tmp_path, monkeypatch, config, make):
    monkeypatch.setattr(module, "_START", 2.0**18)
    monkeypatch.setattr(module, "_INTERVAL", 4)  # it grows again, and overflows again
    alone = begin(tmp_path / "alone", config, make)
    losses = alone.result(60).losses
    run = begin(tmp_path / "stopped", config, make)
    until(lambda: run.snapshot.step >= 6 or run.state.final)
    run.stop()
    run.result(60)
    again = resume(run.folder, make(), tiny_task())
    assert FLOAT16_NOTE in alone.notes
    assert again.result(60).losses == losses
    assert again.snapshot.skipped_steps == alone.snapshot.skipped_steps > 2
    own, theirs = (
        ll.load_adapter(half_lm().model, each.folder / "adapter").state() for each in (again, alone)
    )
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)


def test_a_checkpoint_of_before_begins_with_the_first_scale(tmp_path):
    state = {}
    fit = Recorded(tmp_path, half_lm(), max_steps=3)
    fit.fit.on_step = lambda step: state.update(fit.fit.state()) or step.number == 2
    fit.run()
    del state["loss_scale"], state["masters"]
    later = Recorded(tmp_path, half_lm(), max_steps=3)
    later.fit.resume_state, later.fit.completed_steps = state, 2
    scales = []
    later.fit.on_step = lambda _: scales.append(later.fit.loss_scale.value)
    later.run()
    assert scales == [2.0**16]
