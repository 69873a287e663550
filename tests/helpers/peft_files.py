"""PEFT's reading of an adapter's folder, and what its two files hold."""

import copy
import json
import warnings

import torch
from safetensors.torch import load_file

import lora_lab as ll

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def random_config(**changes):
    fields = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False}
    return ll.LoraConfig(**{**fields, **changes})


def assert_changed(y, bare):
    assert not torch.allclose(y, bare, atol=1e-4), "the adapter must matter"


def peft_model(base, folder, missing=()):
    """Return PEFT's model of a folder; `missing` are layers that PEFT ties or leaves at 0."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # unknown fields, missing keys
        # A file has one fan_in_fan_out; a model may have layers of both kinds (ImageGPT's head).
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to True but the target module")
        # Of a base without biases, which ours says when it is to be merged.
        warnings.filterwarnings("ignore", "`lora_bias=True` was passed but the targeted layer")
        # Equal factors at both ends of a tied weight: ours adds them to it once.
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer")
        for layer in missing:
            warnings.filterwarnings("ignore", rf"Found missing adapter keys.*\.{layer}\.lora_A")
        return PeftModel.from_pretrained(base, folder)


def tensors_of(folder):
    return load_file(folder / "adapter_model.safetensors")


def settings_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def peft_trained(model, folder, **fields):
    """Save an adapter with PEFT whose every number is random; return PEFT's model."""
    import peft

    kind = fields.pop("kind", peft.LoraConfig)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(model), kind(**fields)).eval()
        torch.manual_seed(0)
        for key, parameter in theirs.named_parameters():
            if parameter.requires_grad and "ranknum" not in key:
                parameter.data += 0.1 * torch.randn_like(parameter)
        theirs.save_pretrained(folder)
    return theirs
