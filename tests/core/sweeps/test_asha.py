"""ASHA stops what is behind at a rung, by the rule of Li et al. (2020), and nothing else."""

import math
import random

import pytest

from lora_lab.errors import ConfigError
from lora_lab.sweeps.asha import Asha, AshaConfig


def test_rungs_are_geometric_and_end_before_the_run_does():
    assert AshaConfig(grace_steps=10, reduction=3).rungs(100) == (10, 30, 90)
    assert AshaConfig(grace_steps=10, reduction=3).rungs(90) == (10, 30)
    assert AshaConfig(grace_steps=10).rungs(10) == ()


def test_a_run_goes_on_if_and_only_if_it_is_among_the_best_third_so_far():
    rng = random.Random(0)
    rule, seen = Asha(AshaConfig(reduction=3)), []
    for _ in range(200):
        loss = rng.gauss(0, 1)
        seen.append(loss)
        better = sum(other < loss for other in seen)
        assert rule.goes_on(20, loss) == (better < max(1, len(seen) // 3))


def test_rungs_are_apart_and_an_earlier_call_counts():
    rule = Asha(AshaConfig(reduction=2), {20: [1.0, 2.0]})
    assert not rule.goes_on(20, 1.5)
    assert rule.goes_on(20, 0.5)
    assert rule.goes_on(40, 9.0)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_what_is_no_number_never_goes_on(loss):
    rule = Asha(AshaConfig())
    assert not rule.goes_on(20, loss)
    assert rule.goes_on(20, 5.0)


def test_settings_that_compare_nothing_are_refused():
    with pytest.raises(ConfigError, match="reduction is 1"):
        AshaConfig(reduction=1)
    with pytest.raises(ConfigError, match="grace_steps is 0"):
        AshaConfig(grace_steps=0)


def test_a_loss_that_was_no_number_is_the_worst_of_those_seen_before_too():
    rule = Asha(AshaConfig(1, 2), {1: [1.0, float("nan"), 3.0, float("-inf")]})
    assert rule.goes_on(1, 1.5), "second of five"
    assert not rule.goes_on(1, 4.0)


def test_a_rule_that_would_end_nothing_is_refused():
    rule = AshaConfig(grace_steps=20)
    rule.check([10, 21])
    rule.check([])
    for steps in ([20], [10, 20, 5], [1]):
        line = rf"grace_steps is 20 and no cell trains longer than {max(steps)} step.*leave early_s"
        with pytest.raises(ConfigError, match=line):
            rule.check(steps)
