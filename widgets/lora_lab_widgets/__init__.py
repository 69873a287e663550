"""The notebook layer of LoRA Lab: the workbench and its panels.

The public names stand in `__init__.pyi`; what it takes to make one is imported when it is first
used, and a cell says so while it is.
"""

import sys
from typing import Any

import lazy_loader

from lora_lab_widgets.cell_line import CellLine

_handed_on, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in __all__ or f"{__name__}.panel" in sys.modules:
        return _handed_on(name)
    with CellLine() as line:
        line.tell("importing torch and what the workbench is made of")
        return _handed_on(name)
