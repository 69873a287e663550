"""Data in, plotly `go.Figure` out; the only folder that imports plotly.

Every figure has an explicit size, a transparent ground and float32 values; a curve has at most 500
points, a map one cell a site or a pair of directions. What a figure shows is said in a sentence or
two by the function of the same name in `lora_lab.captions`, for screen readers and captions. Show
figures with `CONFIG`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
