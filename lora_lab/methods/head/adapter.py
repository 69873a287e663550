"""A classifier's head trained whole, beside methods that do not train it themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lora_lab.anatomy.heads import head_modules
from lora_lab.anatomy.wrappers import module_at
from lora_lab.methods.base import Active, Adapter
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.cost import head_words
from lora_lab.methods.head.beside import with_heads
from lora_lab.methods.head.config import HeadConfig, head_names
from lora_lab.methods.modules_to_save import ModulesToSave
from lora_lab.methods.own_tensors import own_tensors


class HeadAdapter(Adapter):
    """Copies of a model's head, or of any modules, that are trained whole.

    Attributes:
        saved: the copies; see `ModulesToSave`.
    """

    method = "Head"
    per_sample = True

    def __init__(self, model: nn.Module, config: HeadConfig, name: str) -> None:
        self.name = name
        self.config = config
        self.saved = ModulesToSave(model, head_names(config, head_modules(model)))

    def insert(self, active: Active) -> None:
        """Let the copies answer; see `Adapter.insert`."""
        self.saved.insert(self.name, active)

    def remove(self) -> None:
        """Take the copies away; see `Adapter.remove`."""
        self.saved.remove(self.name)

    def conflicts(self) -> Iterator[str]:
        """Yield the tensors' names, and the paths of the modules: LoRA's sites are called so."""
        yield from self.state()
        for path, own in self.saved.copies.items():
            yield from (below for below, _ in own.named_modules(prefix=path))

    def merged_weights(
        self, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (tensor of the head, what it has become)."""
        yield from self.saved.merged_weights(dtype)

    def check_merge(self) -> None:
        """Raise where one tensor would have to hold two values; see `ModulesToSave`."""
        self.saved.check_merge()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all of the copies' parameters."""
        yield from self.saved.parameters()

    def parameters_by_location(self) -> dict[str, Sequence[nn.Parameter]]:
        """Return {module: its parameters}."""
        return {path: list(own.parameters()) for path, own in self.saved.copies.items()}

    def state(self) -> dict[str, Tensor]:
        """Return the copies' tensors by their names in the model's state dict."""
        return dict(self.saved.state())


def head_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a classifier's head."""
    heads = (module_at(model, name) for name in head_modules(model))
    return sum(
        tensor.numel()
        for head in heads
        for _, tensor in own_tensors(head)
        if isinstance(tensor, nn.Parameter)
    )


def learned_head(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield what is trained of a classifier's head, in whatever adapter."""
    for name in head_modules(model):
        yield from (p for p in module_at(model, name).parameters() if p.requires_grad)


def head_note(model: nn.Module) -> str:
    """Say how many parameters of a classifier's head are trained beside the method's own."""
    return head_words(head_parameters(model), head_modules(model))


def with_head(model: nn.Module, configs: Sequence[MethodConfig]) -> tuple[MethodConfig, ...]:
    """Return configs that train a model's head too; see `with_heads`."""
    return with_heads(head_modules(model), configs)
