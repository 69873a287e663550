"""What a dry run works on: model, inputs and optimizer, none with memory behind its tensors."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from lora_lab._util.dtypes import main_dtype, model_dtype
from lora_lab._util.quiet import first_line
from lora_lab._util.torch_private import buffers_of, parameters_of
from lora_lab._util.transformers_private import (
    attention_kind,
    build_from_config,
    builds_from_config,
    experts_by_shape,
    has_grouped_experts,
    set_attention_kind,
    set_experts_kind,
)
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.model_config import build_on_meta
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.budget.mixed_dtypes import Mixture, mixture
from lora_lab.budget.optimizers import StateRule, state_rule
from lora_lab.errors import ConfigError, LoraLabError, ModelError, as_cause
from lora_lab.methods.api import attach
from lora_lab.methods.base import Adapter
from lora_lab.methods.config import MethodConfig
from lora_lab.models.load import model_config
from lora_lab.tasks.label_logits import label_logits

_IMAGE_SIZE = 224  # pixels a side: ImageNet's crops
MANY_STEPS = 1_000_000  # of the training that the dry run's step is the first of


def hollow_model(model: Any, dtype: torch.dtype | str | None) -> tuple[nn.Module, Mixture]:
    """Return a model on the meta device, not adapted, and the types that its weights shall have.

    Args:
        model: see `dry_run`.
        dtype: of the base model; None takes the model's own.
    """
    kind: Any = None
    model = unwrapped(model)
    if isinstance(model, (str, Path)):
        config: Any = model_config(str(model))
        own = config.dtype
    elif isinstance(model, nn.Module):
        config, kind = getattr(model, "config", None), type(model)
        own = main_dtype(model.parameters())
    else:
        config, own = model, getattr(model, "dtype", None)
    if not hasattr(config, "model_type") or (kind and not builds_from_config(kind)):
        raise ModelError(
            f"a dry run needs a transformers model, config or name, not {type(model).__name__}; "
            "budget() estimates any model"
        )
    config = copy.deepcopy(config)
    config.use_cache = False
    hollow = build_on_meta(config) if kind is None else build_from_config(kind, config)
    name = model_dtype(dtype if dtype is not None else own or torch.float32)
    return hollow, mixture(anatomy(hollow if kind is None else model), name)


def fill(model: nn.Module, kinds: Mixture) -> None:
    """Put fake tensors on the CPU in the place of a model's meta tensors; within a fake mode.

    Parameters get their dtypes; buffers keep theirs, as transformers' loading does.
    """
    made: dict[int, Tensor] = {}  # tied weights stay tied

    def fake(tensor: Tensor, kind: Any) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tensor.shape, dtype=kind, device="cpu")
            if isinstance(tensor, nn.Parameter):
                grad = tensor.requires_grad
                made[id(tensor)] = nn.Parameter(made[id(tensor)], requires_grad=grad)
        return made[id(tensor)]

    for path, module in model.named_modules():
        # Some modules keep tensors as plain attributes too.
        places: tuple[dict[str, Any], ...] = (
            parameters_of(module),
            buffers_of(module),
            vars(module),
        )
        for held in places:
            for name, value in held.items():
                if isinstance(value, nn.Parameter) and value.is_floating_point():
                    own = kinds.others.get(f"{path}.{name}", kinds.dtype)
                    held[name] = fake(value, getattr(torch, own))
                elif isinstance(value, Tensor):
                    held[name] = fake(value, value.dtype)


def set_up(
    model: Any,
    config: MethodConfig | None,
    gradient_checkpointing: bool,
    kernels: AbstractContextManager[Any],
) -> Adapter | None:
    """Make a model ready to train: adapted, or all of its own weights; blocks recomputed or not.

    Args:
        model: filled.
        config: what `attach` takes; None: every weight is trained, by no adapter.
        gradient_checkpointing: recompute blocks, as runs do it.
        kernels: within which they are recomputed.

    Raises:
        ConfigError: `attach` does not take the config.
    """
    model.train()
    adapter = None if config is None else attach(model, config.at_peak(MANY_STEPS))
    if not gradient_checkpointing:
        return adapter
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"{type(model).__name__} has no gradient checkpointing; "
            "set gradient_checkpointing=False"
        )
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    # Keeping the random state would put back the whole process's in the backward pass.
    contexts = contextlib.nullcontext(), kernels
    enable({"use_reentrant": False, "preserve_rng_state": False, "context_fn": lambda: contexts})
    model.enable_input_require_grads()
    return adapter


def inputs(
    model: Any, batch_size: int, length: int, padding_mask: bool, target_length: int | None = None
) -> dict[str, Tensor]:
    """Return what a training step of a model is given, labels included; within a fake mode.

    Raises:
        ModelError: for a model that reads neither tokens nor images.
    """
    written = target_length or length
    _need_no_grouped_product(model)
    config = model.config
    accepted = inspect.signature(model.forward).parameters
    if model.main_input_name == "pixel_values":
        batch = {"pixel_values": torch.zeros(batch_size, *image_shape(config))}
        if not type(model).__name__.endswith("ImageClassification"):
            return batch  # labels of what is segmented or found have shapes of their own
    elif model.main_input_name != "input_ids":
        raise ModelError(
            f"{type(model).__name__} reads {model.main_input_name}, and a dry run makes tokens and "
            "images only; budget() gives its memory in closed form"
        )
    else:
        tokens = torch.zeros(batch_size, length, dtype=torch.int64)
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if not padding_mask:
            _ignore_masks(model)
        if config.is_encoder_decoder:
            batch["decoder_input_ids"] = torch.zeros(batch_size, written, dtype=torch.int64)
    if "labels" in accepted:
        batch["labels"] = _labels(model, batch_size, written)
    return batch


def image_shape(config: Any) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images that a model reads.

    A model that takes images of any size has none in its config: then they are as its papers'.
    """
    inner = ("vision_config", "encoder", "backbone_config")
    configs = [config, *(own for name in inner if (own := getattr(config, name, None)))]

    def first(name: str, default: int) -> Any:
        values = (getattr(own, name, None) for own in configs)
        return next((value for value in values if value is not None), default)

    size = first("image_size", _IMAGE_SIZE)
    height, width = (size, size) if isinstance(size, int) else size
    return first("num_channels", 3), height, width


def read_text(batch: Mapping[str, Tensor]) -> str:
    """Return "images of 224 × 224" where a batch is of images, else ""."""
    images = batch.get("pixel_values")
    return "" if images is None else "images of {} × {}".format(*images.shape[2:])


def loss_of(model: nn.Module, batch: dict[str, Tensor], label_length: int | None = None) -> Tensor:
    """Return the model's own loss; of a model that has none, the sum of its output.

    Where it is of tokens, logits are made of labels alone, as in a run.

    Args:
        model, batch: of fake tensors.
        label_length: tokens of a sequence that have a label; None: all.
    """
    labels = batch.get("labels")
    alone: AbstractContextManager[Any] = contextlib.nullcontext()
    if labels is not None and labels.ndim == 2:
        count, length = labels.shape
        alone = label_logits(model, count * min(label_length or length, length))
    with alone:
        output: Any = model(**batch)
    loss = getattr(output, "loss", None)
    loss = output[0].float().sum() if loss is None else loss
    if not loss.requires_grad:
        read = " and ".join(name for name in batch if name in ("input_ids", "pixel_values"))
        raise ModelError(
            f"nothing that learns acts on the loss of {type(model).__name__} when it reads {read} "
            "alone, as in a dry run; budget() gives its memory in closed form"
        )
    return cast(Tensor, loss)


def make_optimizer(name: str, parameters: list[nn.Parameter], cuda: bool) -> torch.optim.Optimizer:
    """Return an optimizer as training makes it; "adamw_8bit" is there by the sizes of its state.

    Raises:
        ConfigError: for a name that is none of `OPTIMIZERS`.
    """
    rule = state_rule(name)
    if name == "adamw":
        return torch.optim.AdamW(parameters, fused=True)  # as runs do it
    if name == "sgd":
        # On CUDA torch works on all parameters at once, with temporaries as large as all of them.
        return torch.optim.SGD(parameters, foreach=True if cuda else None)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        # As HF Trainer sets it up.
        return Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False)
    return _StateOnly(parameters, rule)


class _StateOnly(torch.optim.Optimizer):
    """Keeps state of the true size; for optimizers whose kernel works in place and is CUDA's."""

    def __init__(self, parameters: list[nn.Parameter], rule: StateRule) -> None:
        super().__init__(parameters, {})
        self._rule = rule

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Make the state of the parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    size = self._rule.size(parameter.shape)
                    self.state[parameter]["moments"] = torch.empty(size, dtype=torch.uint8)


@contextlib.contextmanager
def explained(model: nn.Module) -> Iterator[None]:
    """Turn what goes wrong on fake tensors into one line."""
    try:
        yield
    except LoraLabError:
        raise
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be run on fake tensors ({first_line(error)}); "
            "budget() gives its memory in closed form"
        ) from as_cause(error)


_UNMASKED = "lora_lab_unmasked_sdpa"


class _Unmasked(str):
    """The name of an attention of its own for transformers' tables, "sdpa" to a model that asks."""

    def __new__(cls) -> Self:
        return super().__new__(cls, _UNMASKED)

    def __eq__(self, other: object) -> bool:
        return other == "sdpa" or super().__eq__(other)

    __hash__ = str.__hash__


_BY_SHAPE = "lora_lab_experts_by_shape"


def _need_no_grouped_product(model: nn.Module) -> None:
    """Let routed experts go without torch's grouped product, which fake tensors have in bf16."""
    configs: list[Any] = [module.__dict__.get("config") for module in model.modules()]
    grouped = [config for config in configs if has_grouped_experts(config)]
    if not grouped or next(model.parameters()).dtype == torch.bfloat16:
        return
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(_BY_SHAPE, experts_by_shape)
    for config in grouped:
        set_experts_kind(config, _BY_SHAPE)


def _ignore_masks(model: nn.Module) -> None:
    """Let SDPA go without a mask, as it does where a batch's mask is all ones.

    transformers looks at the mask's values for that, and takes fake ones to be unknown. So the
    model gets SDPA under another name, with a maker of masks that does not look.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def unmasked(*arguments: Any, **options: Any) -> Tensor | None:
        return sdpa_mask(*arguments, **{**options, "attention_mask": None})

    # T5's two stacks have a config each.
    configs: list[Any] = [module.__dict__.get("config") for module in model.modules()]
    unseeing = [c for c in configs if attention_kind(c) == "sdpa"]
    if not unseeing:
        return
    # A plain string in the tables, which outlive this: torch.compile traces through them.
    ALL_ATTENTION_FUNCTIONS.register(_UNMASKED, ALL_ATTENTION_FUNCTIONS["sdpa"])
    ALL_MASK_ATTENTION_FUNCTIONS.register(_UNMASKED, unmasked)
    for config in unseeing:
        set_attention_kind(config, _Unmasked())


def _labels(model: Any, batch_size: int, length: int) -> Tensor:
    if not type(model).__name__.endswith(("SequenceClassification", "ImageClassification")):
        return torch.zeros(batch_size, length, dtype=torch.int64)
    regression = model.config.num_labels == 1
    return torch.zeros(batch_size, dtype=torch.float32 if regression else torch.int64)
