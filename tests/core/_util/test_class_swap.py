"""Classes that take an object's place, whatever its own is laid out as."""

from __future__ import annotations

from abc import ABC

import pytest
from torch import nn

from lora_lab._util.class_swap import with_mixin


class Mixin:
    def __init__(self) -> None:
        raise AssertionError("an object takes the class, none is made of it")

    def forward(self, x: int) -> int:
        return super().forward(x) + 1  # type: ignore[misc]

    def __getattr__(self, name: str) -> str:
        return name


class Second:
    def forward(self, x: int) -> int:
        return super().forward(x) + 100  # type: ignore[misc]


class Of(nn.Module):
    def forward(self, x: int) -> int:
        return 10 * x


class Root(ABC):  # noqa: B024
    pass


class Abstract(Root, Of):
    pass


class Below(Abstract):
    pass


class Plain(Of, Root):
    pass


@pytest.mark.parametrize("base", [Of, Abstract, Below, Plain])
def test_an_object_becomes_the_subclass_and_its_own_again(base: type) -> None:
    thing = base()
    made = with_mixin(Mixin, base, "Made", {"extra": 3})
    thing.__class__ = made
    assert (thing.forward(2), thing.extra, thing.missing) == (21, 3, "missing")
    assert isinstance(thing, Mixin)
    assert isinstance(thing, base)
    again = with_mixin(Second, made, "Again", {})  # as `watch` does it
    thing.__class__ = again
    assert thing.forward(2) == 121
    thing.__class__ = base
    assert thing.forward(2) == 20
    assert not isinstance(thing, Mixin)
