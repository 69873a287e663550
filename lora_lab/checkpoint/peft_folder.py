"""What every folder in PEFT's format has, and adapters of methods that are not LoRA in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.transformers_private import origin
from lora_lab.anatomy.wrappers import modules_within
from lora_lab.checkpoint.checksum import CHECKSUM_KEY
from lora_lab.checkpoint.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    StoredTensor,
)
from lora_lab.checkpoint.peft import PREFIX
from lora_lab.checkpoint.peft_methods import CONFIG_KEY, method_checksum
from lora_lab.methods.attached import original_weight, require_adapters
from lora_lab.methods.base import Adapter
from lora_lab.methods.layer_update import LayerAdapter
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.peft_fields import HEADS
from lora_lab.methods.own_tensors import own_tensors
from lora_lab.methods.registry import method_of
from lora_lab.redaction import redacted_values


def save_method(
    model: nn.Module,
    adapter: LayerAdapter,
    form: tuple[Mapping[str, Any], Mapping[str, Tensor]],
    folder: Path,
) -> None:
    """Write what is not LoRA in PEFT's format; see `checkpoint.peft_methods`."""
    own, learned = form
    method = method_of(adapter.config)
    assert method.peft is not None
    weights = whole_weights(adapter, dict(modules_within(model, every_name=True)))
    named = {path + method.peft.key: tensor for path, tensor in learned.items()}
    tensors = {
        PREFIX + key: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for key, tensor in (named | weights).items()
    }
    settings = {
        "peft_type": method.peft.type,
        "task_type": adapter.config.task_type or task_type(model, weights),
        "base_model_name_or_path": origin(getattr(model, "config", None)) or None,
        "revision": None,
        "inference_mode": True,
        "target_modules": list(learned),
        "modules_to_save": list(adapter.saved.copies) or None,
        **own,
    }
    config = json.dumps(adapter.config.to_dict())
    stored = {key: StoredTensor.of(tensor) for key, tensor in tensors.items()}
    sha256 = method_checksum(stored, settings, method, config)
    metadata = {"format": "pt", CONFIG_KEY: config, CHECKSUM_KEY: sha256}
    write_folder(folder, tensors, settings, metadata)


def write_folder(
    folder: Path,
    tensors: dict[str, Tensor],
    settings: Mapping[str, Any],
    metadata: dict[str, str],
) -> None:
    """Write the two files into a folder that has none."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata=metadata)
    text = json.dumps(redacted_values(settings), indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def whole_weights(
    adapter: LoraAdapter | LayerAdapter, by_path: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """Return {name in the model's state dict: tensor} of what PEFT takes for trained whole.

    PEFT takes a module by the last letters of its path, so "pre_classifier" goes with "classifier":
    what it takes too much is written as it is in the base.
    """
    # PEFT gives running statistics to the base's own layers.
    weights = running_statistics(adapter.model, adapter)
    learned = dict(adapter.saved.state())
    if isinstance(adapter, LoraAdapter):
        learned |= adapter.tokens.state()
    weights |= {key: tensor.detach().to("cpu", copy=True) for key, tensor in learned.items()}
    names = tuple(adapter.saved.copies)
    for path, module in by_path.items():
        if path.endswith(names) and not adapter.saved.covers(path) and names:
            for key, tensor in own_tensors(module):
                base = original_weight(adapter.model, cast(nn.Parameter, tensor))
                weights.setdefault(f"{path}.{key}", base.detach().to("cpu", copy=True))
    return weights


def running_statistics(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """Return the running statistics that an adapter has of its own, by their names in the model."""
    return require_adapters(model).statistics.learned(adapter.name)


_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def task_type(model: nn.Module, weights: Iterable[str] = ()) -> str | None:
    """Return PEFT's name of the model's task.

    None where PEFT would miss weights in the file, or would hand the model tokens where it takes
    an image or sound (Whisper, BLIP).
    """
    name = type(model).__name__
    task = next((task for ending, task in _TASKS.items() if name.endswith(ending)), None)
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        config = getattr(model, "config", None)
        if task == "SEQ_2_SEQ_LM" and not getattr(config, "is_encoder_decoder", True):
            task = "CAUSAL_LM"  # LLaVA and its like have no encoder of texts
        return task if getattr(model, "main_input_name", "input_ids") == "input_ids" else None
    if (heads := HEADS.get(task or "")) is None:
        return task
    written = {key.rpartition(".")[0] for key in weights}
    taken = [path for path, _ in modules_within(model) if path.endswith(heads)]
    whole = all(any(f"{w}.".startswith(f"{path}.") for w in written) for path in taken)
    return task if whole and written else None
