"""Private names of torch that what runs on several threads needs; see `test_private_names`."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lora_lab._util import torch_private


def test_objects_of_a_thread_are_kept_for_it_alone() -> None:
    owner, found = nn.Identity(), []
    torch_private.thread_values()[owner] = 1
    thread = threading.Thread(target=lambda: found.append(dict(torch_private.thread_values())))
    thread.start()
    thread.join()
    assert torch_private.thread_values()[owner] == 1
    assert found == [{}]


def test_torchs_state_has_a_reference_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch 2.13 it takes over its caller's, which is then given back twice."""
    stashed: list[weakref.ref[Any]] = []
    monkeypatch.setattr(torch._C, "_is_key_in_tls", lambda _: False)
    monkeypatch.setattr(
        torch._C, "_stash_obj_in_tls", lambda _, it: stashed.append(weakref.ref(it))
    )
    monkeypatch.setattr(torch._C, "_get_obj_in_tls", lambda _: stashed[-1]())
    thread = threading.Thread(target=torch_private.thread_values)
    thread.start()
    thread.join()
    gc.collect()
    assert stashed[0]() is not None


def test_a_reference_is_held_by_torch_as_it_is_here() -> None:
    owner, counts = nn.Identity(), []

    def work() -> None:
        torch_private.thread_values()[owner] = 1
        counts.append(sys.getrefcount(torch_private.thread_values()))
        gc.collect()
        counts.append(torch_private.thread_values()[owner])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert counts == [2, 1], "torch's own reference, and that of the call"


@pytest.mark.skipif(not hasattr(torch._C, "_remove_obj_from_tls"), reason="from torch 2.13 on")
def test_no_object_of_a_thread_outlives_what_join_waits_for() -> None:
    """Else a process that ends in the moment after `join` is aborted (torch's own words stand at
    `_remove_obj_from_tls` in torch/autograd/graph.py)."""
    found, late = [], threading.local()

    class Look:
        def __del__(self) -> None:
            found.append(torch._C._is_key_in_tls("lora_lab"))

    def work() -> None:
        torch_private.thread_values()
        found.append(torch._C._is_key_in_tls("lora_lab"))
        late.look = Look()  # let go of with the thread's other values, behind ours

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, False]


def test_a_module_with_other_tensors_in_the_place_of_its_parameters() -> None:
    table = nn.Embedding(4, 2)
    module = nn.Sequential(table, nn.Dropout(0.5), nn.Linear(2, 4, bias=False)).eval()
    module[2].weight = table.weight
    expected = module.double()(torch.arange(4)).detach()
    module.float()
    twin = torch_private.with_tensors(module, {table.weight: table.weight.double()})
    torch.testing.assert_close(twin(torch.arange(4)), expected, rtol=0, atol=0)
    assert not any(part.training for part in twin.modules())
    assert table.weight.dtype == torch.float32


def test_what_is_compiled_says_so() -> None:
    plain, in_place, forward = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    in_place.compile(backend="eager")
    forward.forward = torch.compile(forward.forward, backend="eager")
    assert not torch_private.is_compiled(plain)
    for module in (in_place, forward, torch.compile(plain, backend="eager")):
        assert torch_private.is_compiled(module)


def test_hooks_of_modules_and_of_tensors_are_found() -> None:
    layer = nn.Linear(2, 2)
    assert not any(map(torch_private.hooks_of, (layer, layer.weight)))
    for register in (
        layer.register_forward_pre_hook,
        layer.register_forward_hook,
        layer.register_full_backward_pre_hook,
        layer.register_full_backward_hook,
    ):
        handle = register(hook := lambda *_: None)
        assert torch_private.hooks_of(layer) == [hook]
        handle.remove()
        assert not torch_private.hooks_of(layer)
    layer.weight.register_hook(hook)
    assert torch_private.hooks_of(layer.weight) == [hook]


def test_a_hollow_tensor_has_a_shape_and_a_type() -> None:
    class Hollow(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, *_):
            raise TypeError(func)

    made = torch_private.hollow_tensor(Hollow, (1 << 40, 3), torch.empty(0, dtype=torch.bfloat16))
    assert (tuple(made.shape), made.dtype, type(made)) == ((1 << 40, 3), torch.bfloat16, Hollow)


def test_another_shape_is_no_view_to_autograd() -> None:
    x = torch.arange(6.0, requires_grad=True) * 1
    other = torch_private.in_shape(x, [2, 3])
    assert torch.equal(other, x.view(2, 3))
    assert not other._is_view()
    assert x.view(2, 3)._is_view()


def test_what_is_written_in_place_counts_and_what_goes_past_torch_does_not() -> None:
    weight = nn.Parameter(torch.zeros(3))
    before = torch_private.version_of(weight)
    with torch.no_grad():
        weight.mul_(2)
    weight.detach()[0].add_(1)
    assert torch_private.version_of(weight) == before + 2
    weight.data.mul_(2)
    weight.data = torch.ones(3)
    assert torch_private.version_of(weight) == before + 2


def test_a_default_device_is_among_the_modes_of_a_thread() -> None:
    assert not torch_private.has_function_modes()
    with torch.device("cpu"):
        assert torch_private.has_function_modes()
        found: list[bool] = []
        other = threading.Thread(target=lambda: found.append(torch_private.has_function_modes()))
        other.start()
        other.join()
        assert found == [False]
    assert not torch_private.has_function_modes()


def test_what_ddp_is_to_ignore_stands_where_torch_itself_would_put_it() -> None:
    plain, own, theirs = (nn.Linear(2, 2) for _ in range(3))
    torch_private.ignore_in_ddp(own, ["bias"])
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(theirs, ["bias"])
    added = vars(theirs).keys() - vars(plain).keys()
    assert added
    assert {name: vars(own)[name] for name in added} == {name: vars(theirs)[name] for name in added}
    torch_private.ignore_in_ddp(own, None)
    assert vars(own).keys() == vars(plain).keys()


def test_a_threads_state_holds_what_is_put_into_it():
    counts = []

    def put():
        torch_private.thread_values()  # takes ours out when the thread ends
        values = weakref.WeakKeyDictionary()
        before = sys.getrefcount(values)
        torch_private._stash(values)
        counts.append(sys.getrefcount(values) - before)

    thread = threading.Thread(target=put)
    thread.start()
    thread.join()
    assert counts == [1]
