"""Adapters on disk: PEFT's format and loralib's written and read, merged models and cards written.

Nothing that is read can run code: safetensors, and pickles only with `weights_only=True` and asked
for by name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
