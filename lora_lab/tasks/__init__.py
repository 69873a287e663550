"""Data sets with their metrics: `load_task` finds one by name, file or hub id."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
