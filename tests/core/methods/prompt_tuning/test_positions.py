"""Where learned tokens stand, against lists put together by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_lab.methods.prompt_tuning.positions import Layout, find_layout

# (pads on the left, prompt, completion, pads on the right), of 9 places each
ROWS = [(0, 5, 4, 0), (2, 3, 4, 0), (0, 3, 2, 4), (1, 1, 5, 2), (3, 6, 0, 0), (0, 0, 6, 3)]
PREFIX, INFIX = 3, 2
LENGTHS = [(3, 2), (3, 0), (0, 2), (1, 1)]


def masks() -> Tensor:
    return torch.tensor([[0] * a + [1] * (b + c) + [0] * d for a, b, c, d in ROWS])


def labels() -> Tensor:
    return torch.tensor([[-100] * (a + b) + [7] * c + [-100] * d for a, b, c, d in ROWS])


def layout(prefix: int, infix: int) -> Layout:
    return find_layout(masks(), prefix, infix, masks(), labels())


def with_tokens(row: list[int], at: tuple[int, ...], prefix: list[int], infix: list[int]) -> list:
    left, prompt = at[0], at[0] + at[1]
    return row[:left] + prefix + row[left:prompt] + infix + row[prompt:]


@pytest.mark.parametrize(("prefix", "infix"), LENGTHS)
def test_tokens_stand_around_each_rows_own_prompt(prefix: int, infix: int) -> None:
    values = torch.randint(100, (len(ROWS), 9))
    where = layout(prefix, infix)
    learned = torch.arange(1000, 1000 + prefix + infix)
    placed = where.placed(where.lengthened(values[..., None]), learned[:, None])[..., 0]
    own = learned.tolist()
    expected = [
        with_tokens(row, at, own[:prefix], own[prefix:])
        for row, at in zip(values.tolist(), ROWS, strict=True)
    ]
    assert placed.tolist() == expected


@pytest.mark.parametrize(("prefix", "infix"), LENGTHS)
def test_learned_tokens_are_attended_to(prefix: int, infix: int) -> None:
    expected = [
        with_tokens(row, at, [1] * prefix, [1] * infix)
        for row, at in zip(masks().tolist(), ROWS, strict=True)
    ]
    assert layout(prefix, infix).mask(masks()).tolist() == expected
    assert layout(prefix, infix).mask(masks().bool()).dtype == torch.bool


@pytest.mark.parametrize(("prefix", "infix"), LENGTHS)
def test_positions_go_on_without_a_gap(prefix: int, infix: int) -> None:
    """As transformers counts them: 0 at a row's first token, whatever pads stand before it."""
    positions = (masks().cumsum(1) - 1).clamp(min=0)
    where = layout(prefix, infix)
    longer = where.mask(masks())
    expected = longer.cumsum(1) - 1
    assert torch.equal(where.positions(positions)[longer == 1], expected[longer == 1])


def test_positions_for_all_rows_at_once() -> None:
    where = find_layout(torch.zeros(2, 4), PREFIX, INFIX)
    assert where.positions(torch.arange(4)[None]).tolist() == [list(range(9))] * 2


@pytest.mark.parametrize(("prefix", "infix"), LENGTHS)
def test_stripping_gives_back_what_was_lengthened(prefix: int, infix: int) -> None:
    values = torch.randn(len(ROWS), 9, 4)
    where = layout(prefix, infix)
    assert torch.equal(where.stripped(where.lengthened(values), causal=False), values)


def test_the_prompts_last_place_is_read_at_the_last_infix_token() -> None:
    where = layout(PREFIX, INFIX)
    slots = torch.arange(9 + PREFIX + INFIX).expand(len(ROWS), -1)[..., None]
    stripped = where.stripped(slots, causal=True)[..., 0]
    for row, (left, prompt, _, _) in zip(stripped.tolist(), ROWS, strict=True):
        expected = [*range(left), *range(left + PREFIX, left + PREFIX + prompt)]
        end = left + PREFIX + prompt + INFIX
        expected += range(end, 9 + PREFIX + INFIX)
        if left + prompt:  # with no place in front of the completion nothing predicts its first
            expected[left + prompt - 1] = end - 1
        assert row == expected


def test_without_labels_all_of_a_row_is_prompt() -> None:
    where = find_layout(masks(), PREFIX, INFIX, masks())
    assert where.start[:, 0].tolist() == [a for a, *_ in ROWS]
    assert where.end[:, 0].tolist() == [a + b + c for a, b, c, _ in ROWS]
    ignored = torch.full((len(ROWS), 9), -100)
    assert torch.equal(find_layout(masks(), PREFIX, INFIX, masks(), ignored).end, where.end)


def test_without_a_mask_nothing_is_padding() -> None:
    where = find_layout(torch.zeros(2, 7, 4), PREFIX, INFIX)
    assert (where.start.tolist(), where.end.tolist()) == ([[0], [0]], [[7], [7]])


def test_a_row_of_pads_only_is_no_error() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    where = find_layout(mask, PREFIX, INFIX, mask)
    assert where.stripped(where.lengthened(mask[..., None]), causal=True)[0].tolist() == [
        [1]
    ] * 2 + [[0]]


def test_gradients_reach_the_learned_vectors_of_all_rows() -> None:
    learned = torch.randn(PREFIX + INFIX, 4, dtype=torch.float64, requires_grad=True)
    words = torch.randn(len(ROWS), 9, 4, dtype=torch.float64, requires_grad=True)
    where = layout(PREFIX, INFIX)
    placed = where.placed(where.lengthened(words), learned)
    weights = torch.randn_like(placed)
    (placed * weights).sum().backward()
    assert learned.grad is not None
    assert words.grad is not None
    own = weights.gather(1, where.slots()[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(learned.grad, own.sum(0))
    torch.testing.assert_close(words.grad, where.stripped(weights, causal=False))


def test_it_works_on_fake_tensors() -> None:
    with FakeTensorMode():
        mask = torch.ones(2, 5, dtype=torch.int64)
        where = find_layout(mask, PREFIX, INFIX, mask, mask)
        placed = where.placed(where.lengthened(torch.ones(2, 5, 4)), torch.ones(5, 4))
        assert where.stripped(placed, causal=True).shape == (2, 5, 4)
        assert where.positions(mask).shape == where.mask(mask).shape == (2, 10)
