"""LoRA Lab: a Jupyter-native workbench for low-rank adaptation.

The public names stand in `__init__.pyi`, each once; what it takes to make one is imported when it
is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
__all__ += ["__version__"]
