"""A model whose prompt gets learned tokens in front of it and behind it; its outputs do not show.

The tokens go in where word embeddings enter the model's body and, but for encoder-decoder models,
come out again of what leaves it. So heads, labels, losses and poolers see the places that they
know. Of an encoder-decoder model the encoder reads them, and they stay: the decoder attends to
them, with an attention mask that counts them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_lab._util.thread_own import ThreadOwn
from lora_lab.errors import AdapterError
from lora_lab.methods.base import Active
from lora_lab.methods.generate_calls import unwatch, watch
from lora_lab.methods.prompt_tuning.locate import Body
from lora_lab.methods.prompt_tuning.positions import Layout, find_layout

_MARK = "_lora_lab_tokens"  # on a cache: whose learned tokens it holds, and where
Embed = Callable[[Tensor, Layout], Tensor]


@dataclass
class _Pass:
    """What is known of the forward pass that a thread has begun last, and of its `generate`.

    Attributes:
        layout: see `PromptHooks.layout`.
        length: of the sequence in the body, learned tokens included.
        labels: that the model was given.
        generating: whether a `generate` is going on.
        prompt: its prompt's layout.
    """

    layout: Layout | None = None
    length: int = 0
    labels: Tensor | None = None
    generating: bool = False
    prompt: Layout | None = None


class PromptHooks:
    """The hooks of one adapter on one model, which several threads may run at a time."""

    def __init__(self, body: Body, name: str, method: str, prefix: int, infix: int) -> None:
        self._passes = ThreadOwn(_Pass)
        self._body = body
        self._name, self._method = name, method
        self._prefix, self._infix = prefix, infix
        self._active: Active | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def layout(self) -> Layout | None:
        """Where the tokens stand in the forward pass that this thread has begun last.

        None where it inserts none. It stays until the next: gradient checkpointing may run a block
        again.
        """
        return self._passes.here().layout

    @property
    def tokens(self) -> int:
        """l_p + l_i."""
        return self._prefix + self._infix

    @property
    def on(self) -> bool:
        """Whether the adapter is the one in force."""
        active = self._active
        return active is not None and active.samples is None and active.name == self._name

    def insert(self, active: Active, embed: Embed) -> None:
        """Add the hooks on the model.

        Args:
            active: what is switched on.
            embed: makes of the lengthened word embeddings, (batch, length, width), those that
                enter the body.
        """
        if self._handles:
            return
        self._active = active
        body = self._body
        before = body.module.register_forward_pre_hook
        self._handles = [
            before(functools.partial(self._enter, embed), with_kwargs=True),
        ]
        if body.decoder is not None:
            self._handles.append(
                body.decoder.register_forward_pre_hook(self._cross, with_kwargs=True)
            )
            return
        for module in body.exits:
            self._handles.append(module.register_forward_hook(self._leave))
        if body.writes:
            read = body.model.register_forward_pre_hook(self._read_labels, with_kwargs=True)
            forget = body.model.register_forward_hook(self._forget_labels, always_call=True)
            self._handles += [read, forget]
            watch(body.model, self)

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        unwatch(self._body.model, self)
        self._active, self._passes = None, ThreadOwn(_Pass)

    # What goes in ---------------------------------------------------------------------------------

    def _enter(
        self, embed: Embed, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        self._passes.here().layout = None
        if not self.on:
            return None
        given = _by_name(module, args, kwargs)
        cache = given.get("past_key_values")
        seen = int(cache.get_seq_length()) if cache is not None else 0
        if seen:
            return (), self._continued(given, cache, seen)
        given = self._begun(given, embed)
        if cache is not None:
            self._mark(cache)
        return (), given

    def _begun(self, given: dict[str, Any], embed: Embed) -> dict[str, Any]:
        """Return what the body is given instead: a whole prompt with the learned tokens."""
        ids, words = given.get("input_ids"), given.get("inputs_embeds")
        if words is None:
            words = self._body.embedding(ids)
        length = words.shape[1]
        self._need_room(length)
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if mask is not None:
            self._need_shape("attention_mask", mask, tuple(words.shape[:2]))
        if positions is not None:
            self._need_shape("position_ids", positions, (positions.shape[0], length))
        layout = self._find_layout(words, mask, given)
        own = self._passes.here()
        own.layout, own.length = layout, length + self.tokens
        given |= {"input_ids": None, "inputs_embeds": embed(layout.lengthened(words), layout)}
        if mask is not None:
            given["attention_mask"] = layout.mask(mask)
        if positions is not None:
            given["position_ids"] = layout.positions(positions)
        elif ids is not None and (pad := self._body.counted_from) is not None:
            real = layout.mask((ids != pad).long())
            given["position_ids"] = real.cumsum(1) * real + pad
        if (types := given.get("token_type_ids")) is not None:
            # A learned token is of its neighbor's segment.
            given["token_type_ids"] = layout.lengthened(types.expand(words.shape[0], -1))
        return given

    def _find_layout(self, words: Tensor, mask: Tensor | None, given: dict[str, Any]) -> Layout:
        find = functools.partial(find_layout, words, self._prefix, self._infix, mask)
        own = self._passes.here()
        labels = own.labels
        if labels is not None and labels.shape == words.shape[:2]:
            return find(labels.to(words.device))
        if not own.generating or given.get("past_key_values") is not None:
            return find()
        # Generation without a cache gives prompt and answer anew for every token; the prompt ends
        # where it ended first.
        if own.prompt is None or own.prompt.start.shape[0] != words.shape[0]:
            own.prompt = find()
        return own.prompt

    def _continued(self, given: dict[str, Any], cache: Any, seen: int) -> dict[str, Any]:
        """Return what the body is given behind a prompt whose learned tokens are in the cache."""
        words = given.get("input_ids")
        words = given["inputs_embeds"] if words is None else words
        count = words.shape[1]
        layout: Any  # a Layout where the name is ours
        name, layout = getattr(cache, _MARK, (None, None))
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        known = seen - self.tokens + count
        # generate() hands over what lies behind `seen` of the tokens that it knows of. Going on
        # with a cache from an earlier call, it so leaves out as many as were learned.
        fits = name == self._name and layout.tokens == self.tokens
        fits = fits and (count == 1 or not self._infix)
        if fits and mask is not None:
            fits = mask.shape == (layout.start.shape[0], known)
        elif fits and positions is not None:
            fits = int(positions.max()) == known - 1
        if not fits:
            raise AdapterError(
                f"past_key_values does not go with {self._method}'s learned tokens here: they "
                "belong around the whole prompt of one generate() or forward; give the whole text, "
                "without past_key_values"
            )
        self._need_room(seen - self.tokens + count)
        if mask is not None:
            given["attention_mask"] = layout.mask(mask)
        if positions is not None:
            given["position_ids"] = positions + self.tokens
        return given

    def _need_room(self, length: int) -> None:
        most = self._body.most
        if most is not None and self._body.bounded and length + self.tokens > most:
            raise AdapterError(
                f"{self.tokens} learned tokens (prefix_length + infix_length) and {length} others "
                f"do not fit the model's {most} positions; use at most {most - self.tokens} others"
            )

    def _need_shape(self, what: str, value: Any, shape: tuple[int, ...]) -> None:
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            found = f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise AdapterError(
                f"{self._method} needs {what} of shape (batch, length) = {shape}, not {found}; "
                "leave prepared masks and static caches out"
            )

    # What comes out -------------------------------------------------------------------------------

    def _leave(self, module: nn.Module, _inputs: Any, output: Any) -> Any:
        own = self._passes.here()
        if own.layout is None or not self.on:
            return None
        if module is self._body.module:
            for value in output.values() if isinstance(output, dict) else output:
                if hasattr(value, "get_seq_length"):
                    self._mark(value)
        return self._stripped(output, own.layout, own.length)

    def _stripped(self, value: Any, layout: Layout, length: int) -> Any:
        """Return an output without the learned places: hidden states; attentions keep them."""
        if isinstance(value, Tensor):
            known = value.dim() == 3 and value.shape[1] == length
            return layout.stripped(value, self._body.causal) if known else value
        if isinstance(value, dict):  # a ModelOutput
            for key, held in list(value.items()):
                value[key] = self._stripped(held, layout, length)
        elif type(value) in (tuple, list):
            return type(value)(self._stripped(held, layout, length) for held in value)
        return value

    def _mark(self, cache: Any) -> None:
        setattr(cache, _MARK, (self._name, self.layout))

    def _cross(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """Let the decoder's mask of the encoder's output count the learned tokens."""
        if not self.on:
            return None
        given = _by_name(module, args, kwargs)
        mask, read = given.get("encoder_attention_mask"), given.get("encoder_hidden_states")
        if mask is None or read is None or mask.shape[1] + self.tokens != read.shape[1]:
            return None
        layout = find_layout(mask, self._prefix, self._infix, mask)
        return (), given | {"encoder_attention_mask": layout.mask(mask)}

    # What the model is asked ----------------------------------------------------------------------

    def _read_labels(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        labels = _by_name(module, args, kwargs).get("labels") if self.on else None
        self._passes.here().labels = labels

    def _forget_labels(self, *_: Any) -> None:
        self._passes.here().labels = None

    def begin_generating(self, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Hear that `generate` begins.

        Raises:
            AdapterError: it would hand the prompt over in pieces.
        """
        model: Any = self._body.model
        config = kwargs.get("generation_config") or model.generation_config
        default = getattr(config, "prefill_chunk_size", None)
        if self.on and kwargs.get("prefill_chunk_size", default) is not None:
            raise AdapterError(
                f"{self._method}'s learned tokens belong around the whole prompt; leave "
                "prefill_chunk_size out"
            )
        own = self._passes.here()
        own.generating, own.prompt = True, None

    def end_generating(self) -> None:
        """Hear that it has ended."""
        own = self._passes.here()
        own.generating, own.prompt = False, None


@functools.cache
def _names(forward: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]  # without self


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by their names."""
    return {**dict(zip(_names(type(module).forward), args, strict=False)), **kwargs}
