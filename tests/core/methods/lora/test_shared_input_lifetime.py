"""Layers that share one pass through A: for which thread, for how long, and what is left."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch

import lora_lab as ll
from tests.helpers.shared_input import (
    adapted,
    an_x,
    assert_equal,
    attention,
    begin_call,
    counted,
    gradients,
    outputs,
    plain_path,
)
from tests.helpers.tiny_models import tiny_inputs
from tests.helpers.tiny_run import CONFIG


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
    begin_call(block)
    _y = block.q_proj(x)
    twin = copy.deepcopy(model).model.layers[0].self_attn
    with torch.no_grad():
        for parameter in twin.k_proj.lora.parameters():
            parameter.mul_(2)
    shared = {m.lora["default"]._shared for m in (twin.q_proj, twin.k_proj, twin.v_proj)}
    assert len(shared) == 1
    assert shared.isdisjoint({block.q_proj.lora["default"]._shared})
    begin_call(twin)
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


def hooks(model):
    own = (vars(m) for m in model.modules())
    return [hook for m in own for kind in m if "hooks" in kind for hook in m[kind] or ()]


def test_blocks_are_heard_of_while_any_adapter_is_there():
    model, _ = adapted()
    outputs(model, tiny_inputs(model))  # what watches the first pass is gone after it
    one = len(hooks(model))
    adapter = ll.attach(model, CONFIG, "second")
    outputs(model, tiny_inputs(model))
    assert len(hooks(model)) == one
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        ll.activate(twin, "second")
        ll.detach(twin, "default")
        ll.merge(twin)
        ll.unmerge(twin)
        with counted() as followed:
            outputs(twin, tiny_inputs(twin))
        assert len(followed) == 2 * 3
        ll.detach(twin)
        assert hooks(twin) == []
    assert adapter.name == "second"
