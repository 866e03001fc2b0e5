"""What a model remembers between two pieces of a stream. Its size does not depend on how much was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megalodon_core.ops import ChunkAttentionState, TimestepNormState


class LayerState(NamedTuple):
    """State of one block for R rows (batch rows, or packed documents), float32 (float64) and int64.

    timestep_norm: running count (R,), mean (R, G) and variance (R, G) of the block's input.
    cema: complex EMA state (R, D, N, 2).
    attention: rotated keys, values and length of the unfinished chunk, at most chunk_size - 1 positions.
    """

    timestep_norm: TimestepNormState
    cema: Tensor
    attention: ChunkAttentionState


class MegalodonState(NamedTuple):
    """State of a whole model: one `LayerState` per block, and the statistics of the final norm.

    Returned by `Megalodon.forward` and accepted by it. Gradients flow through it; `detach` cuts them, as
    truncated back-propagation through time wants.
    """

    layers: tuple[LayerState, ...]
    final_norm: TimestepNormState

    @property
    def num_rows(self) -> int:
        """Batch rows, or packed documents, that this state remembers."""
        rows: int = self.final_norm.count.shape[0]
        return rows

    @property
    def nbytes(self) -> int:
        """Bytes held by all tensors of the state."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of the state, in a fixed order."""
        return _leaves(self)

    def map(self, fn: Callable[[Tensor], Tensor]) -> MegalodonState:
        """The same structure with `fn` applied to every tensor."""
        mapped: MegalodonState = _map(fn, self)
        return mapped

    def detach(self) -> MegalodonState:
        """The same values, cut off from the graph that computed them."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> MegalodonState:
        """The same values on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def select(self, rows: Tensor | Sequence[int]) -> MegalodonState:
        """The state of the given rows, in the given order; a row may be taken more than once."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.final_norm.count.device)
        return self.map(lambda tensor: tensor.index_select(0, index))


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    else:
        for part in tree:
            yield from _leaves(part)


def _map(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return fn(tree)
    parts = [_map(fn, part) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
