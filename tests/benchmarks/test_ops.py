"""Every operator beside its plain PyTorch peer under pytest-benchmark.

    pytest tests/benchmarks --benchmark-only [--backend=cuda]

A group holds the two sides of one comparison, which have been compared before they are timed; on a GPU, from
launching a call to its end. `make bench` (`run.py`) and `make bench-cuda` (`run_cuda.py`) time them in turn
instead, beside floors and more peers.
"""

from __future__ import annotations

import pytest
import torch
from frontends import PLACE
from megalodon_core.bench import harness, timing
from megalodon_core.bench.operators import CASES, FULL
from run_cuda import BATCH, GPU_CASES

THREADS = 2


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def default_device():
    torch.set_default_device(PLACE.device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_PAUSE", 0)
        yield
    torch.set_default_device(None)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def compared(request):
    """A case and both its sides, found equal."""
    if PLACE.on_gpu and request.param.operator not in {case.operator for case in GPU_CASES}:
        pytest.skip("too little work for a GPU")
    size, dtype = (BATCH, torch.bfloat16) if PLACE.on_gpu else (FULL, torch.float32)
    makers = {"ours": harness.ours, "eager": harness.eager}
    return request.param, harness.compare(request.param, size, dtype, makers, torch.float32)


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("side", ["ours", "eager"])
def test_operator(benchmark, compared, side, training):
    case, sides = compared
    if training and not case.differentiable:
        pytest.skip("there is no gradient to a ready kernel")
    benchmark.group = f"{case.name} {'forward + backward' if training else 'forward'}"
    benchmark.pedantic(sides[side].samples[training], rounds=5, warmup_rounds=1)
