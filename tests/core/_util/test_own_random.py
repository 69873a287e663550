"""Random numbers of one's own are those of torch's global generator, seeded alike, and leave it."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lora_lab._util import own_random
from lora_lab._util.own_random import OwnRandom, native_dropout, seeded
from lora_lab.errors import RunError

X = torch.linspace(-1, 1, 64 * 32).reshape(64, 32)
X4 = X.reshape(1, 4, 16, 32)


def known() -> list[Tensor]:
    """Draws in functions that are known to draw."""
    return [
        F.dropout(X, 0.3), F.dropout(X, 1.0), F.dropout(X * 1, 0.2, True, True), F.dropout(X, 0.0),
        F.dropout(X, 0.5, False), nn.Dropout(0.4)(X), torch.native_dropout(X, 0.2, True)[0],
        F.scaled_dot_product_attention(X4, X4, X4, dropout_p=0.4), F.dropout1d(X4[0], 0.5),
        F.alpha_dropout(X, 0.2), F.gumbel_softmax(X), torch.rand(5), torch.randn(20),
        torch.randint(0, 9, (4,)), torch.randperm(10), torch.rand_like(X), torch.randn_like(X),
        torch.bernoulli(torch.full((9,), 0.5)), torch.multinomial(torch.ones(9), 4),
        torch.empty(50).normal_(), torch.empty(5).uniform_(), torch.empty(4).exponential_(),
    ]  # fmt: skip


def others() -> list[Tensor]:
    """Draws within functions that nobody has named."""
    return [
        nn.init.kaiming_uniform_(torch.empty(3, 4)), nn.init.trunc_normal_(torch.empty(30)),
        torch.ops.aten.bernoulli.p(X, 0.5), nn.Linear(3, 3).weight.detach(),
        nn.LSTM(4, 4, 2, dropout=0.5)(torch.ones(3, 2, 4))[0].detach(),
    ]  # fmt: skip


def globally(seed: int, *draws: Any) -> tuple[list[Tensor], Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [tensor for draw in draws for tensor in draw()], torch.get_rng_state()


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(one, other), i


def test_whatever_draws_in_a_seeded_block_draws_from_the_seed():
    before = torch.get_rng_state()
    with seeded(7):
        found = known() + others()
    assert torch.equal(torch.get_rng_state(), before)
    same(found, globally(7, known, others)[0])


@pytest.mark.parametrize("draws", [known, others])
def test_every_pass_goes_on_where_the_one_before_ended(draws):
    before = torch.get_rng_state()
    random, weight, found = OwnRandom(7), torch.ones(1, requires_grad=True), []
    for _ in range(3):
        with random.forward():
            found += draws()
        torch.rand(1)  # somebody else's
        random.backward(weight.sum())
    torch.set_rng_state(before)
    expected, end = globally(7, draws, draws, draws)
    same(found, expected)
    assert torch.equal(random.state()["cpu"], end)


def test_a_state_is_gone_on_from():
    first, second = OwnRandom(7), OwnRandom(8)
    with first.everywhere():
        torch.rand(3)
    second.set_state({**first.state(), "cuda:9": torch.zeros(1)})
    with first.everywhere():
        expected = torch.rand(3)
    with second.everywhere():
        assert torch.equal(torch.rand(3), expected)


def on_cpu(monkeypatch):
    """Have generators of any device be the CPU's."""
    make = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda _="cpu": make())


def test_a_second_device_goes_on_from_its_state_though_it_draws_later(monkeypatch):
    on_cpu(monkeypatch)
    other = torch.device("cuda", 1)
    first, second = OwnRandom(7, torch.device("cuda", 0)), OwnRandom(7, torch.device("cuda", 0))
    torch.rand(3, generator=first.generator(other))
    state = first.state()
    assert state.keys() == {"cpu", "cuda", "cuda:1"}
    second.set_state(state)  # nothing of it has run on the second device yet
    assert torch.equal(second.state()["cuda:1"], state["cuda:1"])
    expected = torch.rand(5, generator=first.generator(other))
    assert torch.equal(torch.rand(5, generator=second.generator(other)), expected)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("breaks", [False, True])
def test_a_devices_global_generator_is_as_it_was_after_a_kernel_that_knows_no_other(
    monkeypatch, kind, breaks
):
    """`seeded` and a run's passes: what takes no generator is launched with the global one."""
    on_cpu(monkeypatch)
    device = torch.device(kind, 1 if kind == "cuda" else 0)
    theirs = {i: torch.Generator().manual_seed(i) for i in (0, 1)}
    before = {i: one.get_state() for i, one in theirs.items()}

    def index(where):  # MPS has one device, and its functions take none
        assert len(where) == (kind == "cuda")
        return where[0].index if where else 0

    module = SimpleNamespace(
        get_rng_state=lambda *where: theirs[index(where)].get_state(),
        set_rng_state=lambda state, *where: theirs[index(where)].set_state(state),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)

    def kernel():
        if breaks:
            raise RuntimeError("out of memory")
        return torch.rand(3, generator=theirs[device.index])

    random = OwnRandom(7, torch.device("cuda", 0))
    with pytest.raises(RuntimeError) if breaks else contextlib.nullcontext():
        found = own_random._swapped(kernel, device, random.generator(device))
        assert torch.equal(found, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert all(torch.equal(theirs[i].get_state(), state) for i, state in before.items())


def test_dropout_that_is_computed_again_by_foreign_code_is_refused():
    random, x = OwnRandom(7), X.clone().requires_grad_()
    with random.forward():
        y: Any = checkpoint(lambda x: F.dropout(x, 0.5) * x, x, use_reentrant=False)
    with pytest.raises(RunError, match="by checkpointing that is not transformers' own"):
        random.backward(y.sum())


def ours() -> list[Tensor]:
    """Draws in layers of our own."""
    return [*native_dropout(X, 0.2), *native_dropout(X.double(), 0.7), *native_dropout(X, 1.0)]


def torchs() -> list[Tensor]:
    return [
        *torch.native_dropout(X, 0.2, True), *torch.native_dropout(X.double(), 0.7, True),
        *torch.native_dropout(X, 1.0, True),
    ]  # fmt: skip


@pytest.mark.parametrize("others", [[], [known], [known, others]])
def test_layers_of_our_own_draw_where_torchs_would_whoever_draws_beside_them(others, monkeypatch):
    before, random, looks = torch.get_rng_state(), OwnRandom(7), []
    weight, found = torch.ones(1, requires_grad=True), []

    class Counted(own_random._KnownFunctions):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            looks.append(arguments)

    monkeypatch.setattr(own_random, "_KnownFunctions", Counted)
    for _ in range(3):
        with random.forward():
            found += [t for draw in (ours, *others, ours) for t in draw()]
        random.backward(weight.sum())
    assert torch.equal(torch.get_rng_state(), before)
    expected, end = globally(7, *[torchs, *others, torchs] * 3)
    same(found, expected)
    assert torch.equal(random.state()["cpu"], end)
    assert len(looks) == (4 if others else 2), "the first pass alone needs a look, forth and back"


def test_layers_of_our_own_draw_from_whoever_is_innermost_and_elsewhere_from_torch():
    random = OwnRandom(7)
    with random.forward(), seeded(9):
        (found, _) = native_dropout(X, 0.5)
    assert torch.equal(found, globally(9, lambda: torch.native_dropout(X, 0.5, True))[0][0])
    expected = globally(3, torchs)[0]
    with random.forward(), torch.random.fork_rng():
        torch.manual_seed(3)
        elsewhere: list[list[Tensor]] = []
        thread = threading.Thread(target=lambda: elsewhere.append(ours()))
        thread.start()
        thread.join()
    same(elsewhere[0], expected)
    assert torch.equal(random.state()["cpu"], OwnRandom(7).state()["cpu"])


def test_dropout_of_our_own_that_is_computed_again_by_foreign_code_is_refused():
    random, x = OwnRandom(7), X.clone().requires_grad_()
    with random.forward():
        y: Any = checkpoint(lambda x: native_dropout(x, 0.5)[0] * x, x, use_reentrant=False)
    with pytest.raises(RunError, match="by checkpointing that is not transformers' own"):
        random.backward(y.sum())


LOWER = torch.ones(16, 16, dtype=torch.bool).tril()


@pytest.mark.parametrize("mask", ["none", "causal", "of bits", "of numbers"])
def test_attention_without_dropout_draws_nothing(mask, monkeypatch):
    """A mask has the kernel called without its `dropout_p`, whose default is 0."""
    options: dict[str, Any] = {
        "none": {},
        "causal": {"is_causal": True},
        "of bits": {"attn_mask": LOWER},
        "of numbers": {"attn_mask": torch.zeros(16, 16)},
    }[mask]
    random, x = OwnRandom(0), X4.clone().requires_grad_()
    for step in range(3):
        if step == 2:  # nobody looks at operations any more
            monkeypatch.setattr(own_random, "_AnyOperation", None)
            monkeypatch.setattr(own_random, "_KnownFunctions", None)
        with random.forward():
            loss = F.scaled_dot_product_attention(x, x, x, **options).sum()
        random.backward(loss)


def test_attention_with_dropout_still_draws_from_here():
    expected, _ = globally(3, lambda: [F.scaled_dot_product_attention(X4, X4, X4, LOWER, 0.4)])
    before = torch.get_rng_state()
    random = OwnRandom(3)
    with random.forward():
        found = F.scaled_dot_product_attention(X4, X4, X4, LOWER, 0.4)
    same([found], expected)
    assert torch.equal(torch.get_rng_state(), before)
