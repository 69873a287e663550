"""Several methods at once on one model, such as the paper's LoRA+PE and LoRA+PL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.errors import ConfigError
from lora_lab.methods.base import Active, Adapter
from lora_lab.methods.config import MethodConfig


class Combination(Adapter):
    """Adapters under one name: active together, trained together, saved each for itself.

    Attributes:
        adapters: the parts, in the order of their configs.
    """

    def __init__(self, config: MethodConfig, adapters: Sequence[Adapter], name: str) -> None:
        _refuse_conflicts(adapters)
        self.name = name
        self.adapters = tuple(adapters)
        self.config = config
        self.method = config.method
        self.modifies_base = any(adapter.modifies_base for adapter in adapters)
        self.sites = {name: site for own in adapters for name, site in own.sites.items()}

    def insert(self, active: Active) -> None:
        """Put every part in place."""
        for adapter in self.adapters:
            adapter.insert(active)

    def remove(self) -> None:
        """Take every part out."""
        for adapter in reversed(self.adapters):
            adapter.remove()

    def set_active(self, on: bool) -> None:
        """Switch every part."""
        for adapter in self.adapters:
            adapter.set_active(on)

    def acts_at(self) -> Iterator[nn.Module]:
        """Yield every part's."""
        for adapter in self.adapters:
            yield from adapter.acts_at()

    def base_value(self, weight: nn.Parameter) -> Tensor | None:
        """Return W₀ of a parameter that one of the parts works within."""
        found = (adapter.base_value(weight) for adapter in self.adapters)
        return next((own for own in found if own is not None), None)

    def conflicts(self) -> Iterator[str]:
        """Yield what the parts claim."""
        for adapter in self.adapters:
            yield from adapter.conflicts()

    def check_merge(self) -> None:
        """Raise if one of the parts cannot merge."""
        for adapter in self.adapters:
            adapter.check_merge()

    def warning(self) -> str | None:
        """Return the first part's that has one."""
        return next((line for own in self.adapters if (line := own.warning())), None)

    def merged_weights(
        self, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield every part's merged weights; no weight is claimed by two of them."""
        for adapter in self.adapters:
            yield from adapter.merged_weights(dtype)

    def quantized_layers(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the parts' makers."""
        return {path: m for own in self.adapters for path, m in own.quantized_layers().items()}

    def base_weight(self, site_name: str) -> Tensor:
        """Return the frozen W₀ of a site, (out, in)."""
        return next(own for own in self.adapters if site_name in own.sites).base_weight(site_name)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield every part's parameters."""
        for adapter in self.adapters:
            yield from adapter.parameters()

    def parameters_by_location(self) -> dict[str, Sequence[nn.Parameter]]:
        """Return the places of every part."""
        return {
            place: learned
            for own in self.adapters
            for place, learned in own.parameters_by_location().items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return every part's tensors; the names begin with the part's number."""
        return {
            f"{number}.{name}": tensor
            for number, own in enumerate(self.adapters)
            for name, tensor in own.state().items()
        }

    @property
    def ranks(self) -> dict[str, int]:
        """The parts' ranks."""
        return {name: r for own in self.adapters for name, r in own.ranks.items()}

    def fast_parameters(self) -> Iterator[nn.Parameter]:
        """Yield every part's."""
        for adapter in self.adapters:
            yield from adapter.fast_parameters()

    def begin_training(self, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Tell every part."""
        for adapter in self.adapters:
            adapter.begin_training(optimizer, total_steps)

    def skip_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell every part; see `Adapter.skip_step`."""
        for adapter in self.adapters:
            adapter.skip_step(optimizer)

    def pending_schedule(self) -> str | None:
        """Return the first part's that has something to do yet."""
        return next((left for own in self.adapters if (left := own.pending_schedule())), None)

    def penalty(self) -> Tensor | None:
        """Return the sum of the parts' penalties."""
        given = [p for own in self.adapters if (p := own.penalty()) is not None]
        return torch.stack(given).sum() if given else None

    def training_state(self) -> dict[str, Any]:
        """Return every part's, by its number."""
        states = enumerate(own.training_state() for own in self.adapters)
        return {str(number): state for number, state in states if state}

    def snapshot(self) -> list[Tensor]:
        """Return copies of what the parts learn, one part after another."""
        return [value for own in self.adapters for value in own.snapshot()]

    def restore(self, values: Sequence[Tensor]) -> None:
        """Put back what `snapshot` returned."""
        left = iter(values)
        for own in self.adapters:
            own.restore(list(islice(left, len(own.snapshot()))))

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Hand every part its own."""
        for number, own in state.items():
            self.adapters[int(number)].load_training_state(own)


def _refuse_conflicts(adapters: Iterable[Adapter]) -> None:
    claimed: dict[str, Adapter] = {}
    modules: set[str] = set()
    for adapter in adapters:
        for claim in adapter.conflicts():
            if other := claimed.get(claim):
                raise ConfigError(
                    f"{other.method} and {adapter.method} both claim {claim}; leave one of them "
                    "out, or give them different targets"
                )
        claimed |= dict.fromkeys(adapter.conflicts(), adapter)
        own = {site.site.module for site in adapter.sites.values()}
        if both := own & modules:
            raise ConfigError(
                f"two of the methods have factors on {min(both)}; put its slices into one config, "
                "with rank_pattern where their ranks differ"
            )
        modules |= own
