"""Every operator beside its plain PyTorch peer under pytest-benchmark.

    pytest tests/benchmarks --benchmark-only

A group holds the two sides of one comparison, which have been compared before they are timed. `make bench`
(`run.py`) times them in turn instead, beside floors and more peers.
"""

from __future__ import annotations

import pytest
import torch
from megalodon_core.bench import harness
from megalodon_core.bench.operators import CASES, FULL

THREADS = 2


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def compared(request):
    """A case and both its sides, found equal."""
    makers = {"ours": harness.ours, "eager": harness.eager}
    return request.param, harness.compare(request.param, FULL, torch.float32, makers, torch.float32)


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("side", ["ours", "eager"])
def test_operator(benchmark, compared, side, training):
    case, sides = compared
    if training and not case.differentiable:
        pytest.skip("there is no gradient to a ready kernel")
    benchmark.group = f"{case.name} {'forward + backward' if training else 'forward'}"
    benchmark.pedantic(sides[side].samples[training], rounds=5, warmup_rounds=1)
