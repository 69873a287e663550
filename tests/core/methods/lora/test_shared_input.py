"""Layers that share one pass through A, against the plain path in float64."""

import contextlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lora_lab.errors import AdapterError
from tests.helpers.shared_input import (
    FUSED,
    adapted,
    an_x,
    assert_equal,
    attention,
    counted,
    gradients,
    outputs,
    plain_path,
)
from tests.helpers.tiny_models import ARCHITECTURES, tiny_inputs
from tests.helpers.weight_writers import WRITERS


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_and_gradients_are_the_plain_paths(name):
    model, adapter = adapted(name)
    parameters, batch = list(adapter.parameters()), tiny_inputs(model, batch=2)
    with plain_path():
        expected = outputs(model, batch)
        expected_gradients = gradients(expected, parameters)
    with counted() as followed:
        found = outputs(model, batch)
    assert bool(followed) == (name not in FUSED)
    assert_equal(found, expected)
    assert_equal(gradients(found, parameters), expected_gradients)


@pytest.mark.parametrize(
    ("name", "followers"),
    [
        ("llama", 2 * 3),  # of 2 layers k, v and up
        ("opt", 2 * 2),
        ("deberta-v2", 2 * (2 + 1)),  # k, v; the position's k
        ("t5-gated", 2 * (2 + 1) + 3 * (2 + 1 + 1)),  # in the decoder also the cross-attention's v
        ("gpt2", 0),  # one fused matrix
    ],
)
def test_every_layer_but_the_leader_follows(name, followers):
    model, _ = adapted(name)
    with counted() as followed:
        y = outputs(model, tiny_inputs(model))
    assert y.requires_grad
    assert len(followed) == followers


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_gradients_against_finite_differences(changes):
    q, k, v, factors = attention(r=2, **changes)
    x = an_x(rows=2).requires_grad_()

    def run(x, *_):  # gradcheck moves the parameters themselves
        return torch.cat([q(x), k(x), v(x)], dim=-1)

    if "use_dora" in changes:
        # The norm is a constant to the gradient (section 4.3 of the paper), so x alone is checked.
        assert torch.autograd.gradcheck(run, (x,))
    else:
        assert torch.autograd.gradcheck(run, (x, *factors))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "bert", "opt", "t5-gated"])
def test_gradient_checkpointing_of_blocks(name, use_reentrant):
    model, adapter = adapted(name)
    parameters, batch = list(adapter.parameters()), tiny_inputs(model, batch=2)
    model.train()  # else nothing is checkpointed; but without the model's own dropout
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    with plain_path():
        expected = gradients(outputs(model, batch), parameters)
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": use_reentrant}
    )
    model.enable_input_require_grads()
    y = outputs(model, batch)
    y.backward(torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(9)))
    assert_equal([p.grad for p in parameters], [*expected])


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("inside", [0, 1, 2])
def test_one_reader_alone_is_checkpointed(inside, use_reentrant):
    q, k, v, factors = attention()

    def run(call):
        x = an_x().requires_grad_()
        readers = [q, k, v]
        ys = [call(m, x) if i == inside else m(x) for i, m in enumerate(readers)]
        torch.cat(ys, dim=-1).square().sum().backward()
        found = [x.grad, *(p.grad.clone() for p in factors)]
        for parameter in factors:
            parameter.grad = None
        return found

    with plain_path():
        expected = run(lambda m, x: m(x))
    found = run(lambda m, x: checkpoint(m, x, use_reentrant=use_reentrant))
    assert_equal(found, expected)


def test_x_changed_in_place_between_readers():
    q, k, v, _ = attention()
    x = an_x()
    with torch.no_grad():
        q(x)
        x.mul_(2)
        found = k(x), v(x)
        with plain_path():
            assert_equal(found, (k(x), v(x)))


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("before", ["one layer", "a call", "a call that broke off"])
def test_factors_written_between_readers(before, writer):
    model, adapter = adapted()
    block = model.model.layers[0].self_attn
    xs = [an_x()]
    if before == "one layer":
        block.q_proj(xs[0])
    else:
        block.q_proj.register_forward_pre_hook(lambda _, args: xs.append(args[0]))
        if before == "a call that broke off":
            block.k_proj.register_forward_pre_hook(lambda *_: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            outputs(model, tiny_inputs(model))
    WRITERS[writer]([*adapter.parameters()])
    found = block.v_proj(xs[-1])
    with plain_path():
        assert_equal(found, block.v_proj(xs[-1]))


def test_factors_replaced_between_readers():
    q, k, v, _ = attention()
    x = an_x()
    q(x)
    for projection in (k, v):
        site = projection.lora["default"].sites[0]
        site.A = torch.nn.Parameter(site.A.detach() + 1)
    found = k(x)
    with plain_path():
        assert_equal(found, k(x))


def test_dropout_switched_off_between_readers():
    q, k, _, _ = attention(lora_dropout=0.5)
    x = an_x()
    q.train()
    q(x)
    found = k.eval()(x)
    with plain_path():
        assert_equal(found, k(x))
    q.eval()(x)
    torch.manual_seed(3)
    dropped = k.train()(x)
    assert not torch.allclose(dropped, found)


@pytest.mark.parametrize("order", ["vkq", "kqv", "qqkv", "qkkv", "q", "v", "qv", "kvkv"])
def test_readers_in_any_order_twice_or_never(order):
    q, k, v, factors = attention()
    readers = {"q": q, "k": k, "v": v}

    def run():
        x = an_x().requires_grad_()
        y = sum(readers[letter](x).square().sum() for letter in order)
        return y, torch.autograd.grad(y, [x, *factors], allow_unused=True)

    with plain_path():
        expected, expected_gradients = run()
    found, found_gradients = run()
    assert_equal(found, expected)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        assert (one is None) == (other is None), "of what took no part: no gradient, not zeros"
        if other is not None:
            assert_equal(one, other)


def test_readers_of_one_x_with_a_backward_pass_each():
    q, k, v, factors = attention()

    def run():
        x = an_x().requires_grad_()
        for reader in (q, k, v):
            reader(x).square().sum().backward()
        found = [x.grad, *(p.grad.clone() for p in factors)]
        for parameter in factors:
            parameter.grad = None
        return found

    with plain_path():
        expected = run()
    assert_equal(run(), expected)


def test_a_backward_pass_that_wants_x_alone():
    q, k, v, _ = attention()
    x = an_x().requires_grad_()
    with plain_path():
        (expected,) = torch.autograd.grad(sum(m(x).sum() for m in (q, k, v)), x)
    (found,) = torch.autograd.grad(sum(m(x).sum() for m in (q, k, v)), x)
    assert_equal(found, expected)


@pytest.mark.parametrize("order", ["qkv", "vkq", "kqv", "vq", "qv", "kv"])
@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"lora_dropout": 0.5}])
def test_each_output_may_have_a_backward_pass_of_its_own(order, changes):
    *layers, factors = attention(r=2, **changes)
    by_name = dict(zip("qkv", layers, strict=True))
    for layer in layers:
        layer.train()
    x = an_x().requires_grad_()

    def outputs_of():
        torch.manual_seed(4)
        return {name: layer(x) for name, layer in by_name.items()}

    def found(passes):
        """The gradients of x and the factors after one pass from each of the sums."""
        given = [x, *factors]
        for tensor in given:
            tensor.grad = None
        for loss in passes:
            loss.backward()
        return [None if tensor.grad is None else tensor.grad.clone() for tensor in given]

    losses = [y.square().sum() for name, y in outputs_of().items() if name in order]
    together = found([torch.stack(losses).sum()])
    y = outputs_of()
    apart = found(y[name].square().sum() for name in order)
    for own, expected in zip(apart, together, strict=True):
        assert (own is None) == (expected is None)
        if own is not None:
            assert_equal(own, expected)


def test_a_second_pass_from_the_same_output_is_still_torchs_error():
    q, k, v, _ = attention()
    x = an_x().requires_grad_()
    y, _, z = q(x), k(x), v(x)
    z.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        z.sum().backward()
    y, z = q(x), v(x)
    for output in (y, y, z, z):
        output.sum().backward(retain_graph=True)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_step_between_two_passes_changes_no_gradient(writer):
    q, _, v, factors = attention()
    x = an_x().requires_grad_()
    y, _z = q(x), v(x)
    expected = torch.autograd.grad(y.square().sum(), [x, *factors], allow_unused=True)
    y, z = q(x), v(x)
    loss = y.square().sum()
    z.sum().backward()
    WRITERS[writer](factors)
    found = torch.autograd.grad(loss, [x, *factors], allow_unused=True)
    for own, right in zip(found, expected, strict=True):
        assert (own is None) == (right is None)
        if own is not None:
            assert_equal(own, right)


@pytest.mark.parametrize("changed", ["x", "W0"])
def test_what_both_passes_need_must_not_change_between_them(changed):
    q, _, v, _ = attention()
    x = an_x().requires_grad_()
    y, z = q(x), v(x)
    z.sum().backward()
    with torch.no_grad():
        (x if changed == "x" else q.weight).mul_(2)
    with pytest.raises(AdapterError, match="changed in place between two backward passes"):
        y.sum().backward()


@pytest.mark.parametrize("called", ["q_proj", "k_proj", "o_proj"])
def test_an_output_may_be_changed_in_place(called):
    model, adapter = adapted()
    getattr(model.model.layers[0].self_attn, called).register_forward_hook(
        lambda _module, _inputs, y: y.mul_(2)
    )
    parameters, batch = list(adapter.parameters()), tiny_inputs(model, batch=2)
    with plain_path():
        expected = outputs(model, batch)
        expected_gradients = gradients(expected, parameters)
    found = outputs(model, batch)
    assert_equal(found, expected)
    assert_equal(gradients(found, parameters), expected_gradients)
