"""Timing two implementations fairly: agreement first, then alternating runs, then medians."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from megalodon_core.bench.comparisons import TINY, Comparison, Size

_SEED = 20240412
_FLOAT64_TOLERANCE = 2e-5
_FLOAT32_TOLERANCE = 2e-4
_LEAST_PAIRS, _MOST_PAIRS = 3, 50

Call = Callable[[], list[Tensor]]


class DisagreementError(RuntimeError):
    """An operator and its peer compute different numbers, so their times mean nothing."""


@dataclass(frozen=True)
class Timing:
    """Median seconds of one call, and how many alternating pairs they come from."""

    ours: float
    peer: float
    pairs: int

    @property
    def ratio(self) -> float:
        """How many times as long the peer takes."""
        return self.peer / self.ours


@dataclass(frozen=True)
class Row:
    """One comparison at one size; `difference` is the largest relative difference of the timed results."""

    operator: str
    peer: str
    difference: float
    forward: Timing
    forward_backward: Timing | None


def measure(comparison: Comparison, size: Size, seconds: float) -> Row:
    """Check that both sides agree, at float64 on a tiny shape and here in float32; then time them.

    Each timing takes about `seconds`. Raises DisagreementError.
    """
    check(comparison)
    difference = agreement(comparison, size)
    passes = (False, True) if comparison.differentiable else (False,)
    timings = [time_pairs(*calls(comparison, size, backward), seconds) for backward in passes]
    return Row(
        comparison.operator,
        comparison.peer_name,
        difference,
        timings[0],
        timings[1] if len(timings) > 1 else None,
    )


def check(comparison: Comparison) -> float:
    """The largest relative difference between ours in float32 and the peer in float64, gradients included."""
    ours, peer = calls(comparison, TINY, comparison.differentiable, peer_dtype=torch.float64)
    return _compare(comparison, ours(), peer(), _FLOAT64_TOLERANCE)


def agreement(comparison: Comparison, size: Size) -> float:
    """The largest relative difference between both sides in float32 at this size, gradients included."""
    ours, peer = calls(comparison, size, comparison.differentiable)
    return _compare(comparison, ours(), peer(), _FLOAT32_TOLERANCE)


def calls(
    comparison: Comparison, size: Size, backward: bool, peer_dtype: torch.dtype = torch.float32
) -> tuple[Call, Call]:
    """Functions without arguments, ours and the peer's, that return outputs and, if asked, all gradients."""
    torch.manual_seed(_SEED)
    inputs = tuple(tensor.detach().requires_grad_(backward) for tensor in comparison.inputs(size))
    peer_inputs = tuple(tensor.detach().to(peer_dtype).requires_grad_(backward) for tensor in inputs)
    prepared = peer_inputs if backward else comparison.peer_inputs(*peer_inputs)
    ours, peer = comparison.ours(size), comparison.peer(size)
    with torch.no_grad():
        cotangents = [torch.randn_like(output) for output in _outputs(ours(*inputs))]
    return (
        lambda: _run(ours, inputs, cotangents if backward else None),
        lambda: _run(peer, prepared, [dy.to(peer_dtype) for dy in cotangents] if backward else None),
    )


def time_pairs(ours: Call, peer: Call, seconds: float) -> Timing:
    """Medians of alternating calls, after one of each to warm up, for about `seconds` in all."""
    ours()
    peer()
    samples: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(samples) < _LEAST_PAIRS or (
        len(samples) < _MOST_PAIRS and time.perf_counter() - begin < seconds
    ):
        samples.append((_seconds(ours), _seconds(peer)))
    return Timing(median(pair[0] for pair in samples), median(pair[1] for pair in samples), len(samples))


def _run(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    cotangents: list[Tensor] | None,
) -> list[Tensor]:
    if cotangents is None:
        with torch.no_grad():
            return _outputs(function(*inputs))
    outputs = _outputs(function(*inputs))
    gradients = torch.autograd.grad(outputs, inputs, cotangents)
    return [*(output.detach() for output in outputs), *gradients]


def _outputs(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _compare(comparison: Comparison, ours: list[Tensor], peer: list[Tensor], tolerance: float) -> float:
    """The largest relative difference (norms over each tensor) of corresponding tensors."""
    differences = [
        float(torch.linalg.vector_norm(a.double() - b.double()) / torch.linalg.vector_norm(b.double()))
        for a, b in zip(ours, peer, strict=True)
    ]
    largest = max(differences)
    if not largest <= tolerance:
        raise DisagreementError(
            f"{comparison.operator} and its peer ({comparison.peer_name}) differ by {largest:.1e}, "
            f"more than {tolerance:.0e}"
        )
    return largest
