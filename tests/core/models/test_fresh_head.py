"""A head that `load_model` began at random starts anew in each run, from the run's seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lora_lab as ll
from lora_lab.models import LoadedModel
from lora_lab.tasks import ClassificationTask
from tests.helpers.tiny_classes import tiny_classes

SETTINGS = {"max_steps": 1, "learning_rate": 1e-12, "eval_examples": 4, "save_steps": 0}
LORA = ll.LoraConfig(r=2)
METHODS = [
    LORA,
    ll.FullConfig(),
    ll.BitFitConfig(new_biases=True),
    ll.IA3Config(),
    [LORA, ll.PrefixEmbedConfig()],
]


def fresh(folder: Path) -> tuple[LoadedModel, ClassificationTask]:
    task = tiny_classes()
    return ll.load_model(folder, device="cpu", labels=task.labels), task


def begun(lm: LoadedModel, task: Any, config: Any, tmp_path: Path, seed: int) -> Any:
    """Return a run of one step that moves nothing, over."""
    run = ll.train(lm, task, config, output_dir=tmp_path, seed=seed, **SETTINGS)
    run.result(60)
    return run


def head(run: Any) -> Tensor:
    parts = getattr(run.adapter, "adapters", (run.adapter,))
    return next(p.state()["score.weight"] for p in parts if "score.weight" in p.state()).clone()


@pytest.mark.parametrize("config", METHODS, ids=["LoRA", "FT", "BitFit", "IA3", "LoRA+PE"])
def test_each_seed_has_its_own_start_and_the_base_stays(
    folder: Path, tmp_path: Path, config: Any
) -> None:
    lm, task = fresh(folder)
    base = lm.model.score.weight.clone()
    heads, before = {}, set()
    for seed in (0, 1, 0):
        run = begun(lm, task, config, tmp_path, seed)
        now = head(run)
        assert torch.equal(heads.setdefault(seed, now), now), "the same seed, the same start"
        before.add(run.result().metrics["loss_before"])
        ll.detach(lm.model, "default")
        assert torch.equal(lm.model.score.weight, base), "bit for bit"
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], base)
    assert len(before) == 1, "the base is scored with its own head, whatever the seed"
    # transformers draws it from a normal distribution with the config's deviation.
    both = torch.cat([heads[0], heads[1]])
    assert 0.5 < float(both.std()) / lm.model.config.initializer_range < 1.5


def test_other_draws_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    lm, task = fresh(folder)
    run = begun(lm, task, LORA, tmp_path, 3)
    ours = {n: t.clone() for n, t in run.adapter.state().items() if n.endswith(".A")}
    ll.detach(lm.model, "default")
    del lm.model.__dict__["_lora_lab_fresh_head"]
    plain = begun(lm, task, LORA, tmp_path, 3)
    assert all(torch.equal(t, ours[n]) for n, t in plain.adapter.state().items() if n in ours)


def test_a_head_that_was_trained_loaded_or_given_is_kept(folder: Path, tmp_path: Path) -> None:
    lm, task = fresh(folder)
    with torch.no_grad():
        lm.model.score.weight.mul_(2)  # whoever trained it
    assert torch.allclose(head(begun(lm, task, LORA, tmp_path, 5)), lm.model.score.weight)
    ll.detach(lm.model, "default")
    lm.model.save_pretrained(tmp_path / "saved")
    lm.tokenizer.save_pretrained(tmp_path / "saved")
    loaded, _ = fresh(tmp_path / "saved")
    assert torch.allclose(head(begun(loaded, task, LORA, tmp_path, 5)), lm.model.score.weight)
    given = LoadedModel.given(loaded.model, loaded.tokenizer, "mine")
    ll.detach(loaded.model, "default")
    assert torch.allclose(head(begun(given, task, LORA, tmp_path, 6)), lm.model.score.weight)
