"""PEFT's reading of an adapter's folder, and what its two files hold."""

import json
import warnings

from safetensors.torch import load_file


def peft_model(base, folder):
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # unknown fields, missing keys
        # A file has one fan_in_fan_out; a model may have layers of both kinds (ImageGPT's head).
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to True but the target module")
        return PeftModel.from_pretrained(base, folder)


def tensors_of(folder):
    return load_file(folder / "adapter_model.safetensors")


def settings_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())
