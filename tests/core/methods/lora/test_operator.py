"""The operator against the formula in float64, with ΔW built, and against finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lora_lab.anatomy import Rows
from lora_lab.methods.lora.operator import add_terms, lowrank_linear
from lora_lab.spectra.update import LowRankUpdate

WHOLE, CONTIGUOUS, INTERLEAVED = None, Rows(1, 24, 4, 8), Rows(4, 6, 2, 2)


def layer(rows_of_terms, dtype=torch.float64, k=12, d=24, r=3, batch=(3, 5)):
    torch.manual_seed(0)
    x = torch.randn(*batch, k, dtype=dtype, requires_grad=True)
    W, b = torch.randn(d, k, dtype=dtype), torch.randn(d, dtype=dtype)
    terms = []
    for rows in rows_of_terms:
        own = d if rows is None else rows.groups * rows.width
        A = torch.randn(r, k, dtype=dtype, requires_grad=True)
        B = torch.randn(own, r, dtype=dtype, requires_grad=True)
        terms.append(LowRankUpdate(A, B, 0.7, rows))
    return x, W, b, terms


def owned(rows, d):
    """The output rows of a site, listed one by one from the definition of Rows."""
    if rows is None:
        return list(range(d))
    return [
        g * rows.group_size + rows.offset + i for g in range(rows.groups) for i in range(rows.width)
    ]


def formula(x, W, b, terms):
    """y = (W₀ + Σ s·BA)x + b with every matrix built, in NumPy float64."""
    total = W.numpy().astype(np.float64).copy()
    for term in terms:
        delta = term.scale * term.B.detach().numpy() @ term.A.detach().numpy()
        total[owned(term.rows, total.shape[0])] += delta
    return x.detach().numpy() @ total.T + b.numpy()


@pytest.mark.parametrize("rows", [[WHOLE], [CONTIGUOUS], [INTERLEAVED], [CONTIGUOUS, INTERLEAVED]])
@pytest.mark.parametrize("transposed", [False, True])
def test_forward_is_the_formula(rows, transposed):
    x, W, b, terms = layer(rows)
    y = lowrank_linear(x, W.T.contiguous() if transposed else W, b, terms, transposed)
    np.testing.assert_allclose(y.detach().numpy(), formula(x, W, b, terms), rtol=1e-12, atol=1e-12)
    plain = add_terms(F.linear(x, W, b), x, terms)
    np.testing.assert_allclose(plain.detach().numpy(), formula(x, W, b, terms), atol=1e-12)


@pytest.mark.parametrize("rows", [[WHOLE], [CONTIGUOUS, INTERLEAVED]])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_against_finite_differences(rows, transposed):
    x, W, b, terms = layer(rows, batch=(4,))
    weight = W.T.contiguous() if transposed else W
    factors = [f for t in terms for f in (t.A, t.B)]

    def run(x, *fs):
        moved = [t._replace(A=fs[2 * i], B=fs[2 * i + 1]) for i, t in enumerate(terms)]
        return lowrank_linear(x, weight, b, moved, transposed)

    assert torch.autograd.gradcheck(run, (x, *factors))


@settings(max_examples=25)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 6), st.integers(0, 99)
)
def test_any_shape_agrees_with_the_plain_path(k, d, r, tokens, seed):
    torch.manual_seed(seed)
    x = torch.randn(tokens, k, dtype=torch.float64, requires_grad=True)
    W = torch.randn(d, k, dtype=torch.float64)
    A = torch.randn(r, k, dtype=torch.float64, requires_grad=True)
    B = torch.randn(d, r, dtype=torch.float64, requires_grad=True)
    terms = [LowRankUpdate(A, B, 1.5)]
    pull = torch.randn(tokens, d, dtype=torch.float64)
    fused = torch.autograd.grad(lowrank_linear(x, W, None, terms), (x, A, B), pull)
    plain = torch.autograd.grad(add_terms(F.linear(x, W), x, terms), (x, A, B), pull)
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_bf16_input_is_not_cast_up_and_float32_masters_get_float32_gradients():
    x, W, b, terms = layer([WHOLE], dtype=torch.float32)
    half = x.detach().to(torch.bfloat16).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = lowrank_linear(half, W.bfloat16(), b.bfloat16(), terms)
    assert y.dtype == torch.bfloat16
    assert {t.dtype for t in kept if t.numel() >= x.numel()} == {torch.bfloat16}
    y.float().sum().backward()
    assert terms[0].A.grad.dtype == terms[0].B.grad.dtype == torch.float32


def test_it_saves_x_itself_and_nothing_as_large_as_y():
    x, W, b, terms = layer([WHOLE], dtype=torch.float32, k=12, d=40, batch=(50,))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lowrank_linear(x, W, b, terms)
    activations = [t for t in kept if t.shape[0] == 50]
    assert sorted(t.shape[1] for t in activations) == [3, 12]  # the thin H and x
    assert x.data_ptr() in {t.data_ptr() for t in activations}, "x must be kept, not copied"


def test_dropout_scales_what_it_keeps_and_hits_only_the_path_through_a():
    x, W, b, terms = layer([WHOLE], batch=(4000,))
    torch.manual_seed(1)
    y = lowrank_linear(x, W, b, terms, dropout=0.5).detach()
    torch.manual_seed(1)
    mask = F.dropout(torch.ones_like(x), 0.5)
    expected = formula(x * mask, torch.zeros_like(W), torch.zeros_like(b), terms)
    base = formula(x, W, b, [])
    np.testing.assert_allclose(y.numpy(), base + expected, atol=1e-10)


def test_gradient_checkpointing_and_autocast_take_the_same_values():
    from torch.utils.checkpoint import checkpoint

    x, W, b, terms = layer([WHOLE], dtype=torch.float32)
    direct = torch.autograd.grad(lowrank_linear(x, W, b, terms).sum(), (x, terms[0].A, terms[0].B))
    saved = checkpoint(lambda x: lowrank_linear(x, W, b, terms), x, use_reentrant=False)
    again = torch.autograd.grad(saved.sum(), (x, terms[0].A, terms[0].B))
    for one, other in zip(direct, again, strict=True):
        assert torch.equal(one, other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lowrank_linear(x, W, b, terms)
    np.testing.assert_allclose(y.detach().float(), formula(x, W, b, terms), rtol=0.1, atol=0.5)
