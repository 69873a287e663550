"""A run as files: what it was made of, its steps, its checkpoints, its spectra."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
