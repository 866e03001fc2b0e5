"""torch's own attention, one backend at a time: as peers of the operators, and inside the LLaMA layer.

None of torch's fused backends takes values wider than 256. Where one refuses the shape, values go in slices
of the keys' width, each slice a head with the same queries and keys, as one would do it by hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from megalodon_core.bench import peers
from megalodon_core.bench.harness import MakeSide, Side, torch_side
from megalodon_core.bench.operators import Case, Size, Tensors
from torch import OutOfMemoryError, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
NO_KERNEL = ("No available kernel", "No viable backend")
"""What torch says on a GPU and on the CPU."""


def under(backend: SDPBackend, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with no other attention than the backend's."""

    def forced(*arguments: Any) -> Any:
        with sdpa_kernel(backend):
            return function(*arguments)

    return forced


def accepts(run: Callable[[], object]) -> bool:
    """Whether a first run finds a kernel and memory."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of every backend that refuses, and why
            run()
    except OutOfMemoryError:
        return False
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_KERNEL):
            raise
        return False
    return True


def that_fits(make: MakeSide) -> MakeSide:
    """The peer where it finds a kernel and memory, None elsewhere."""

    def made(case: Case, size: Size, inputs: Tensors, cotangents: Tensors) -> Side | None:
        side = make(case, size, inputs, cotangents)
        return side if side is not None and accepts(side.results) else None

    return made


def by_slices(q: Tensor, k: Tensor, v: Tensor, *, chunk_size: int) -> Tensor:
    """`peers.chunk_attention` with the values in slices as wide as the keys."""
    slices = v.shape[-1] // q.shape[-1]
    q, k = (t.repeat_interleave(slices, dim=2) for t in (q, k))
    heads = v.unflatten(-1, (slices, -1)).flatten(2, 3)
    y = peers.chunk_attention(q, k, heads, chunk_size=chunk_size)
    return y.unflatten(2, (-1, slices)).flatten(-2)


def _peers_of(case: Case, size: Size) -> list[Callable[..., Tensor]]:
    if case.operator == "chunk_attention":
        return [case.peer(size), partial(by_slices, chunk_size=size.chunk_size)]
    if case.operator == "normalized_attention":
        sliced = partial(peers.normalized_attention, chunk_size=size.chunk_size, attention=by_slices)
        return [case.peer(size), sliced]
    return []


def side_of(backend: SDPBackend) -> MakeSide:
    """The peer of an attention operator through this backend; None where it accepts the shape in no form."""

    def make(case: Case, size: Size, inputs: Tensors, cotangents: Tensors) -> Side | None:
        for function in _peers_of(case, size):
            side = torch_side(under(backend, function), inputs, cotangents, case.differentiable)
            if accepts(side.results):
                return side
        return None

    return make
