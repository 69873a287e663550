"""The order of the data, from the beginning and from any step on."""

from __future__ import annotations

import pytest

from lora_lab.training.sampler import StepSampler


@pytest.mark.parametrize("examples", [3, 10, 64])
def test_the_order_from_any_step_on_is_the_end_of_the_whole_order(examples):
    whole = list(StepSampler(examples, 4, 20, seed=5))
    assert len(whole) == 80
    for done in range(21):
        rest = StepSampler(examples, 4, 20, 5, done)
        assert list(rest) == whole[done * 4 :]
        assert len(rest) == 80 - done * 4
    for start in range(0, 80 - examples + 1, examples):
        assert sorted(whole[start : start + examples]) == list(range(examples))
