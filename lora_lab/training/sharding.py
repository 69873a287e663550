"""FSDP as an adapter wants it: the frozen base in shards, what is trained whole in every process.

A process keeps 1/n of the base, gathers each block's weights when it comes to it and lets go of
them behind it. The adapter is small: its gradients travel by DDP as without shards, and spectra,
cuts, optimizer and files know nothing of the shards. (FSDP of the whole would shard it too.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lora_lab._util.transformers_private import whole_blocks
from lora_lab.anatomy.packed import move_held_beside
from lora_lab.methods.base import Adapter
from lora_lab.training import processes


def settle(model: Any, adapter: Adapter, here: torch.device, home: torch.device) -> list[str]:
    """Bring a model from `here` to where this process trains; return what there is to say of it."""
    if processes.sharded():
        shard(model, adapter, home)
        return [f"the base is sharded over {processes.count()} processes (FSDP)"]
    if home != here:
        model.to(home)
        move_held_beside(model, home)
    return []


def shard(model: Any, adapter: Adapter, device: torch.device) -> None:
    """Shard a model's frozen weights over all processes, block by block; for good.

    What does not fit on one GPU is loaded with device "cpu"; each process needs room for it there.
    With full fine-tuning nothing is frozen, and nothing is sharded.

    Args:
        model: on the CPU or on its device; it comes to the device block by block.
        adapter: attached to it; its parameters stay whole, and come to the device too: LoRA-FA's A
            is frozen, and no part of the base.
        device: this process's, and this thread's current one: what is gathered is gathered there.
    """
    held = {id(tensor) for tensor in adapter.state().values()}
    own = {*adapter.parameters(), *(p for p in model.parameters() if id(p) in held)}
    for parameter in own:
        parameter.data = parameter.data.to(device)
    mesh = init_device_mesh(device.type, (processes.count(),))
    blocks = whole_blocks(model)
    # Those below others first, and the rest, embeddings and head, at last.
    whole = [module for module in model.modules() if type(module).__name__ in blocks]
    for module in [*reversed(whole), model]:
        fully_shard(module, mesh=mesh, ignored_params=own)
