"""Adapter layers (Hu et al., 2022, 5.1): a bottleneck behind a block's modules, W₀ untouched.

Adapter^H and Adapter^P read what a sublayer gives back once it is d wide again, before it is added
to the residual stream: after attention and after the MLP (Houlsby et al., 2019), or after the MLP
only (Pfeiffer et al., 2021). Adapter^L reads the residual stream that leaves the block (Lin et al.,
2020). Adapter^D is Adapter^P of which the lowest blocks go without (AdapterDrop, Rücklé et al.,
2020). Cross-attention gets none.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from lora_lab._util.thread_own import ThreadOwn
from lora_lab._util.torch_private import FakeTensor
from lora_lab.anatomy.api import anatomy
from lora_lab.errors import AdapterError
from lora_lab.methods.base import Active, Adapter
from lora_lab.methods.bottleneck.config import BottleneckConfig
from lora_lab.methods.bottleneck.locations import Place, find_places
from lora_lab.methods.offload import check_present, check_room
from lora_lab.methods.own_draws import OwnDraws
from lora_lab.methods.own_tensors import own_modules
from lora_lab.methods.submodules import add_submodule, remove_submodule

_EPSILON = 1e-5  # of the LayerNorm, as in Lin et al.'s code


class Bottleneck(nn.Module):
    """One adapter layer: x + W_up·relu(W_down·x + b_down) + b_up; with a LayerNorm, W_down·LN(x).

    W_down is drawn as LoRA's A is, U(−1/√d, 1/√d); W_up and both biases start at zero, so that the
    model starts as the base, exactly. All are float32, or the base's dtype where that is wider, and
    are cast to x's dtype to be used.

    Attributes:
        down, down_bias: (r, d) and (r,).
        up, up_bias: (d, r) and (d,).
        norm, norm_bias: the LayerNorm's, (d,); None without.
    """

    def __init__(self, place: Place, r: int, layer_norm: bool) -> None:
        super().__init__()
        d, dtype = place.width, torch.promote_types(place.dtype, torch.float32)

        def master(tensor: Tensor) -> nn.Parameter:
            return nn.Parameter(tensor.to(place.device, dtype))

        # Drawn on the CPU, so that a seed gives the same adapter on every device.
        drawn_on = "meta" if place.device.type == "meta" else "cpu"
        down = torch.empty(r, d, device=drawn_on, dtype=torch.float32)
        self.down = master(nn.init.kaiming_uniform_(down, a=math.sqrt(5)))
        self.down_bias = master(torch.zeros(r))
        self.up = master(torch.zeros(d, r))
        self.up_bias = master(torch.zeros(d))
        self.norm = master(torch.ones(d)) if layer_norm else None
        self.norm_bias = master(torch.zeros(d)) if layer_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Return x with the bottleneck's update, (..., d)."""
        read = x
        if self.norm is not None and self.norm_bias is not None:
            norm = self.norm.to(x.dtype), self.norm_bias.to(x.dtype)
            read = F.layer_norm(x, x.shape[-1:], *norm, _EPSILON)
        hidden = F.relu(F.linear(read, self.down.to(x.dtype), self.down_bias.to(x.dtype)))
        return x + F.linear(hidden, self.up.to(x.dtype), self.up_bias.to(x.dtype))


@dataclass
class _Pass:
    """A thread's latest forward pass in training mode: how many blocks go without, of Adapter^D."""

    dropped: int = 0


class BottleneckAdapter(Adapter):
    """Adapter^H, Adapter^L, Adapter^P or Adapter^D on a model.

    The nonlinearity is ReLU in all of them: Lin's and Pfeiffer's, where Houlsby's code has GELU.

    Adapter^D is trained to do without its lower layers: a forward pass in training mode draws n
    from {0, …, L−1} by torch's generator and leaves out the adapters of the n lowest blocks of
    every stack, L being the blocks of the shortest; n holds until the next forward pass, as
    gradient checkpointing needs it. In eval mode n is `config.drop_layers`.

    Attributes:
        layers: {path of the module it stands behind: adapter layer}, from the bottom up.
    """

    def __init__(self, model: nn.Module, config: BottleneckConfig, name: str) -> None:
        self.method, self.name, self.config = config.method, name, config
        self.model = model
        read = anatomy(model)
        self._places = find_places(model, read, config)
        check_room((p.path for p in self._places), dict(own_modules(model, every_name=True)))
        self._blocks = min(Counter(row.stack for row in read.rows).values())
        self._dropped_in_answers = config.dropped(self._blocks)
        self._passes = ThreadOwn(_Pass)
        self.layers, draws = {}, OwnDraws()
        for place in self._places:
            with draws.of(place.path, config.r, hollow=place.device.type == "meta"):
                self.layers[place.path] = Bottleneck(place, config.r, config.layer_norm)
        self._hooks: list[RemovableHandle] = []
        self._inserted = False  # a hook may outlive an interrupt

    def insert(self, active: Active) -> None:
        """Put the layers behind their modules; see `Adapter.insert`."""
        if self._hooks:
            return
        self._inserted = True
        for place in self._places:
            learned = self.layers[place.path]
            add_submodule(place.module, self._child, learned)
            # First of all hooks: transformers' own, which record hidden states, are to see it.
            after = functools.partial(self._after, place, learned, active)
            self._hooks.append(place.module.register_forward_hook(after, prepend=True))
        if self.config.variant == "D":
            before = functools.partial(self._before, active)
            self._hooks.append(self.model.register_forward_pre_hook(before))

    def remove(self) -> None:
        """Take the layers away; see `Adapter.remove`."""
        self._inserted = False
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for place in self._places:
            remove_submodule(place.module, self._child)

    def conflicts(self) -> Iterator[str]:
        """Yield the places in words; see `Adapter.conflicts`."""
        yield from (place.words for place in self._places)

    def merged_weights(self, dtype: torch.dtype | None = None) -> NoReturn:  # noqa: ARG002
        """Raise; see `check_merge`."""
        self.check_merge()

    def check_merge(self) -> NoReturn:
        """Raise: what is not linear cannot become part of a matrix."""
        raise AdapterError(
            f"{self.method} cannot be merged: no W₀ can hold the nonlinearity between W_down and "
            "W_up (section 3 of the paper); keep it attached, or train a LoRA"
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield every layer's parameters, from the bottom up."""
        for layer in self.layers.values():
            yield from layer.parameters()

    def parameters_by_location(self) -> dict[str, Sequence[nn.Parameter]]:
        """Return {place in words: its parameters}; of Adapter^D one part, the top layer's first.

        A step leaves Adapter^D's lower layers out as often as not; only the top one is always
        there. W_up and its bias come first: what starts at zero and moves in the first step.
        """
        learned: dict[str, Sequence[nn.Parameter]]
        learned = {place.words: _upper_first(self.layers[place.path]) for place in self._places}
        if self.config.variant != "D":
            return learned
        return {"after the MLPs": [p for own in reversed(learned.values()) for p in own]}

    def state(self) -> dict[str, Tensor]:
        """Return the parameters by "path of the module.down", "….up" and so on."""
        return {
            f"{path}.{key}": parameter
            for path, layer in self.layers.items()
            for key, parameter in layer.named_parameters()
        }

    @property
    def _child(self) -> str:
        """What the layers are added under: another part of a combination has the same name."""
        return f"{self.name}:bottleneck"

    # Hooks are methods, and no functions within functions: copy.deepcopy of a model copies what
    # methods belong to, but hands on functions as they are, with the original's layers.

    def _after(
        self,
        place: Place,
        learned: Bottleneck,
        active: Active,
        _module: nn.Module,
        _inputs: Any,
        output: Any,
    ) -> Any:
        if not self._answers(active) or place.depth < self._dropped():
            return None
        if learned.up.is_meta:
            check_present(learned, place.path)
        if isinstance(output, Tensor):
            return learned(output)
        return type(output)((learned(output[0]), *output[1:]))  # a tuple, or a list (GPT)

    def _before(self, active: Active, model: nn.Module, _inputs: Any) -> None:
        if self._answers(active) and model.training:
            self._passes.here().dropped = self._draw()

    def _dropped(self) -> int:
        """Return how many of the lowest blocks go without in this thread's pass."""
        if self.config.variant != "D" or not self.model.training:
            return self._dropped_in_answers
        return self._passes.here().dropped

    def _answers(self, active: Active) -> bool:
        return self._inserted and active.samples is None and active.name == self.name

    def _draw(self) -> int:
        if any(isinstance(parameter, FakeTensor) for parameter in self.parameters()):
            return 0  # a dry run asks what a step takes at most, and draws nothing
        return int(torch.randint(self._blocks, ()))


def _upper_first(layer: Bottleneck) -> list[nn.Parameter]:
    """Return a layer's parameters, W_up's bias first: it learns even where no ReLU is open."""
    first = [layer.up_bias, layer.up]
    return first + [p for p in layer.parameters() if all(p is not other for other in first)]
