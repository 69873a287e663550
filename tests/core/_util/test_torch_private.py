"""torch's private names that the logits of labels need."""

from __future__ import annotations

import torch
from torch import nn

from lora_lab._util import torch_private


def test_hooks_of_modules_and_of_tensors_are_found() -> None:
    layer = nn.Linear(2, 2)
    assert not any(map(torch_private.has_hooks, (layer, layer.weight)))
    for register in (
        layer.register_forward_pre_hook,
        layer.register_forward_hook,
        layer.register_full_backward_pre_hook,
        layer.register_full_backward_hook,
    ):
        handle = register(lambda *_: None)
        assert torch_private.has_hooks(layer)
        handle.remove()
        assert not torch_private.has_hooks(layer)
    layer.weight.register_hook(lambda g: g)
    assert torch_private.has_hooks(layer.weight)


def test_a_hollow_tensor_has_a_shape_and_a_type() -> None:
    class Hollow(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, *_):
            raise TypeError(func)

    made = torch_private.hollow_tensor(Hollow, (1 << 40, 3), torch.empty(0, dtype=torch.bfloat16))
    assert (tuple(made.shape), made.dtype, type(made)) == ((1 << 40, 3), torch.bfloat16, Hollow)
