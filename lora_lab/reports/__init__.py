"""An adapter or a run looked at as a whole: as data, and as one self-contained HTML page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
