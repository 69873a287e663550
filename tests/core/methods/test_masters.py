"""What learns in half precision is moved in float32 and read in the model's dtype."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lora_lab as ll
from lora_lab.configs import BitFitConfig, FullConfig, LoraConfig
from lora_lab.methods.api import attach
from lora_lab.methods.masters import Masters
from lora_lab.models import LoadedModel
from lora_lab.training.snapshot import RunState
from tests.helpers.half_precision import by_hand
from tests.helpers.recorded_fit import Recorded
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task, until
from tests.helpers.tiny_text import tiny_tokenizer
from tests.helpers.whole_logits import whole_logits  # noqa: F401 (a fixture)

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lm_of(name: str = "llama", dtype: torch.dtype = BF16) -> LoadedModel:
    if name == "llama":
        lm = tiny_lm()
        lm.model.to(dtype)
        return lm
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = tiny(name, vocab_size=259, n_positions=128, **quiet).to(dtype)
    return LoadedModel.given(model, tiny_tokenizer(), name)


# The copies ---------------------------------------------------------------------------------------


def test_many_small_updates_add_up():
    """AdamW under a constant gradient moves by its rate a step: 1 - 500·1e-4, not 1."""
    weight = nn.Parameter(torch.ones(4, dtype=BF16))
    masters = Masters([weight])
    optimizer = torch.optim.AdamW([masters.of(weight)], lr=1e-4, weight_decay=0.0)
    for _ in range(500):
        weight.grad = torch.ones_like(weight)
        masters.gather()
        assert weight.grad is None
        optimizer.step()
        optimizer.zero_grad()
        masters.write()
    assert weight.detach().float() == pytest.approx([0.95] * 4, abs=2**-9)  # its own rounding
    assert masters.of(weight).detach() == pytest.approx([0.95] * 4, abs=1e-5)


def test_gradients_of_several_passes_are_added_in_float32():
    weight = nn.Parameter(torch.zeros(1, dtype=BF16))
    masters = Masters([weight])
    for gradient in (256.0, *[1.0] * 8):  # 256 + 1 is 256 in bfloat16
        weight.grad = torch.full_like(weight, gradient)
        masters.gather()
    assert masters.of(weight).grad.item() == math.fsum([256.0, *[1.0] * 8])


def test_only_half_precision_has_masters():
    kinds = torch.float32, torch.float64, torch.bfloat16, torch.float16
    learned = [nn.Parameter(torch.ones(2, dtype=kind)) for kind in kinds]
    masters = Masters(learned)
    assert [masters.of(p) is p for p in learned] == [True, True, False, False]
    assert all(masters.of(p).dtype == torch.float32 for p in learned[2:])


def test_what_somebody_writes_between_steps_counts():
    weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=BF16))
    masters = Masters([weight])
    with torch.no_grad():
        masters.of(weight).add_(1e-4)  # below what the weight can show
        masters.write()
        weight[1] = 5.0
    masters.follow()
    assert masters.of(weight).tolist() == [pytest.approx(1.0001, rel=1e-6), 5.0]


# The loop -----------------------------------------------------------------------------------------

SIBLINGS = {
    "FT": ("llama", FullConfig(), {}),
    "FT, accumulated": ("llama", FullConfig(), {"gradient_accumulation_steps": 2}),
    "FT, decayed": ("gpt2", FullConfig(), {"weight_decay": 0.1, "max_grad_norm": 0.0}),
    "the last block": ("llama", FullConfig(top_layers=1), {}),
    "BitFit": ("gpt2", BitFitConfig(), {}),
    "new biases": ("llama", BitFitConfig(new_biases=True), {}),
    "LoRA's biases": ("gpt2", LoraConfig(r=2, target_modules=["q", "v"], bias="lora_only"), {}),
    "all biases": ("gpt2", LoraConfig(r=2, target_modules=["q", "v"], bias="all"), {}),
    "a head": ("llama", LoraConfig(r=2, target_modules=["q"], modules_to_save=["lm_head"]), {}),
    "norms": ("llama", LoraConfig(r=2, target_modules=["q"], modules_to_save=["norm"]), {}),
    "LoRA+BitFit": ("gpt2", [LoraConfig(r=2, target_modules=["q"]), BitFitConfig()], {}),
}


@pytest.mark.usefixtures("whole_logits")
@pytest.mark.parametrize("case", SIBLINGS)
def test_every_step_is_that_of_float32_masters_by_hand(tmp_path, case):
    name, config, changes = SIBLINGS[case]
    settings = {"max_steps": 8, "learning_rate": 1e-4, **changes}
    recorded = Recorded(tmp_path, lm_of(name), config, **settings).run()
    lm = lm_of(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapter = attach(lm.model, config)
    peer = by_hand(lm.model, adapter, recorded.batches, recorded.training)
    assert recorded.losses == peer.losses
    for own, master in zip(recorded.adapter.parameters(), peer.masters, strict=True):
        assert torch.equal(own, master.to(own.dtype))


@pytest.mark.parametrize(("config", "dtype"), [(CONFIG, BF16), (FullConfig(), torch.float32)])
def test_float32_is_trained_as_it_was(tmp_path, config, dtype):
    fit, state = Recorded(tmp_path, lm_of(dtype=dtype), config, max_steps=1), {}
    fit.fit.on_step = lambda _: bool(state.update(fit.fit.state()))
    fit.run()
    assert state["masters"] == {}


@pytest.mark.parametrize("with_masters", [True, False])
def test_a_checkpoint_goes_on(tmp_path, with_masters):
    """To the bit; of an earlier version's, which has none, from the model's own numbers."""
    options = {"config": FullConfig(), "max_steps": 6, "learning_rate": 1e-4}
    alone = Recorded(tmp_path, lm_of(), **options).run()
    half, state = Recorded(tmp_path, lm_of(), **options), {}

    def third(step):
        if step.number == 3:
            state.update(copy.deepcopy(half.fit.state()))
            state["weights"] = half.adapter.snapshot()
        return step.number == 3

    half.fit.on_step = third
    half.run()
    if not with_masters:
        del state["masters"]
        for moments in state["optimizer"]["state"].values():
            moments |= {key: moments[key].to(BF16) for key in ("exp_avg", "exp_avg_sq")}
    later = Recorded(tmp_path, lm_of(), **options)
    later.adapter.restore(state.pop("weights"))
    later.fit.resume_state, later.fit.completed_steps = state, 3
    later.run()
    if with_masters:
        assert later.losses == alone.losses[3:]
    else:
        assert later.losses == pytest.approx(alone.losses[3:], rel=0.01)


def test_the_meter_counts_masters_and_their_gradients(tmp_path):
    fit = Recorded(tmp_path, lm_of(), FullConfig(), max_steps=2).run()
    reading, numbers = fit.fit.meter.reading(), fit.adapter.trainable
    tensors = len(list(fit.adapter.parameters()))
    assert reading.gradients == 4 * numbers
    assert reading.optimizer == 12 * numbers + 4 * tensors  # two moments, a master; step counts
    assert reading.weights >= 2 * numbers


# A run --------------------------------------------------------------------------------------------


def test_the_file_and_the_merged_model_have_the_bases_dtype(tmp_path):
    lm = lm_of()
    run = ll.train(lm, tiny_task(), FullConfig(), output_dir=tmp_path, max_steps=3, eval_examples=0)
    run.result(60)
    (file,) = (run.folder / "adapter").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {BF16}
    ll.merge(lm.model)
    assert {p.dtype for p in lm.model.parameters()} == {BF16}
    n = sum(p.numel() for p in lm.model.parameters())
    told = f"{n:,} of the trained numbers are bfloat16 in the model: they are trained as float32"
    assert any(told in note for note in run.notes)


def test_what_is_changed_in_a_pause_is_trained_on(tmp_path):
    lm = lm_of()
    run = ll.train(
        lm, tiny_task(), FullConfig(), output_dir=tmp_path, max_steps=200, eval_examples=0,
        learning_rate=1e-6,
    )  # fmt: skip
    until(lambda: run.snapshot.step >= 2)
    run.pause()
    until(lambda: run.state is RunState.PAUSED)
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(3.0)
    at = run.snapshot.step
    run.resume()
    until(lambda: run.snapshot.step >= at + 2 or run.state.final)
    run.stop()
    run.result(60)
    assert lm.model.model.norm.weight.float().sub(3.0).abs().max() < 0.1
