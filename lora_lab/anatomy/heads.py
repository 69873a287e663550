"""Which modules of a classifier are its head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from lora_lab.anatomy.reader import ADAPTER_CHILD, LEARNED_CHILD, SAVED_CHILD
from lora_lab.errors import ConfigError
from lora_lab.methods.head.config import HeadConfig

_HUNG = (ADAPTER_CHILD, LEARNED_CHILD, SAVED_CHILD)


def is_classifier(model: nn.Module) -> bool:
    """Return whether a model puts texts into classes: a …ForSequenceClassification."""
    return any(kind.__name__.endswith("ForSequenceClassification") for kind in type(model).mro())


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the modules of a classifier outside of the model that reads the text; () of others.

    They are BERT's "classifier", a decoder's "score", DeBERTa's "pooler" and "classifier".
    """
    if not is_classifier(model):
        return ()
    backbone = getattr(model, "base_model_prefix", "")
    return tuple(
        name
        for name, child in model.named_children()
        if name != backbone and name not in _HUNG and any(True for _ in child.parameters())
    )


def head_names(config: HeadConfig, found: Sequence[str]) -> Sequence[str]:
    """Return what a config names, or else a classifier's head.

    Args:
        config: whose `modules` may be None.
        found: what `head_modules` returned of the model.

    Raises:
        ConfigError: it names nothing, and the model has no head.
    """
    names = found if config.modules is None else config.modules
    if not names:
        raise ConfigError(
            "this model has no classification head; name its modules, such as "
            "HeadConfig(modules=['classifier'])"
        )
    return names


def unknown_module(name: str, top: Iterable[str], why: str = "names no module") -> ConfigError:
    """Return the error of an entry of `modules_to_save` that matches nothing.

    Args:
        name: the entry.
        top: the model's children.
        why: what is wrong with it.
    """
    return ConfigError(
        f"modules_to_save entry {name!r} {why}; at the top this model has {', '.join(top)}"
    )
