"""Layers that share one pass through A, against the plain path in float64."""

import contextlib
import copy
import gc
import threading
import weakref
from unittest import mock

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import lora_lab as ll
from lora_lab.methods.lora import layers, operator
from tests.helpers.tiny_models import ARCHITECTURES, tiny, tiny_inputs

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
    """q, k and v of one block, which read the same x, and their factors."""
    model, _ = adapted(**changes)
    block = model.model.layers[0].self_attn
    projections = block.q_proj, block.k_proj, block.v_proj
    return *projections, [p for m in projections for p in m.lora.parameters()]


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


def test_factors_changed_between_readers():
    q, k, v, factors = attention()
    x = an_x()
    q(x)
    with torch.no_grad():
        for factor in factors:
            factor.mul_(3)
    found = k(x), v(x)
    with plain_path():
        assert_equal(found, (k(x), v(x)))
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


@pytest.mark.parametrize("same_x", [False, True])
def test_two_threads_at_once(same_x):
    model, adapter = adapted()
    block = model.model.layers[0].self_attn
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    batches = [tiny_inputs(model, batch=2, seed=seed) for seed in (0, 1)]
    one = an_x(0)
    xs = [one, one if same_x else an_x(1)]
    with plain_path():
        expected = [gradients(outputs(model, b), parameters) for b in batches]
        alone = [torch.cat([block.q_proj(x), block.v_proj(x)], -1) for x in xs]
    found, direct, errors = [[], []], [[], []], []
    start = threading.Barrier(2)

    def work(i):
        try:
            start.wait()
            for _ in range(25):
                found[i].append(gradients(outputs(model, batches[i]), parameters))
                y = torch.cat([block.q_proj(xs[i]), block.v_proj(xs[i])], -1)
                y.sum().backward(inputs=parameters[:1])
                direct[i].append(y.detach())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    for i in (0, 1):
        for one in found[i]:
            assert_equal(one, expected[i])
        for y in direct[i]:
            assert_equal(y, alone[i].detach())


def test_what_waits_is_not_for_another_thread():
    q, _, v, factors = attention()
    x, ys = an_x(), []
    ys.append(q(x))
    thread = threading.Thread(target=lambda: ys.append(v(x)))
    thread.start()
    thread.join()
    found = [gradients(y, factors) for y in ys]  # each graph is freed by its own backward pass
    with plain_path():
        expected = [gradients(reader(x), factors) for reader in (q, v)]
    for one, other in zip(found, expected, strict=True):
        assert [g is None for g in one] == [g is None for g in other]
        assert_equal([g for g in one if g is not None], [g for g in other if g is not None])


def test_only_the_leader_keeps_x():
    q, k, v, _ = attention()
    x = an_x(rows=50).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ys = q(x), k(x), v(x)
    activations = [t for t in kept if t.shape[0] == 50]
    assert sum(t.data_ptr() == x.data_ptr() for t in activations) == 1
    # Beside x only the thin H of each, r = 3 wide.
    assert sorted(t.shape[1] for t in activations) == [3, 3, 3, 32]
    assert all(y.requires_grad for y in ys)


@pytest.mark.parametrize("called", ["qkv", "qk", "q"])
@pytest.mark.parametrize("end", ["backward", "dropped"])
def test_nothing_outlives_the_pass(called, end):
    q, k, v, _ = attention()
    readers = {"q": q, "k": k, "v": v}
    gc.disable()  # references must do, without a search for cycles
    try:
        x = an_x().requires_grad_() * 1
        alive = weakref.ref(x)
        ys = [readers[letter](x) for letter in called]
        if end == "backward":
            sum(y.sum() for y in ys).backward()
        del x, ys
        assert alive() is None
    finally:
        gc.enable()


def test_nothing_outlives_a_pass_that_broke_off():
    model, _ = adapted()
    block = model.model.layers[1].self_attn
    seen = []
    # What a lower layer saved for its backward pass.
    below = model.model.layers[0].mlp.act_fn
    below.register_forward_hook(lambda _m, args, _y: seen.append(weakref.ref(args[0])))

    def no_memory(*_):
        raise MemoryError("no memory left")

    handle = block.k_proj.register_forward_pre_hook(no_memory)
    with pytest.raises(MemoryError):
        outputs(model, tiny_inputs(model))
    gc.collect()  # the traceback's frames
    assert seen[0]() is None, "a failed forward pass must not pin its activations"
    handle.remove()
    twin = copy.deepcopy(model)
    assert_equal(outputs(twin, tiny_inputs(model)), outputs(model, tiny_inputs(model)))


def test_a_copy_made_in_the_middle_of_a_pass_is_its_own():
    model, _ = adapted()
    block = model.model.layers[0].self_attn
    x = an_x()
    _y = block.q_proj(x)
    twin = copy.deepcopy(model).model.layers[0].self_attn
    with torch.no_grad():
        for parameter in twin.k_proj.lora.parameters():
            parameter.mul_(2)
    shared = {m.lora["default"]._shared for m in (twin.q_proj, twin.k_proj, twin.v_proj)}
    assert len(shared) == 1
    assert shared.isdisjoint({block.q_proj.lora["default"]._shared})
    with counted() as followed:
        found = twin.q_proj(x), twin.k_proj(x), block.k_proj(x)
    assert len(followed) == 2
    with plain_path():
        assert_equal(found, (twin.q_proj(x), twin.k_proj(x), block.k_proj(x)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    model, _ = adapted()
    batch = tiny_inputs(model)
    with plain_path():
        expected = outputs(model, batch)
    with mode():
        found = outputs(model, batch)
    assert not found.requires_grad
    assert_equal(found.clone(), expected.detach())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_was_computed_without_gradients_teaches_nothing_later(mode):
    q, k, v, factors = attention()
    x = an_x()
    with mode():
        q(x)
    y = torch.cat([k(x), v(x)], -1)
    found = gradients(y, factors)
    with plain_path():
        expected = gradients(torch.cat([k(x), v(x)], -1), factors)
    assert_equal([g for g in found if g is not None], [g for g in expected if g is not None])
    with mode():  # and the other way round
        q(x)
        assert not v(x).requires_grad


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_generating_with_a_cache(name, mode):
    model, _ = adapted(name)
    ids = tiny_inputs(model, batch=2)["input_ids"]
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "output_scores": True}

    def write():
        with mode():
            return model.generate(ids, **settings, return_dict_in_generate=True)

    with plain_path():
        expected = write()
    found = write()
    assert torch.equal(found.sequences, expected.sequences)
    assert_equal([s.clone() for s in found.scores], [s.clone() for s in expected.scores])
