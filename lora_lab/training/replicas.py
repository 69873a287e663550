"""A model in several processes: torch's DDP adds up the gradients of what is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lora_lab._util.accelerate_private import hooks_of
from lora_lab._util.devices import devices_of
from lora_lab._util.torch_private import ignore_in_ddp
from lora_lab.errors import ConfigError
from lora_lab.methods.base import Adapter
from lora_lab.methods.registry import method_of
from lora_lab.training import processes


def check_together(model: nn.Module) -> None:
    """Refuse a model that somebody has laid out for one process, where several train together.

    Raises:
        ConfigError: it lies on several devices, or accelerate's hooks bind it to another than this
            process's (`device_map`).
    """
    if processes.count() == 1:
        return
    devices = devices_of(model)
    elsewhere = processes.sharded() or processes.training_device(devices[0]) != devices[0]
    if len(devices) > 1 or (elsewhere and any(map(hooks_of, model.modules()))):
        raise ConfigError(
            f"the model is laid out on {' and '.join(map(str, devices))} (device_map), and "
            f"{processes.count()} processes train together, each on a device of its own: load it "
            "without device_map (FSDP cuts what one GPU cannot hold), or launch one process"
        )


class Replicas:
    """Calls the model of this process, together with those of the others where there are some.

    Args:
        model: with `adapter`, on this process's device, its weights the same in every process or
            in shards.
    """

    def __init__(self, model: Any, adapter: Adapter) -> None:
        self._adapter = adapter
        self.model: Any = model
        self._ddp: Any = None
        if processes.count() == 1:
            return
        # Every process has loaded the frozen weights, or its shard: they are not sent around.
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        ignore_in_ddp(model, [*frozen, *(name for name, _ in model.named_buffers())])
        # DDP looks at what it is not to ignore alone (torch/nn/parallel/distributed.py, __init__:
        # `_module_parameters`): a base in shards, or packed, is none of its business. Without
        # `device_ids` it leaves inputs where they are, which is on this process's device.
        self.model = self._ddp = DistributedDataParallel(
            model, find_unused_parameters=self._may_leave_out()
        )

    def close(self) -> None:
        """Leave nothing on the model."""
        if self._ddp is not None:
            ignore_in_ddp(self._ddp.module, None)

    @contextlib.contextmanager
    def one_pass(self, last: bool) -> Iterator[None]:
        """Add up the gradients of all processes after the last pass of a step alone."""
        with contextlib.nullcontext() if last or self._ddp is None else self._ddp.no_sync():
            yield

    def follow_parameters(self) -> None:
        """Hear of the gradients of parameters that took others' places (AdaLoRA's)."""
        if (wrapped := self._ddp) is not None:
            # In place: what is left of the old one would go on hearing of gradients.
            DistributedDataParallel.__init__(
                wrapped,
                wrapped.module,
                find_unused_parameters=self._may_leave_out(),
                init_sync=False,
            )

    def _may_leave_out(self) -> bool:
        """Whether a pass may leave parameters unused, as Adapter^D does; DDP wants to know.

        Of all weights of a model, too, some may be for nothing: a pooler below another head.
        """
        parts = self._adapter.config.parts
        return self._adapter.modifies_base or any(method_of(p).sparse_gradients for p in parts)
