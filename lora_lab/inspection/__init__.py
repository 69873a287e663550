"""An adapter on disk, looked into: its spectra, and how they lie against its base model, another
adapter, a run's steps and a sweep.
"""

from lora_lab.inspection.found import Inspection
from lora_lab.inspection.inspect import inspect_adapter

__all__ = ["Inspection", "inspect_adapter"]
