"""AdaLoRA's schedule, scores and choice of triplets, against the paper's formulas in float64."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from lora_lab.methods.adalora.rank_allocator import RankAllocator, Scores, strongest, triplet_scores

# 72 matrices as in the paper: b(0) = 12 · 72, b(T) = 8 · 72.
PAPER = RankAllocator(first=864, last=576, tinit=50, tfinal=100, deltaT=10, total=300)


def exactly(budget: RankAllocator, step: int) -> int:
    """b(t) in exact fractions, with the numerator of the authors' code."""
    if step <= budget.tinit:
        return budget.first
    if step >= budget.total - budget.tfinal:
        return budget.last
    length = budget.total - budget.tinit - budget.tfinal
    share = (1 - Fraction(step - budget.tinit, length)) ** 3
    return int(budget.last + (budget.first - budget.last) * share)


@pytest.mark.parametrize(
    "budget", [PAPER, RankAllocator(36, 12, 0, 0, 1, 17), RankAllocator(8, 8, 1, 2, 1, 9)]
)
def test_the_budget_falls_with_the_cube_of_what_is_left(budget):
    values = [budget.triplets(step) for step in range(budget.total + 1)]
    assert values == [exactly(budget, step) for step in range(budget.total + 1)]
    assert values[0] == budget.first
    assert values[-1] == budget.last
    assert values == sorted(values, reverse=True)


def test_the_papers_misprint_is_not_copied():
    """With t − t_i − t_f in the numerator the budget would jump above b(0) at t = t_i."""
    printed = PAPER.last + (PAPER.first - PAPER.last) * (1 - (0 - 100) / 150) ** 3
    assert int(printed) > PAPER.first
    assert PAPER.triplets(PAPER.tinit + 1) < PAPER.first


def test_the_budget_is_pefts_at_every_step():
    from types import SimpleNamespace

    from peft.tuners.adalora.layer import RankAllocator

    theirs = RankAllocator.__new__(RankAllocator)
    theirs.peft_config = SimpleNamespace(tinit=50, tfinal=100, total_step=300, deltaT=10)
    theirs.init_bgt, theirs.target_bgt = 864, 576
    for step in range(1, 301):
        budget, cuts = theirs.budget_schedule(step)
        assert PAPER.triplets(step) == budget
        # At step T − tfinal itself PEFT's model forces the cut, whatever the schedule says.
        assert PAPER.cuts(step) == (cuts or step == 200)


def test_cuts_come_every_delta_t_steps_and_when_the_last_one_is_due():
    budget = RankAllocator(first=30, last=10, tinit=3, tfinal=2, deltaT=4, total=13)
    assert [step for step in range(1, 12) if budget.cuts(step)] == [4, 8, 11]
    assert [step for step in range(1, 14) if budget.scores(step)] == list(range(1, 11))


def test_scores_are_the_papers_averages():
    """Equations 8 to 10, step by step in float64 NumPy."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator).double() for shape in [(5, 3), (3,), (3, 4)]]
    scores = Scores(weights, beta1=0.85, beta2=0.7)
    smooth = [np.zeros(w.shape) for w in weights]
    uncertain = [np.zeros(w.shape) for w in weights]
    for _ in range(6):
        for weight in weights:
            weight.copy_(torch.randn(weight.shape, generator=generator))
            weight.grad = torch.randn(weight.shape, generator=generator).double()
        scores.update()
        for i, weight in enumerate(weights):
            now = np.abs(weight.numpy() * weight.grad.numpy())
            smooth[i] = 0.85 * smooth[i] + 0.15 * now
            uncertain[i] = 0.7 * uncertain[i] + 0.3 * np.abs(now - smooth[i])
    products = [a * b for a, b in zip(smooth, uncertain, strict=True)]
    for ours, expected in zip(scores.each(), products, strict=True):
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)
    P, lambdas, Q = products
    expected = [
        lambdas[i] + sum(P[j, i] for j in range(5)) / 5 + sum(Q[i, j] for j in range(4)) / 4
        for i in range(3)
    ]
    np.testing.assert_allclose(triplet_scores(*scores.each()).numpy(), expected, rtol=1e-12)


def test_a_weight_without_a_gradient_only_fades():
    weights = [torch.ones(2), torch.ones(2)]
    weights[0].grad = torch.ones(2)
    scores = Scores(weights, 0.5, 0.5)
    scores.update()
    assert scores.sensitivity[0].tolist() == [0.5, 0.5]
    assert scores.sensitivity[1].tolist() == [0.0, 0.0]


def test_the_strongest_are_chosen_over_all_matrices():
    scores = [torch.tensor([0.1, 5.0]), torch.tensor([0.2, 0.3, 4.0]), torch.tensor([0.05])]
    kept = strongest(scores, 3)
    assert [k.tolist() for k in kept] == [[False, True], [False, True, True], [False]]


@pytest.mark.parametrize("count", [1, 250, 600, 999, 1000])
def test_of_equal_scores_the_earlier_ones_are_kept_and_never_too_many(count):
    scores = [torch.zeros(400), torch.zeros(600)]
    scores[1][:10] = 1.0
    together = torch.cat(strongest(scores, count))
    expected = torch.zeros(1000, dtype=torch.bool)
    expected[400 : 400 + min(count, 10)] = True
    others = [i for i in range(1000) if not 400 <= i < 410]
    expected[others[: max(0, count - 10)]] = True
    assert torch.equal(together, expected)
