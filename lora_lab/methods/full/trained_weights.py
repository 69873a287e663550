"""Which of a model's own weights a method trains: all, those of the last blocks, the biases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.errors import ConfigError
from lora_lab.methods.full.config import BitFitConfig, FullConfig

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy, Weight


def trained_weights(anatomy: Anatomy, config: FullConfig | BitFitConfig) -> tuple[Weight, ...]:
    """Return the model's weights that a method trains, in the model's order, tied ones once.

    FT-TopN trains all that is in the last n rows of the grid, BitFit the bias vectors of the
    backbone; heads are not counted (Hu et al., 2022, section 5.1).

    Raises:
        ConfigError: more layers than there are, or no biases where none are to be made.
    """
    if isinstance(config, BitFitConfig):
        return _biases(anatomy, config)
    if config.top_layers is None:
        return anatomy.weights
    layers = len(anatomy.rows)
    if config.top_layers > layers:
        raise ConfigError(
            f"top_layers is {config.top_layers} and the model has {layers}; use at most {layers}"
        )
    top = set(anatomy.rows[layers - config.top_layers :])
    return tuple(weight for weight in anatomy.weights if weight.row in top)


def missing_biases(anatomy: Anatomy) -> tuple[str, ...]:
    """Return the paths of the linear layers in blocks that have no bias; a fused one's once."""
    names = {weight.name for weight in anatomy.weights}
    paths = dict.fromkeys(site.module for site in anatomy.linear_sites)
    return tuple(path for path in paths if f"{path}.bias" not in names)


def _biases(anatomy: Anatomy, config: BitFitConfig) -> tuple[Weight, ...]:
    found = tuple(weight for weight in anatomy.weights if weight.is_bias and not weight.head)
    if not found and not (config.new_biases and missing_biases(anatomy)):
        raise ConfigError(
            "BitFit trains bias vectors and this model has none; BitFitConfig(new_biases=True) or "
            "--new-biases gives its linear layers new ones of zeros"
        )
    return found
