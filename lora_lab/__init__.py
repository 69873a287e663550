"""LoRA Lab: a Jupyter-native workbench for low-rank adaptation.

The public names stand in `__init__.pyi`, each once; what it takes to make one is imported when it
is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
# Importing the package `runs` must not take the function's name: lazy_loader sees to that by itself
# where the two are made in one place, and `ll.runs()` comes by way of what resumes runs.
globals()["__lazy_shadowed__"].add("runs")

__version__ = "0.1.0"
__all__ += ["__version__"]
