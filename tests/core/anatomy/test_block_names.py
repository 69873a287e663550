"""Blocks by any name: numbered, named, sliced off a longer model, or in a list with names."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import lora_lab as ll


class Block(nn.Module):
    """Two matrices, on one input."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, 4)."""
        return x + self.q_proj(x).tanh() + self.v_proj(x).tanh()


def named(*names: str) -> nn.Sequential:
    """Blocks under these names."""
    return nn.Sequential(OrderedDict((name, Block()) for name in names))


MODELS = {
    "torchvision's": (lambda: named("encoder_layer_0", "encoder_layer_1"), [0, 1]),
    "backwards": (lambda: named("l1", "l0"), [0, 1]),
    "sliced": (lambda: nn.Sequential(*(Block() for _ in range(5)))[2:4], [2, 3]),
    "zeros": (lambda: named("00", "01"), [0, 1]),
    "one number twice": (lambda: named("1", "01"), [0, 1]),
    "no digit": (lambda: named("²", "٣"), [0, 1]),
    "mixed": (lambda: named("0", "last"), [0, 1]),
    "negative": (lambda: named("-1", "-2"), [0, 1]),
    "methods' names": (lambda: named("keys", "lora"), [0, 1]),
}


@pytest.mark.parametrize("kind", MODELS)
def test_blocks_are_numbered_and_found_by_their_own_names(kind: str) -> None:
    make, numbers = MODELS[kind]
    model = make()
    found = ll.anatomy(model)
    assert [block.row.layer for block in found.blocks] == numbers
    assert [block.path for block in found.blocks] == [name for name, _ in model.named_children()]
    assert found.roles == ("q", "v")
    x = torch.randn(3, 4)
    before = model(x)
    adapter = ll.attach(model, ll.LoraConfig(r=1, target_modules=["q"], init_lora_weights=False))
    assert len(adapter.sites) == len(numbers)
    after = model(x)
    assert not torch.allclose(after, before)
    ll.merge(model)
    torch.testing.assert_close(model(x), after)
    ll.detach(model)
    assert torch.equal(model(x), before)


def test_matrices_in_a_list_and_in_a_dict_have_a_name_of_their_own() -> None:
    model = nn.Module()
    model.rows = nn.ModuleList([nn.Linear(4, 4)])
    model.rows.add_module("more", nn.Linear(4, 4))
    assert [site.layer for site in ll.anatomy(model).sites] == [0, 1]
    table = nn.Module()
    table.rows = nn.ModuleDict({"a": nn.Linear(4, 4), "1": nn.Linear(4, 4)})
    assert [site.name for site in ll.anatomy(table).sites] == ["rows.a", "rows.1"]


def test_stacks_within_a_stack_are_told_apart() -> None:
    model = nn.Sequential(OrderedDict(s1=named("a", "b"), s2=named("a", "b")))
    found = ll.anatomy(model)
    assert [block.path for block in found.blocks] == ["s1", "s2"]
    assert found.roles == ("a.q_proj", "a.v_proj", "b.q_proj", "b.v_proj")


def test_a_matrix_alone_is_refused_in_one_line() -> None:
    with pytest.raises(ll.LoraLabError, match="is a Linear alone"):
        ll.anatomy(nn.Linear(4, 4))
