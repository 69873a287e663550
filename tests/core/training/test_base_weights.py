"""A run whose base is replaced or overwritten: noticed, said, and nothing of it kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import RunError
from tests.helpers.tiny_run import tiny_lm, tiny_task, until

pytestmark = pytest.mark.usefixtures("one_thread")

LEARNED = {
    "LoRA": ll.LoraConfig(r=2, target_modules=["q", "v"]),
    "AdaLoRA": ll.AdaLoraConfig(init_r=3, target_r=1, tinit=1, tfinal=1, target_modules=["q"]),
    "a head": ll.LoraConfig(r=2, target_modules=["q"], modules_to_save=["lm_head"]),
    "PreLayer": ll.PrefixLayerConfig(2, 1),
    "FT": ll.FullConfig(top_layers=1),
    "BitFit": ll.BitFitConfig(new_biases=True),
    "IA3": ll.IA3Config(),
}


def of_base(model: Any) -> Any:
    return model.model.layers[0].mlp.down_proj


def double(model: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(2 * of_base(model).weight.detach(), requires_grad=False)


def by_assignment(model: Any) -> None:
    of_base(model).weight = double(model)


def behind_it(model: Any) -> None:
    of_base(model).weight.data = double(model).data


def by_another_module(model: Any) -> None:
    model.model.norm = copy.deepcopy(model.model.norm)


def in_place(model: Any) -> None:
    with torch.no_grad():
        of_base(model).weight.mul_(2)


def through_a_view(model: Any) -> None:
    of_base(model).weight.detach()[0].mul_(2)


def to_nonsense(model: Any) -> None:
    of_base(model).weight = torch.nn.Parameter(double(model) * torch.nan, requires_grad=False)


def to_another_shape(model: Any) -> None:
    of_base(model).weight = torch.nn.Parameter(torch.ones(3, 5), requires_grad=False)


EVALUATED = {
    "eval_examples": 1,
    "eval_steps": 4,
    "save_steps": 0,
    "kept_texts": 0,
    "max_length": 64,
}
WAYS = (
    by_assignment,
    by_another_module,
    behind_it,
    in_place,
    through_a_view,
    to_nonsense,
    to_another_shape,
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("settings", [{"save_steps": 4}, EVALUATED])
def test_a_run_whose_base_is_another_ends_with_what_it_had_learned_before(begin, way, settings):
    """Noticed where it evaluates, writes or ends; what it learned since is of no use."""
    lm, passes, learned = tiny_lm(), [], []
    first = 4 if "eval_steps" in settings else 0  # the copies of every 50 steps, or checkpoints
    run = begin(lm, max_steps=12, start=False, **settings)

    def meanwhile(module: Any, *_: Any) -> None:
        if not module.training:
            return
        passes.append(1)
        if len(passes) in (1, 5):
            learned.append(run.adapter.snapshot())
        if len(passes) == 6:
            way(lm.model)

    lm.model.model.layers[1].register_forward_pre_hook(meanwhile)
    run.start()
    line = r"(down_proj\.weight|model\.norm) of the base was replaced or overwritten while the r"
    with pytest.raises(RunError, match=line):
        run.result(60)
    assert 6 <= len(passes) <= 8, "not after the next evaluation or checkpoint"
    good = 4 - first
    assert f"the adapter is as it was after step {good}" in run.snapshot.failure.remedy
    saved = ll.load_adapter(tiny_lm().model, run.folder / "adapter")
    for mine, theirs in zip(learned[good // 4], saved.snapshot(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", LEARNED)
def test_what_a_run_does_itself_replaces_no_base(begin, name):
    settings = EVALUATED | {"eval_steps": 2, "save_steps": 1}
    run = begin(config=LEARNED[name], max_steps=4, **settings)
    with run.paused() as model:
        if name in ("LoRA", "a head", "FT", "IA3"):
            ll.merge(model)
            ll.unmerge(model)
    assert run.result(60)


@pytest.mark.parametrize("name", ["FT", "BitFit"])
def test_a_pause_while_the_base_alone_is_scored_is_no_change_of_it(begin, name):
    """The tuned values are out of the model then, and come back into it."""
    lm, paused = tiny_lm(), []
    settings = EVALUATED | {"max_steps": 3, "eval_examples": 2}
    run = begin(lm, config=LEARNED[name], task=tiny_task(), start=False, **settings)

    def meanwhile(*_: Any) -> None:
        if not paused:
            paused.append(run.snapshot.phase)
            run.pause()

    lm.model.model.layers[1].register_forward_pre_hook(meanwhile)
    run.start()
    until(lambda: run.snapshot.state == "paused")
    run.resume()
    assert run.result(60)
    assert "base" in paused[0]
