"""Training in the background: a run on a thread, steered and watched from the notebook."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
