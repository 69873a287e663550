"""A plan's costs as people read them."""

from __future__ import annotations

from dataclasses import replace

from lora_lab.budget import budget
from lora_lab.budget.costs import Memory
from lora_lab.configs import FullConfig


def test_activations_that_gradients_have_room_for_are_not_said_to_be_none() -> None:
    found = budget("smollm2-135m", FullConfig())
    inside = replace(found.adapted, activations=0)
    found = replace(found, adapted=inside)
    for shown in (str(found), found._repr_html_()):
        assert "within gradients" in shown
        assert "0 B" not in shown
    assert found.to_json()["memory"]["adapted"]["activations"] == 0
    nothing = replace(found, adapted=Memory(1, 0, 0, 0), full=Memory(1, 0, 0, 0))
    assert "within gradients" not in str(nothing)
