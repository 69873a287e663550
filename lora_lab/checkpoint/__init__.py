"""Adapters on disk: PEFT's format written and read, loralib's read; with a base model or without.

Nothing that is read can run code: safetensors, and pickles only with `weights_only=True` and asked
for by name.
"""

from lora_lab.checkpoint.factors import AdapterFactors, FactorSite, read_factors
from lora_lab.checkpoint.files import CONFIG_FILE, WEIGHTS_FILE
from lora_lab.checkpoint.loading import load_adapter
from lora_lab.checkpoint.places import AdapterPlace, find_adapter
from lora_lab.checkpoint.saving import save_adapter

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterFactors",
    "AdapterPlace",
    "FactorSite",
    "find_adapter",
    "load_adapter",
    "read_factors",
    "save_adapter",
]
