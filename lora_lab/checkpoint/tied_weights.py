"""Modules that share one weight: an adapted embedding, the output layer, T5's other embeddings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from lora_lab.checkpoint.adapter_file import AdapterFile
from lora_lab.errors import AdapterError
from lora_lab.spectra.update import LowRankUpdate


def tied_to(path: str, by_path: Mapping[str, nn.Module]) -> list[str]:
    """Return the paths of the other modules that have a module's very weight."""
    module = by_path[path]
    weight = getattr(module, "weight", None)
    tied = {
        id(other): name
        for name, other in by_path.items()
        if other is not module and weight is not None and getattr(other, "weight", None) is weight
    }
    return list(tied.values())


def without_tied(
    file: AdapterFile, by_path: Mapping[str, nn.Module], saved: Collection[str] = ()
) -> AdapterFile:
    """Return a file with the factors of a tied weight once, at its first embedding.

    PEFT ties the factors of an output layer where `ensure_weight_tying` is set; else it can adapt
    one end of a tied weight and not the other, which no merged weight could hold. An end that is
    trained whole (`saved`) has a weight of its own.

    Raises:
        AdapterError: the file's ends are not those of this base, or have different factors.
    """
    said_tied = bool(file.settings.get("ensure_weight_tying"))
    modules, embeddings = dict(file.modules), dict(file.embeddings)
    for path in file.embeddings:
        if path not in embeddings or path not in by_path:
            continue
        own = embeddings[path]
        others = [other for other in tied_to(path, by_path) if other not in saved]
        if said_tied and not others:
            raise AdapterError(
                "the adapter was trained on a base whose output layer is tied to its embedding, "
                "and here it is not; tie them (model.tie_weights()), or load that base"
            )
        for other in others:
            twin = embeddings.pop(other, None)
            theirs = twin or modules.pop(other, None)
            if theirs is None and not said_tied:
                raise AdapterError(
                    f"the adapter changes {path} and not {other}, which here share one weight; "
                    f"give {other} a weight of its own before loading"
                )
            if theirs is not None and not _same(own, theirs, turned=twin is None):
                raise AdapterError(
                    f"{path} and {other} share one weight here and have different factors in the "
                    f"file; give {other} a weight of its own before loading"
                )
    return replace(file, modules=modules, embeddings=embeddings)


def _same(embedding: LowRankUpdate, other: LowRankUpdate, *, turned: bool) -> bool:
    A, B = (other.B.T, other.A.T) if turned else (other.A, other.B)
    if (A.shape, B.shape, other.scale) != (embedding.A.shape, embedding.B.shape, embedding.scale):
        return False
    return np.array_equal(A, embedding.A) and np.array_equal(B, embedding.B)
