"""Ranks for a budget: proportional to gradient norms, never above it, beside the uniform plan."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

import lora_lab as ll
from lora_lab import anatomy, budget
from lora_lab.advice.layers import FINDING, allocate, cost, uniform, which_layers
from lora_lab.anatomy.types import Site
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.targets import resolve_targets
from lora_lab.models import LoadedModel
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_text import tiny_tokenizer


def site(name: str, k: int, d: int, experts: int = 1) -> Site:
    return Site(name, name, 0, name, k, d, experts=experts)


SITES = (site("a", 4, 4), site("b", 8, 4), site("c", 16, 16, 2))


def spent(ranks: dict[str, int]) -> int:
    return sum(cost(s) * ranks.get(s.name, 0) for s in SITES)


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 2), (0.1, 3, 40), (1e-9, 1, 1e9)])
def test_parameters_are_in_proportion_to_weights(weights: tuple[float, ...]) -> None:
    known = dict(zip("abc", weights, strict=True))
    for total in range(0, 1500, 64):
        ranks = allocate(SITES, known, total)
        assert spent(ranks) <= total
        left = [s for s in SITES if ranks.get(s.name, 0) < min(s.in_features, s.out_features)]
        assert all(cost(s) > total - spent(ranks) for s in left), "as much as fits is spent"
        values = {n: known[n] for n in ranks}
        for one, other in itertools.permutations(ranks, 2):
            # Nobody has a rank that another one had a stronger claim to (D'Hondt).
            a, b = (next(s for s in SITES if s.name == n) for n in (one, other))
            if ranks[other] == min(b.in_features, b.out_features):
                continue
            claim = values[other] / ((ranks[other] + 1) * cost(b))
            had = values[one] / (ranks[one] * cost(a))
            assert claim <= had or cost(b) > total - spent(ranks)


def test_large_budgets_come_out_in_exact_proportion() -> None:
    wide = [site(name, 10_000, 10_000) for name in "abc"]
    ranks = allocate(wide, {"a": 1.0, "b": 2.0, "c": 5.0}, 800 * 20_000)
    assert ranks == {"a": 100, "b": 200, "c": 500}


def test_uniform_is_as_even_as_the_budget_allows() -> None:
    alike = [site(name, 8, 8) for name in "abcd"]
    assert uniform(alike, 16 * 4 * 3) == dict.fromkeys("abcd", 3)
    assert uniform(alike, 16 * (4 * 3 + 2)) == {"a": 4, "b": 4, "c": 3, "d": 3}
    assert uniform([site("thin", 2, 100), *alike], 10**6) == {"thin": 2, **dict.fromkeys("abcd", 8)}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("parameters", [None, 3_000, 7_001])
def test_both_plans_keep_to_the_budget(name: str, parameters: int | None) -> None:
    model: Any = tiny(name, vocab_size=259)
    lm = LoadedModel.given(model, tiny_tokenizer(), name)
    found = which_layers(lm, tiny_task(), parameters=parameters, passes=2, max_length=32)
    grid = anatomy(lm.model)
    for plan in (found.proposed, found.uniform):
        assert plan.parameters == budget(lm.model, plan.config).parameters_trainable
        assert found.budget - max(cost(s) for s in grid.grid_sites) < plan.parameters
        assert plan.parameters <= found.budget
        specs = resolve_targets(grid, plan.config)
        assert {p.site.name: p.r for p in specs} == dict(plan.ranks)
        assert {p.scale for p in specs} == {2.0}, "α = 2r everywhere"
    if parameters is None:
        plain = ll.LoraConfig(r=8, target_modules="all-linear")
        assert found.budget == budget(lm.model, plain).parameters_trainable
        assert set(found.uniform.ranks.values()) == {8}
    else:
        assert found.budget == parameters
        ranks = {*found.uniform.ranks.values()}
        assert max(ranks) - min(ranks) <= 1


def test_ranks_follow_the_norms() -> None:
    found = which_layers(tiny_lm(), tiny_task(), passes=2, target_modules=["q", "o"])
    norms = found.gradients.norms
    assert found.proposed.ranks.keys() <= {s.name for s in found.anatomy.sites if s.role in "qo"}
    alike = sorted(found.proposed.ranks, key=lambda name: norms[name])  # q and o are of one size
    ranks = [found.proposed.ranks[name] for name in alike]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]


def test_it_says_what_it_is() -> None:
    found = which_layers(tiny_lm(), tiny_task(), passes=1)
    text = str(found)
    assert "heuristic" in text
    assert "1 backward pass in" in text
    assert [line.split()[0] for line in text.splitlines()[3:10]] == list(
        dict.fromkeys(s.role for s in found.anatomy.grid_sites)
    )
    assert "heuristic" in found._repr_html_()
    told = json.loads(json.dumps(found.to_json()))
    assert told["proposed"]["ranks"] == dict(found.proposed.ranks)
    assert told["norms"] == found.gradients.norms


def test_the_finding_is_what_the_paper_prints() -> None:
    table = ll.paper.table(1, "AdaLoRA")
    average = dict(zip((row[:2] for row in table.rows), table.column("average"), strict=True))
    assert average["AdaLoRA", "0.32M"] == 88.86
    assert average["LoRA r = 2", "0.33M"] == 88.15
    peft = ll.paper.table(1, "PEFT")
    scores = dict(zip((row[:2] for row in peft.rows), peft.column("accuracy"), strict=True))
    assert scores["adalora", "llama-3.2-3B-rank32"] == 37.30
    assert scores["lora", "llama-3.2-3B-rank32"] == 47.84
    numbers = {"88.86", "88.15", "0.32", "0.33", "37.30", "47.84"}
    assert set(re.findall(r"\d+\.\d+", FINDING)) == numbers


def test_a_budget_that_cannot_be_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr("lora_lab.advice.layers.layer_gradients", never)
    lm = tiny_lm()
    least = budget(lm.model, ll.LoraConfig(r=1, target_modules="all-linear")).parameters_trainable
    with pytest.raises(ConfigError, match=f"less than r = 1 at all 14 targets takes, {least:,}"):
        which_layers(lm, tiny_task(), parameters=least - 1)
    with pytest.raises(ConfigError, match="parameters is 0"):
        which_layers(lm, tiny_task(), parameters=0)
    with pytest.raises(ConfigError, match="matches nothing"):
        which_layers(lm, tiny_task(), target_modules=["kqv"])
    with pytest.raises(ConfigError, match="tokenizer"):
        which_layers(lm.model, tiny_task())
