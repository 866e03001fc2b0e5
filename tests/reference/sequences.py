"""What packing and padding mean: an operator sees a list of independent sequences of unpadded tokens."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def sequences(x: Tensor, cu_seqlens: Tensor | None, padding_mask: Tensor | None) -> list[tuple[int, Tensor]]:
    """The sequences in `x (B, L, ...)`, each as (batch index, positions of its tokens in time).

    >>> sequences(torch.zeros(1, 5), torch.tensor([0, 2, 2, 5]), None)
    [(0, tensor([0, 1])), (0, tensor([], dtype=torch.int64)), (0, tensor([2, 3, 4]))]
    """
    batch, length = x.shape[:2]
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        return [(0, torch.arange(begin, end)) for begin, end in pairwise(bounds)]
    if padding_mask is not None:
        return [(b, torch.nonzero(~padding_mask[b]).flatten()) for b in range(batch)]
    return [(b, torch.arange(length)) for b in range(batch)]
