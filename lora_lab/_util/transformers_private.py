"""What transformers does not say in public: each private name that is used, in one function.

Seen on transformers 5.0 to 5.23. `tests/core/_util/test_private_names.py` fails first after an
upgrade. transformers itself is not imported here.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab._util.bounded_templates import bound, bounds, compile_bounded, pay
from lora_lab._util.hardware import hardware
from lora_lab._util.torch_modes import DefaultDtype


def builds_from_config(kind: type) -> bool:
    """Whether a model class can be built from a config alone."""
    return hasattr(kind, "_from_config")


def build_from_config(kind: Any, config: Any) -> nn.Module:
    """Build a model class's model from a config on torch's meta device; the config stays as it is.

    With a dtype in it, transformers would make that torch's default meanwhile, for the whole
    process: here it is this thread's alone.

    Raises:
        ValueError: the config's dtype is no floating-point one.
    """

    def set_dtype(part: Any, dtype: torch.dtype | None) -> None:
        part.dtype = dtype
        for name in part.sub_configs:
            if (inner := getattr(part, name, None)) is not None:
                set_dtype(inner, dtype)

    config = copy.deepcopy(config)  # building writes into it
    dtype = getattr(torch, config.dtype) if isinstance(config.dtype, str) else config.dtype
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"its dtype is {dtype}, which weights cannot be made in")
    set_dtype(config, None)
    with torch.device("meta"), contextlib.nullcontext() if dtype is None else DefaultDtype(dtype):
        model: Any = kind._from_config(config)
        model.tie_weights()  # transformers 5.0 ties none on the meta device
    if dtype is not None:
        set_dtype(model.config, dtype)
    built: nn.Module = model
    return built


def attention_kind(config: Any) -> str | None:
    """Return how a config's model computes attention: "sdpa", "eager" …; None of other configs."""
    kind: str | None = getattr(config, "_attn_implementation", None)
    return kind


def set_attention_kind(config: Any, kind: str) -> None:
    """Let a config's model compute attention otherwise from now on; nothing is checked."""
    config._attn_implementation = kind


def has_grouped_experts(config: Any) -> bool:
    """Whether a config's model computes its routed experts by torch's grouped product."""
    return getattr(config, "_experts_implementation", None) == "grouped_mm"


def set_experts_kind(config: Any, kind: str) -> None:
    """Let a config's model compute its experts otherwise from now on; nothing is checked."""
    config._experts_implementation = kind


def experts_by_shape(
    experts: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Return what transformers' grouped experts return, of the same sizes at every step.

    All rows go through the first expert: for fake tensors, whose grouped product is bfloat16's
    alone.
    """

    def product(x: Tensor, name: str, ids: Tensor) -> Tensor:
        weight = getattr(experts, name)[0]
        y = x @ (weight if experts.is_transposed else weight.mT)
        return y + getattr(experts, f"{name}_bias")[ids] if experts.has_bias else y

    count = top_k_index.shape[-1]
    ids, order = torch.sort(top_k_index.reshape(-1))
    x = hidden[order // count]
    if getattr(experts, "has_gate", True):  # in transformers 5.0 all have one
        x = experts._apply_gate(product(x, "gate_up_proj", ids))
    else:
        x = experts.act_fn(product(x, "up_proj", ids))
    x = product(x, "down_proj", ids)
    x = x * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    return x[order].view(len(hidden), count, -1).sum(1).to(hidden.dtype)


def origin(config: Any) -> str:
    """Return the name or path that a config was loaded from, "" where it was made here."""
    return getattr(config, "_name_or_path", None) or ""


def unsaved_keys(model: Any) -> set[str]:
    """Return patterns of a model's keys that `save_pretrained` leaves out of its file."""
    return set(model._keys_to_ignore_on_save or ())


def tied_keys(module: nn.Module) -> Any:
    """Return {tied weight's name: its source's} of a model's class; a list in transformers 4."""
    return getattr(module, "_tied_weights_keys", None) or {}


def kept_in_float32(model: nn.Module) -> dict[str, list[str]]:
    """Return {half type: patterns of the weights that stay float32 where a model is loaded in it}.

    As in transformers a pattern may match anywhere in a weight's name.
    """
    plain, strict = (
        sorted(getattr(model, name, None) or ())
        for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    )
    patterns = {"float16": [*plain, *strict], "bfloat16": strict}
    return {kind: [p.replace("*", ".*") for p in own] for kind, own in patterns.items()}


def whole_blocks(model: nn.Module) -> set[str]:
    """Return the class names of the blocks that a model wants whole on one device; maybe none."""
    return set(getattr(model, "_no_split_modules", None) or ())


def input_needs_grad(model: nn.Module) -> bool:
    """Whether a model's embedded input is made to need gradients, by hooks of its own."""
    hooks = getattr(model, "_require_grads_hooks", None)
    return bool(hooks) or getattr(model, "_require_grads_hook", None) is not None


def draw_again(model: Any, module: nn.Module) -> None:
    """Let the parameters of one module start random, the way that its model's do."""
    for parameter in module.parameters(recurse=False):
        parameter._is_hf_initialized = False  # type: ignore[attr-defined]
    with torch.no_grad():
        model._init_weights(module)


def checkpoint_functions(model: nn.Module) -> list[tuple[nn.Module, Callable[..., Any]]]:
    """Return the modules of a model that gradient checkpointing is on for, and by which function.

    A module calls it as function(forward, *inputs).
    """
    modules: Any = model.modules()
    return [
        (module, module._gradient_checkpointing_func)
        for module in modules
        if getattr(module, "gradient_checkpointing", False)
        and hasattr(module, "_gradient_checkpointing_func")
    ]


def set_checkpoint_function(module: Any, function: Callable[..., Any]) -> None:
    """Have a module's blocks be computed again by another function than `checkpoint_functions`."""
    module._gradient_checkpointing_func = function


def bare_arguments(kind: Any, device: torch.device) -> Any:
    """Return a `TrainingArguments` with its defaults and a device, on which nothing is set up.

    To make one in the usual way resets accelerate's state, which belongs to the whole process.
    """
    one_process: dict[str, Any] = {"n_gpu": int(hardware(device).cuda), "world_size": 1}
    one_process |= {"process_index": 0, "local_process_index": 0, "distributed_state": None}
    own: Any = type("BareArguments", (kind,), {"_setup_devices": device, **one_process})
    arguments = own.__new__(own)
    for field in dataclasses.fields(kind):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        setattr(arguments, field.name, default)
    return arguments


@functools.lru_cache(maxsize=16)
def _bounded_template(text: str, _thread: int) -> Any:
    """Compile a chat template in an environment such as transformers makes for each, bounded."""
    from transformers.utils import chat_template_utils

    # transformers 5.0 has one function, which keeps what it made: this environment is ours alone.
    make = getattr(chat_template_utils, "_cached_compile_jinja_template", None)
    make = make or chat_template_utils._compile_jinja_template.__wrapped__
    environment = make("{# ours #}").environment
    bound(environment)
    return compile_bounded(environment, text)


def render_chat(
    template: str, messages: list[Any], variables: dict[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """Render a chat template, and return where its {% generation %} marks begin and end.

    As `apply_chat_template` does, but what takes more than conversations do is jinja's error.

    Args:
        template: the text.
        messages: plain values, as JSON has them.
        variables: what the template is given besides: "tools", "add_generation_prompt" and what
            the tokenizer's special tokens are called.
    """
    from transformers.utils import chat_template_utils

    alias = getattr(chat_template_utils, "_alias_reasoning_fields", list)  # of later versions
    texts: list[str] = []
    marked: list[tuple[int, int]] = []
    with bounds():
        compiled = _bounded_template(template, threading.get_ident())
        given = {"tools": None, "documents": None, "add_generation_prompt": False} | variables
        with compiled.environment.activate_tracker(texts, marked):
            letters = 0
            for text in compiled.generate(messages=alias(messages), **given):
                texts.append(text)
                letters += len(text)
                pay(letters // 256)  # a mark looks at all that is written
    return "".join(texts), [(start, end) for start, end in marked]


def own_tokenizer(tokenizer: Any) -> Any:
    """Return a tokenizer that no other caller sets anything in; its vocabulary is there once.

    One in Rust keeps, from call to call, how it cuts and pads (`set_truncation_and_padding`): two
    threads that call one tokenizer cut and pad each other's texts, without a word.
    """
    own = copy.copy(tokenizer)
    for name, value in vars(tokenizer).items():
        if type(value) in (dict, list):
            vars(own)[name] = copy.copy(value)
    rust = vars(tokenizer).get("_tokenizer")
    if type(rust).__module__.partition(".")[0] != "tokenizers":
        return own
    made = type(rust)(rust.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(made, part, getattr(rust, part))
    added = rust.get_added_tokens_decoder()
    for _, token in sorted(added.items()):
        (made.add_special_tokens if token.special else made.add_tokens)([token])
    same = made.get_added_tokens_decoder() == added
    vars(own)["_tokenizer"] = made if same else copy.deepcopy(rust)
    return own
