"""Models whose layers read one x, with and without a shared pass through A."""

import contextlib
from unittest import mock

import torch

import lora_lab as ll
from lora_lab.methods.lora import layers, operator
from tests.helpers.tiny_models import tiny

FUSED = {"gpt2", "gpt2-cross", "phi3", "gpt-neox", "bloom", "modernbert"}
FUSED |= {"falcon-grouped", "falcon-multi-query", "falcon-interleaved"}


@contextlib.contextmanager
def plain_path():
    """Within it every adapted layer takes `add_terms`: plain, differentiable steps, no sharing."""
    with (
        mock.patch.object(layers, "needs_plain_path", return_value=True),
        mock.patch.object(operator, "needs_plain_path", return_value=True),
    ):
        yield


@contextlib.contextmanager
def counted():
    """Within it the list grows by one for every layer that took its H from a leader."""
    followed = []
    real = layers.following_linear

    def following(x, *args):
        followed.append(x.shape)
        return real(x, *args)

    with mock.patch.object(layers, "following_linear", following):
        yield followed


def adapted(name="llama", **changes):
    fields = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False}
    model = tiny(name).double()
    torch.manual_seed(0)
    adapter = ll.attach(model, ll.LoraConfig(**{**fields, **changes}))
    return model, adapter


def attention(**changes):
    """q, k and v of one block, as within a call of it, where they share; and their factors."""
    model, _ = adapted(**changes)
    block = model.model.layers[0].self_attn
    begin_call(block)
    projections = block.q_proj, block.k_proj, block.v_proj
    return *projections, [p for m in projections for p in m.lora.parameters()]


def begin_call(block):
    """Have a block's layers called from now on as if it called them."""
    block.q_proj.lora["default"]._shared.begin()


def an_x(seed=0, rows=5):
    return torch.randn(rows, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs(model, batch):
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    result = model(**batch)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def gradients(y, parameters):
    pull = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad((y * pull).sum(), parameters, allow_unused=True)


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
