"""Models by name: from the catalogue, a local folder, the hub, or the user's own hands."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
