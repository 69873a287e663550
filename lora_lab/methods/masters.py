"""float32 masters of what learns in half precision: the optimizer moves them, the model reads them.

bfloat16 has 8 bits of precision: an update below a 256th of a weight is lost in it, which at usual
learning rates are most. float16 has 11, and Adam's second moments underflow in it. So the moments
and the values that updates are added to are float32, as in Micikevicius et al. (2018), section
3.1; after every step they are rounded into the model's own parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lora_lab._util.dense import is_dense


class Masters:
    """float32 copies of those of some parameters that have fewer bits.

    Args:
        parameters: that learn, in the order of the optimizer.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        half = half_parameters(parameters)
        self._of = {each: nn.Parameter(_float32(each)) for each in half}

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return what the optimizer is to move: a parameter's master, else itself."""
        return self._of.get(parameter, parameter)

    def gather(self) -> None:
        """Add the parameters' gradients to their masters', one by one, and let go of them."""
        for parameter, master in self._of.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            parameter.grad = None
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    @torch.no_grad()
    def write(self) -> None:
        """Round the masters into the model, after a step."""
        for parameter, master in self._of.items():
            parameter.copy_(master)

    @torch.no_grad()
    def follow(self) -> None:
        """Take over what somebody has written into the parameters since the latest `write`."""
        for parameter, master in self._of.items():
            same = parameter == master.to(parameter.dtype)
            master.copy_(torch.where(same, master, parameter.float()))

    def state(self) -> dict[int, Tensor]:
        """Return {place in the order of the masters: one of them}."""
        return {i: master.detach() for i, master in enumerate(self._of.values())}

    @torch.no_grad()
    def load_state(self, state: Mapping[int, Tensor]) -> None:
        """Put back what `state` returned; of parameters that have their checkpoint's values.

        Raises:
            ValueError: one is of another shape.
        """
        for i, master in enumerate(self._of.values()):
            if i in state:
                if state[i].shape != master.shape:
                    raise ValueError(f"master {i} is {tuple(state[i].shape)}")
                master.copy_(state[i])
        self.follow()


def _float32(parameter: nn.Parameter) -> Tensor:
    """Return a copy that lies in memory as the parameter's gradients do.

    Those of a view with gaps are row by row (torch/csrc/autograd/functions/accumulate_grad.h).
    """
    layout = torch.preserve_format if is_dense(parameter) else torch.contiguous_format
    return parameter.detach().to(torch.float32, memory_format=layout)


def half_parameters(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return those of some parameters that need a master."""
    return [p for p in parameters if p.is_floating_point() and p.element_size() < 4]
