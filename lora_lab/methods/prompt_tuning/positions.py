"""Where learned tokens stand in a batch: pure functions of tensors, no model.

A row is pads, prompt, completion, pads; any of the four may be empty. The l_p prefix tokens go in
front of its first token, behind the pads on the left, and the l_i infix tokens behind the prompt's
last. So every row's tokens stay one piece, as if it had no pads, which also suits models whose
attention looks at slots and not at position ids (relative positions, sliding windows, MPT's
ALiBi). Rows of one batch may differ.

Nothing here waits for the device, and all of it works on fake tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # the label of what is no completion


@dataclass(frozen=True)
class Layout:
    """Where the learned tokens stand among a batch's others.

    Attributes:
        start: int64 of shape (batch, 1); the place of each row's first token: its pads on the left.
        end: int64 of shape (batch, 1); the place behind each row's prompt.
        prefix: l_p.
        infix: l_i.
    """

    start: Tensor
    end: Tensor
    prefix: int
    infix: int

    @property
    def tokens(self) -> int:
        """l_p + l_i."""
        return self.prefix + self.infix

    def slots(self) -> Tensor:
        """Return the learned tokens' slots in the longer sequence, int64 (batch, l_p + l_i)."""
        number = torch.arange(self.tokens, device=self.start.device)
        return number + torch.where(number < self.prefix, self.start, self.end)

    def lengthened(self, x: Tensor) -> Tensor:
        """Return x with a copy of a neighboring token's in every learned slot.

        Args:
            x: (batch, length, …).

        Returns:
            (batch, length + l_p + l_i, …).
        """
        index, _ = self._sources(x.shape[1])
        return _picked(x, index)

    def placed(self, x: Tensor, learned: Tensor) -> Tensor:
        """Return a copy of x with the learned vectors in their slots.

        Args:
            x: (batch, length + l_p + l_i, width).
            learned: (l_p + l_i, width); cast to x's dtype, as A and B are. What enters a block
                may be on the device of the block before.
        """
        index = self.slots().to(x.device)[..., None].expand(-1, -1, x.shape[-1])
        return x.scatter(1, index, learned.to(x).expand(x.shape[0], -1, -1))

    def mask(self, mask: Tensor) -> Tensor:
        """Return an attention mask (batch, length) with ones for the learned tokens."""
        return self.lengthened(mask).scatter(1, self.slots().to(mask.device), 1)

    def positions(self, positions: Tensor) -> Tensor:
        """Return position ids that count the learned tokens.

        Args:
            positions: (batch or 1, length).
        """
        index, place = self._sources(positions.shape[1])
        more = (place - index).to(positions.device)
        return _picked(positions.expand(index.shape[0], -1), index) + more

    def stripped(self, x: Tensor, causal: bool) -> Tensor:
        """Return x without the learned slots.

        Args:
            x: (batch, length + l_p + l_i, width).
            causal: the completion's first token is predicted by what stands in front of it: the
                last infix token, whose vector the prompt's last place gets.

        Returns:
            (batch, length, width).
        """
        place = torch.arange(x.shape[1] - self.tokens, device=self.start.device)
        slot = place + self.prefix * (place >= self.start) + self.infix * (place >= self.end)
        if causal:
            slot = torch.where(place == self.end - 1, self.end + self.tokens - 1, slot)
        return _picked(x, slot)

    def _sources(self, length: int) -> tuple[Tensor, Tensor]:
        """Return for every slot the place of its token, or a learned one's neighbor; and slots."""
        slot = torch.arange(length + self.tokens, device=self.start.device)
        before = (slot - self.start).clamp(0, self.prefix)
        behind = (slot - self.end - self.prefix + 1).clamp(0, self.infix)
        return (slot - before - behind).clamp(0, length - 1), slot


def find_layout(
    like: Tensor,
    prefix: int,
    infix: int,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> Layout:
    """Return the layout of a batch.

    Args:
        like: (batch, length, …), for sizes and device.
        prefix: l_p.
        infix: l_i.
        mask: (batch, length), 0 on pads; None: there are none.
        labels: (batch, length), -100 up to the completion: the prompt ends where they begin. None,
            or a row of -100 only: all of the row is prompt.
    """
    rows, length = like.shape[:2]
    if mask is None:
        start = torch.zeros(rows, 1, dtype=torch.int64, device=like.device)
        end = start + length
    else:
        kept = mask.to(like.device) != 0
        start = _leading(~kept)
        end = torch.maximum(length - _leading(~kept.flip(1)), start)
    if labels is not None:
        begin = _leading(labels == IGNORED)
        end = torch.where(begin < length, torch.maximum(begin, start), end)
    return Layout(start, end, prefix, infix)


def _leading(true: Tensor) -> Tensor:
    """Return how many of each row's first entries are true, (batch, 1)."""
    return true.long().cumprod(1).sum(1, keepdim=True)


def _picked(x: Tensor, index: Tensor) -> Tensor:
    """Return x[b, index[b, t], …], of the shape (batch, slots, …)."""
    more = x.dim() - 2
    index = index.to(x.device).reshape(*index.shape, *(1,) * more).expand(-1, -1, *x.shape[2:])
    return x.gather(1, index)
