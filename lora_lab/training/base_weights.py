"""The frozen weights under a run: whether somebody has replaced or overwritten them meanwhile.

Looked at where a run evaluates, writes or ends, not at each step. To be seen are another module, or
another parameter in a module's place for it, another tensor behind a parameter (`weight.data = …`),
and what torch counts as written in place (`Tensor._version`). What is written past that count
(`weight.data.mul_`, NumPy, another library's kernels) is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from lora_lab._util.accelerate_private import is_offloaded
from lora_lab._util.torch_private import children_of, parameters_of, version_of
from lora_lab.anatomy.children import ADDED
from lora_lab.anatomy.wrappers import modules_within
from lora_lab.methods.attached import base_parameters
from lora_lab.methods.base import Adapter


class _Place(NamedTuple):
    name: str  # in the model's state dict
    table: Mapping[str, nn.Parameter | None]  # its module's parameters
    leaf: str
    parameter: nn.Parameter
    address: int
    version: int


class _Part(NamedTuple):
    name: str
    table: Mapping[str, nn.Module | None]  # the modules of that which it is a part of
    leaf: str
    module: nn.Module


class BaseWeights:
    """Those of a model's own parameters that do not learn, as they were when they were last noted.

    What other libraries pack, which they may replace by themselves, and what accelerate brings for
    each pass is left out.

    Args:
        model: with the adapter in place.
        adapter: that learns; what it tunes of the base is its own, while it is off too.
    """

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        self._model, self._adapter = model, adapter
        self._places: list[_Place] = []
        self._parts: list[_Part] = []
        self.note()

    def note(self) -> None:
        """Take what is there for the base's: whoever had the model in a pause may have moved it."""
        self._parts = [
            _Part(f"{path}.{leaf}".lstrip("."), children_of(module), leaf, part)
            for path, module in modules_within(self._model, left_out=lambda _: ADDED)
            for leaf, part in children_of(module).items()
            if part is not None and leaf not in ADDED
        ]
        base = {*map(id, base_parameters(self._model))} - {*map(id, self._adapter.parameters())}
        self._places = [
            _Place(
                f"{path}.{leaf}".lstrip("."),
                *(parameters_of(module), leaf, own),
                *(own.data_ptr(), version_of(own)),
            )
            for path, module in self._model.named_modules(remove_duplicate=False)
            if not is_offloaded(module)
            for leaf, own in parameters_of(module).items()
            if id(own) in base and type(own) is nn.Parameter and not own.is_inference()
        ]

    def changed(self) -> str:
        """Return the name of a module or weight that is another now; "" if none is."""
        for part, modules, leaf, module in self._parts:
            if modules.get(leaf) is not module:
                return part
        for name, table, leaf, own, address, version in self._places:
            replaced = table.get(leaf) is not own or own.data_ptr() != address
            if replaced or version_of(own) != version:
                return name
        return ""
