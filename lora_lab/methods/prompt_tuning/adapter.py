"""PreEmbed and PreLayer: learned tokens around the prompt (Hu et al., 2022, section 5.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from lora_lab._util.devices import device_of
from lora_lab._util.host_memory import HostRoom
from lora_lab._util.torch_private import FakeTensor
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.wrappers import module_at, modules_within
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.attached import active, attached, bare
from lora_lab.methods.base import Active, Adapter
from lora_lab.methods.offload import check_present, check_room
from lora_lab.methods.own_draws import OwnDraws
from lora_lab.methods.prompt_tuning.config import PrefixEmbedConfig, PrefixLayerConfig
from lora_lab.methods.prompt_tuning.hooks import PromptHooks
from lora_lab.methods.prompt_tuning.locate import Body, find_body
from lora_lab.methods.prompt_tuning.positions import Layout
from lora_lab.methods.submodules import add_submodule, remove_submodule

_CLAIM = "the learned tokens"


class LearnedTokens(nn.Module):
    """Vectors of l_p + l_i tokens at one place of the model.

    Attributes:
        vectors: (l_p + l_i, width), the prefix first; float32, or the base's dtype where that is
            wider.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        kind = torch.promote_types(start.dtype, torch.float32)
        self.vectors = nn.Parameter(start.detach().to(kind, copy=True))

    def present(self, path: str) -> nn.Parameter:
        """Return the vectors, or say that they went away with the model's weights."""
        if self.vectors.is_meta:
            check_present(self, path)
        return self.vectors


class PrefixAdapter(Adapter):
    """What PreEmbed and PreLayer share.

    The prompt is what stands before the first label that is not -100; without labels, as in
    `generate`, all of the input. Prefix tokens stand in front of it, infix tokens behind it: an
    infix token predicts the completion's first. Encoders read all of their input as the prompt,
    encoder-decoder models have the tokens in the encoder.

    Attributes:
        tokens: l_p + l_i, by which the usable sequence length shrinks.
        learned: {path of the module that they enter: the tokens there}.
    """

    learned: dict[str, LearnedTokens]

    def __init__(self, model: nn.Module, config: Any, name: str) -> None:
        self.method, self.name, self.config = config.method, name, config
        self.tokens: int = config.tokens
        self._model = model
        self._body = find_body(model, self.method)
        _need_positions(self._body, self.tokens)
        self._prompt_hooks = PromptHooks(
            self._body, name, self.method, config.prefix_length, config.infix_length
        )

    def insert(self, active: Active) -> None:
        """Add the tokens and the hooks on the model; see `Adapter.insert`."""
        for path, learned in self.learned.items():
            add_submodule(module_at(self._model, path), self._child, learned)
        self._prompt_hooks.insert(active, self._embedded)

    def remove(self) -> None:
        """Take both off; see `Adapter.remove`."""
        self._prompt_hooks.remove()
        for path in self.learned:
            remove_submodule(module_at(self._model, path), self._child)

    def conflicts(self) -> Iterator[str]:
        """Yield the one claim of all such methods; see `Adapter.conflicts`."""
        yield _CLAIM

    def merged_weights(self, dtype: torch.dtype | None = None) -> NoReturn:  # noqa: ARG002
        """Raise; see `check_merge`."""
        self.check_merge()

    def check_merge(self) -> NoReturn:
        """Raise: tokens are no weights."""
        raise AdapterError(
            f"{self.method} cannot be merged: its learned tokens are inputs, and no weight can "
            "hold them; keep it attached, or train a LoRA"
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the tokens' vectors, place by place."""
        for learned in self.learned.values():
            yield learned.vectors

    def parameters_by_location(self) -> dict[str, Sequence[nn.Parameter]]:
        """Return {place in words: the vectors there}."""
        return {
            f"{_CLAIM} at {path or 'the model'}": [learned.vectors]
            for path, learned in self.learned.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return the vectors by "path.tokens"."""
        return {
            f"{path}.tokens".lstrip("."): learned.vectors for path, learned in self.learned.items()
        }

    @property
    def _child(self) -> str:
        """What the tokens are added under: another part of a combination has the same name."""
        return f"{self.name}:tokens"

    def _embedded(self, words: Tensor, layout: Layout) -> Tensor:
        """Return what enters the body, of embeddings with room for the tokens."""
        raise NotImplementedError


class PrefixEmbedAdapter(PrefixAdapter):
    """PreEmbed: word embeddings of special tokens, d(l_p + l_i) numbers.

    They start as those of words drawn from the vocabulary by torch's generator, as in prompt
    tuning (Lester et al., 2021, section 3.2).
    """

    def __init__(self, model: nn.Module, config: PrefixEmbedConfig, name: str) -> None:
        super().__init__(model, config, name)
        _need_room(self._body, self.tokens, 1, self.method)
        with bare(model):
            words = _drawn_words(self._body, self.tokens)
        path = next(p for p, part in modules_within(model) if part is self._body.module)
        self.learned = {path: LearnedTokens(words)}
        check_room(self.learned, dict(modules_within(model)))

    def _embedded(self, words: Tensor, layout: Layout) -> Tensor:
        ((path, learned),) = self.learned.items()
        return layout.placed(words, learned.present(path))


class PrefixLayerAdapter(PrefixAdapter):
    """PreLayer: activations of special tokens, L·d(l_p + l_i) numbers.

    The paper has them learned after every layer. What leaves the last block at a learned token is
    read by nothing but the last infix token's prediction, so learned is what enters each of the L
    blocks: the embeddings' output and the activations after the first L − 1. The count is the same,
    and every number matters.

    They start as the activations of words drawn as PreEmbed's are (Li & Liang, 2021, section 7.5):
    a causal model starts as the one that PreEmbed starts as, where there is no infix. An infix
    starts as it is behind the prefix alone, without a prompt.
    """

    def __init__(self, model: nn.Module, config: PrefixLayerConfig, name: str) -> None:
        super().__init__(model, config, name)
        width = anatomy(model).shape.hidden_size
        if not width:
            raise ConfigError(
                f"{self.method} needs the width of the model's blocks, and its config does not "
                "tell; use LoRA, which only needs the matrices"
            )
        _need_room(self._body, self.tokens, len(self._body.blocks), self.method)
        with bare(model):
            starts = _activations(self._body, self.tokens, width)
        self.learned = {path: LearnedTokens(start) for path, start in starts.items()}
        check_room(self.learned, dict(modules_within(model)))
        self._handles: list[RemovableHandle] = []

    def insert(self, active: Active) -> None:
        """Add tokens and hooks on the model and its blocks; see `Adapter.insert`."""
        super().insert(active)
        if not self._handles:
            for path, block in self._body.blocks.items():
                enter = _Entrance(self._prompt_hooks, self.learned[path], path)
                self._handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))

    def remove(self) -> None:
        """Take all of them off; see `Adapter.remove`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        super().remove()

    def _embedded(self, words: Tensor, layout: Layout) -> Tensor:  # noqa: ARG002
        return words  # the first block's entrance puts the tokens in


class _Entrance:
    """Puts learned tokens into what enters a block."""

    def __init__(self, prompt_hooks: PromptHooks, learned: LearnedTokens, path: str) -> None:
        self._prompt_hooks = prompt_hooks
        self._learned = learned
        self._path = path
        self._layouts = WeakTensorKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Copy without the layouts: they belong to one model's passes, and cannot be pickled."""
        return {name: own for name, own in vars(self).items() if name != "_layouts"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _layouts=WeakTensorKeyDictionary())

    def __call__(
        self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        layout = self._prompt_hooks.layout
        if not torch.compiler.is_compiling():
            # Checkpointing may call a block's hooks again (torch's `checkpoint_wrapper`, and
            # transformers 5.17), even after another forward pass: with the same tensor.
            given = args[0] if args else kwargs["hidden_states"]
            layout = self._layouts.setdefault(given, layout)
        if layout is None or not self._prompt_hooks.on:
            return None
        vectors = self._learned.present(self._path)
        if args:
            return (layout.placed(args[0], vectors), *args[1:]), kwargs
        hidden = layout.placed(kwargs["hidden_states"], vectors)
        return (), kwargs | {"hidden_states": hidden}


def learned_tokens(model: nn.Module) -> int:
    """Return by how many places the adapter in force shortens a model's usable sequence length."""
    adapter = attached(model).get(active(model) or "")
    parts = getattr(adapter, "adapters", (adapter,))  # of a combination
    return sum(part.tokens for part in parts if isinstance(part, PrefixAdapter))


def _need_positions(body: Body, tokens: int) -> None:
    if body.most is not None and tokens >= body.most:
        raise ConfigError(
            f"{tokens} learned tokens (prefix_length + infix_length) leave no room for others in "
            f"the model's {body.most} positions; use fewer of them"
        )


def _need_room(body: Body, count: int, places: int, method: str) -> None:
    """Refuse more tokens than the computer has memory for, before any is made."""
    weight: Any = body.embedding.weight
    if device_of(body.embedding).type == "cpu" and not isinstance(weight, FakeTensor):
        fix = "use a shorter prefix_length and infix_length"
        room = HostRoom(f"learning {count:,} tokens by {method}", fix)
        room.take_bytes(4 * count * places * weight.shape[-1])


def _drawn_words(body: Body, count: int) -> Tensor:
    """Return the embeddings of words drawn from the vocabulary, (count, width)."""
    table: Any = body.embedding
    # Drawn on the CPU, so that a seed gives the same words on every device.
    with OwnDraws().of("words", count):
        ids = torch.randint(table.num_embeddings, (count,), device="cpu")
    with torch.no_grad():
        words: Tensor = table(ids.to(device_of(table))[None])[0]
    return words


def _activations(body: Body, count: int, width: int) -> dict[str, Tensor]:
    """Return what enters each block when the body reads drawn words, each (count, width)."""
    words = _drawn_words(body, count)
    if words.is_meta or isinstance(words, FakeTensor):  # there is nothing to compute
        return {path: words.new_empty(count, width) for path in body.blocks}
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def enter(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.setdefault(path, (args[0] if args else kwargs["hidden_states"])[0])

        return enter

    handles = [
        block.register_forward_pre_hook(keep(path), with_kwargs=True)
        for path, block in body.blocks.items()
    ]
    training = [part for part in body.module.modules() if part.training]
    body.module.eval()
    try:
        with torch.no_grad():
            body.module(inputs_embeds=words[None])
    finally:
        for handle in handles:
            handle.remove()
        for part in training:
            part.training = True
    return found
