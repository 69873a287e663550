"""Spectra over a live model: ΔW of every site, its ranks, and how it lies against W₀.

ΔW is never built and nothing here changes the model, so all of it may run beside a training
thread. Reading a site while the optimizer writes it gives a mixture of two neighboring steps; for
exact numbers read while the run is paused, or from a `Snapshot`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
