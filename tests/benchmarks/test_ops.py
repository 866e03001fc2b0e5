"""Every operator beside its plain PyTorch peer under pytest-benchmark; run by `make bench`.

A group holds the two sides of one comparison. Each is compared with the other before it is timed.
"""

from __future__ import annotations

import pytest
import torch
from megalodon_core.bench import harness
from megalodon_core.bench.comparisons import COMPARISONS, FULL, Comparison

THREADS = 2


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def agreed():
    """`agreed(comparison)` compares both sides once, however many benchmarks ask."""
    seen: set[Comparison] = set()

    def compare_once(comparison: Comparison) -> None:
        if comparison not in seen:
            harness.check(comparison)
            harness.agreement(comparison, FULL)
            seen.add(comparison)

    return compare_once


def _name(comparison: Comparison) -> str:
    return f"{comparison.operator} / {comparison.peer_name}"


CASES = [
    pytest.param(
        comparison, backward, id=f"{_name(comparison)} {'forward+backward' if backward else 'forward'}"
    )
    for comparison in COMPARISONS
    for backward in ((False, True) if comparison.differentiable else (False,))
]


@pytest.mark.parametrize("side", ["ours", "peer"])
@pytest.mark.parametrize(("comparison", "backward"), CASES)
def test_operator(benchmark, agreed, comparison, backward, side):
    agreed(comparison)
    benchmark.group = f"{_name(comparison)} {'forward+backward' if backward else 'forward'}"
    ours, peer = harness.calls(comparison, FULL, backward)
    benchmark.pedantic(ours if side == "ours" else peer, rounds=5, warmup_rounds=1)


def test_cema_beside_a_convolution_with_its_kernel_given(benchmark, agreed, capsys):
    """B=1, L=4096, D=1024, N=16, float32, 2 threads; the peer's spectrum is built beforehand."""
    comparison = COMPARISONS[0]
    agreed(comparison)
    ours, peer = harness.calls(comparison, FULL, backward=False)
    timing = harness.time_pairs(ours, peer, seconds=4.0)
    benchmark.extra_info["ratio"] = timing.ratio
    benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
    with capsys.disabled():
        print(
            f"\ncema forward {timing.ours * 1e3:.2f} ms, FFT convolution {timing.peer * 1e3:.2f} ms", end=""
        )
        print(f" with its kernel given: {timing.ratio:.1f}x ({timing.pairs} alternating pairs)")
