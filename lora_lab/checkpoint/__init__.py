"""Adapters on disk: PEFT's format and loralib's written and read, merged models and cards written.

Nothing that is read can run code: safetensors, and pickles only with `weights_only=True` and asked
for by name.
"""

from lora_lab.checkpoint.card import model_card, push_ready
from lora_lab.checkpoint.factors import AdapterFactors, FactorSite, read_factors
from lora_lab.checkpoint.files import CONFIG_FILE, WEIGHTS_FILE
from lora_lab.checkpoint.loading import load_adapter
from lora_lab.checkpoint.loralib_models import load_loralib, save_loralib
from lora_lab.checkpoint.merged import export_merged
from lora_lab.checkpoint.places import AdapterPlace, find_adapter
from lora_lab.checkpoint.saving import save_adapter
from lora_lab.checkpoint.uniform import export_uniform

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterFactors",
    "AdapterPlace",
    "FactorSite",
    "export_merged",
    "export_uniform",
    "find_adapter",
    "load_adapter",
    "load_loralib",
    "model_card",
    "push_ready",
    "read_factors",
    "save_adapter",
    "save_loralib",
]
