"""The order of the data, from the beginning and from any step on."""

from __future__ import annotations

import pytest
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from lora_lab.training.sampler import StepSampler

GENERATOR = torch.Generator().manual_seed(0)
LENGTHS = torch.randint(5, 80, (4096,), generator=GENERATOR).tolist()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("examples", [1, 3, 10, 64])
def test_the_order_from_any_step_on_is_the_end_of_the_whole_order(examples, grouped):
    lengths = LENGTHS[:examples] if grouped else None
    whole = list(StepSampler(examples, 4, 20, seed=5, lengths=lengths))
    assert len(whole) == 80
    for done in range(21):
        rest = StepSampler(examples, 4, 20, 5, done, lengths)
        assert list(rest) == whole[done * 4 :]
        assert len(rest) == 80 - done * 4
    for start in range(0, 80 - examples + 1, examples):
        assert sorted(whole[start : start + examples]) == list(range(examples))


def padding(order: list[int], lengths: list[int], size: int) -> float:
    batches = [[lengths[row] for row in order[i : i + size]] for i in range(0, len(order), size)]
    return 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)


@pytest.mark.parametrize(("examples", "size"), [(4096, 8), (800, 8), (801, 8), (100, 8), (250, 32)])
def test_a_grouped_round_is_padded_as_little_as_transformers_own(examples, size):
    lengths = LENGTHS[:examples]
    peer = get_length_grouped_indices(lengths, size, generator=torch.Generator().manual_seed(1))
    steps = examples // size
    order = list(StepSampler(examples, size, steps, seed=1, lengths=lengths))
    random = list(StepSampler(examples, size, steps, seed=1))
    theirs = padding(peer, lengths, size)
    assert padding(order, lengths, size) < theirs + 0.015
    if examples >= 800:  # of fewer, transformers sort fewer than 25 steps together
        assert padding(random, lengths, size) > 4 * theirs
    assert max(lengths) in [lengths[row] for row in order[:size]], "first, as transformers' is"


def test_the_steps_of_a_grouped_round_are_transformers_own_in_another_order():
    """But for the one that theirs swap the longest example into."""
    found, size = [], 8
    for number in range(2):  # 800 examples are whole steps: every round is aligned
        seed = (7 * 1_000_003 + number) % 2**63
        peer = get_length_grouped_indices(
            LENGTHS[:800], size, generator=torch.Generator().manual_seed(seed)
        )
        order = list(StepSampler(800, size, 200, 7, lengths=LENGTHS[:800]))[number * 800 :][:800]
        ours, theirs = (
            {frozenset(rows[i : i + size]) for i in range(0, 800, size)} for rows in (order, peer)
        )
        assert len(ours - theirs) <= 2
        found.append(order)
    assert found[0] != found[1]


def test_later_rounds_are_padded_as_little_as_the_first():
    """Where a round does not end with a step, the next one's steps are still of like length."""
    order = list(StepSampler(803, 8, 1000, seed=2, lengths=LENGTHS[:803]))
    rounds = [padding(order[i : i + 800], LENGTHS, 8) for i in range(0, 8000, 800)]
    assert max(rounds) < 0.06
    lasting = [sum(LENGTHS[row] for row in order[i : i + 8]) for i in range(0, 800, 8)]
    assert torch.tensor(lasting[1:50]).float().std() > 50, "long and short steps are mixed"


def test_lengths_of_two_sides_sort_by_the_first_and_then_by_the_second():
    lengths = [(3, 9), (3, 1), (8, 2), (8, 1)] * 64
    order = list(StepSampler(256, 4, 64, seed=0, lengths=lengths))
    steps = [{lengths[row] for row in order[i : i + 4]} for i in range(0, 256, 4)]
    assert sum(len(step) == 1 for step in steps) >= 64 - 4 * 3, "3 borders in each sorted quarter"
    assert (8, 2) in steps[0]
