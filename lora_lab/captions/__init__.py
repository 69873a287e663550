"""What the figures show, in one or two sentences: for screen readers and captions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
