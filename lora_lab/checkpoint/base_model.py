"""The base of an adapter's file, loaded as what it was when the adapter was trained.

A classifier's adapter names a base whose files are a language model's: then the class is that of
the adapter's task, and the number of classes that of the head in the adapter's file.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_lab._util.dtypes import MODEL_DTYPES, dtype_name
from lora_lab._util.transformers_private import build_from_config
from lora_lab.checkpoint.adapter_file import AdapterFile
from lora_lab.checkpoint.native import NativeFile
from lora_lab.errors import AdapterError
from lora_lab.models.load import LoadedModel, load_as, model_class, model_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# PEFT's task types whose models have another head than the base's files, or none.
_MODELS = {
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "FEATURE_EXTRACTION": "MODEL_MAPPING",
}
_CLASSES = 7919  # no width of a model: what has it counts the classes


def load_base(base: str, file: AdapterFile | NativeFile) -> LoadedModel:
    """Load the base onto the CPU, in the dtype of its files: what is merged is as large as it was.

    Args:
        base: a catalogue name, a hub id or a folder.
        file: the adapter's.

    Raises:
        ModelError: as `load_model`.
        AdapterError: transformers has no model of the adapter's task for this base.
    """
    config = model_config(base)
    stored = dtype_name(str(getattr(config, "dtype", None)))
    dtype = stored if stored in MODEL_DTYPES else "float32"
    if not isinstance(file, AdapterFile):
        return load_as(base, model_class(config), config, dtype, ())
    kind = _class_of(file.settings, config, base)
    shapes = {key: tuple(tensor.shape) for key, tensor in file.weights.items()}
    classes = _classes(kind, config, shapes)
    if classes is not None and classes != config.num_labels:
        config.num_labels = classes  # and the names that belong to other classes go
    return load_as(base, kind, config, dtype, shapes.keys())


def _class_of(settings: Mapping[str, Any], config: PretrainedConfig, base: str) -> Any:
    """Return the transformers class of the adapter's model."""
    import transformers

    own = model_class(config)
    task, mapping = settings.get("task_type"), settings.get("auto_mapping")
    if task in _MODELS:
        try:
            return getattr(transformers, _MODELS[task])[type(config)]
        except KeyError:
            raise AdapterError(
                f"the adapter's task is {task}, and transformers has no such model for {base}, a "
                f"{config.model_type}; name the base that the adapter was trained on"
            ) from None
    named = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    found: Any = getattr(transformers, named, None) if isinstance(named, str) else None
    # A file is a stranger's: nothing but a class of models of this kind.
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model and found.config_class is type(config) else own


def _classes(
    kind: Any, config: PretrainedConfig, shapes: Mapping[str, tuple[int, ...]]
) -> int | None:
    """Return how many classes the head in an adapter's file tells apart; None: it has no head."""
    probe = copy.deepcopy(config)
    probe.num_labels = _CLASSES
    model = build_from_config(kind, probe)
    for key, tensor in model.state_dict().items():
        shape = shapes.get(key, ())
        if _CLASSES in tensor.shape and len(shape) == tensor.ndim:
            return shape[tensor.shape.index(_CLASSES)]
    return None
