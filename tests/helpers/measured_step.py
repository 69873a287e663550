"""A real training step on a tiny model, and the bytes that live at its dearest moment."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from lora_lab.methods.recompute_mlp import recomputed_mlps
from lora_lab.tasks.label_logits import label_logits
from tests.helpers.half_precision import CopiedUp

BATCH, LENGTH = 4, 64


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage that an operation reads or writes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = 0
        self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which costs 20 µs an operation

    def add(self, tensors: Any) -> None:
        if isinstance(tensors, torch.Tensor):
            storage = tensors.untyped_storage()
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, storage._cdata)
        elif isinstance(tensors, (list, tuple)):
            for each in tensors:
                self.add(each)
        elif isinstance(tensors, dict):
            self.add([*tensors.values()])

    def _freed(self, key: int) -> None:
        self.live -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.add((args, kwargs, out))
        return out


def label_loss(model: Any, **batch: Any) -> torch.Tensor:
    """Return a model's loss, computed as runs do it."""
    with label_logits(model, batch["labels"].numel()), recomputed_mlps(model):
        loss: torch.Tensor = model(**batch).loss
    return loss


def fused_adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def measured_peak(
    model: Any,
    batch: int = BATCH,
    length: int = LENGTH,
    *,
    padded: bool = False,
    make_optimizer: Callable[..., torch.optim.Optimizer] = fused_adamw,
) -> int:
    """Return the live bytes at the dearest moment of the second training step."""
    learning = [p for p in model.parameters() if p.requires_grad]
    copied = CopiedUp(learning)
    optimizer = make_optimizer(copied.masters)
    ids = torch.randint(0, model.config.vocab_size, (batch, length))
    options: dict[str, Any] = {"use_cache": False}
    if isinstance(model, transformers.BertForMaskedLM):
        options = {}
    if padded:
        options["attention_mask"] = torch.ones(batch, length, dtype=torch.long)
        options["attention_mask"][0, : length // 8] = 0
    for _ in range(2):  # the optimizer's state exists from the second on
        optimizer.zero_grad()
        meter = LiveBytes()
        with meter:
            meter.add(
                (
                    [*model.parameters(), *copied.masters],
                    [list(s.values()) for s in optimizer.state.values()],
                )
            )
            label_loss(model, input_ids=ids, labels=ids, **options).backward()
            copied.gather()
            optimizer.step()
            copied.write()
    return meter.peak


def llama(vocab: int = 256, layers: int = 3, **more: Any) -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes(vocab, layers), num_key_value_heads=2, **more)
    )


def gpt2(vocab: int = 256, layers: int = 3, dropout: float = 0.0) -> Any:
    config = transformers.GPT2Config(
        vocab_size=vocab,
        n_embd=64,
        n_layer=layers,
        n_head=4,
        n_positions=LENGTH,
        resid_pdrop=dropout,
        attn_pdrop=dropout,
        embd_pdrop=dropout,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.GPT2LMHeadModel(config)


def sizes(vocab: int = 256, layers: int = 3) -> dict[str, int]:
    return {
        "vocab_size": vocab,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }


def qwen2() -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes(), num_key_value_heads=2))


def qwen3() -> Any:
    config = transformers.Qwen3Config(**sizes(), num_key_value_heads=2, head_dim=16)
    return transformers.Qwen3ForCausalLM(config)


def mistral() -> Any:
    config = transformers.MistralConfig(**sizes(), num_key_value_heads=2)
    return transformers.MistralForCausalLM(config)


def opt() -> Any:
    config = transformers.OPTConfig(
        vocab_size=256,
        hidden_size=64,
        ffn_dim=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        word_embed_proj_dim=64,
        max_position_embeddings=LENGTH,
        dropout=0.0,
    )
    return transformers.OPTForCausalLM(config)


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes()))


def bloom() -> Any:
    config = transformers.BloomConfig(vocab_size=256, hidden_size=64, n_layer=3, n_head=4)
    return transformers.BloomForCausalLM(config)
