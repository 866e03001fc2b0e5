"""How many threads operators get, and that calls from several Python threads do not meet."""

from __future__ import annotations

import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from calls import OPERATORS, cotangents, example
from frontends import NUMPY, TORCH
from megalodon_core import ops, runtime
from megalodon_core.spec import Kernels
from tolerance import assert_bitwise_equal


@pytest.fixture(autouse=True)
def _restored():
    before = runtime.num_threads()
    yield
    runtime.set_num_threads(before)


def test_what_is_set_is_used():
    for count in (1, 3, np.int64(2), 1024):
        runtime.set_num_threads(count)
        assert runtime.num_threads() == count


@pytest.mark.parametrize("count", [0, -1, 1025, 2**70])
def test_an_impossible_number_of_threads(count):
    before = runtime.num_threads()
    with pytest.raises(ValueError, match=r"set_num_threads: count: expected an integer in \[1, 1024\], got"):
        runtime.set_num_threads(count)
    assert runtime.num_threads() == before


FAULTS = """
import resource, sys
import torch
from megalodon_core import runtime
assert sys.argv[1] != "keep" or runtime.keep_freed_memory()
for _ in range(24):  # 40 MiB each
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_freed_memory_is_kept():
    """Large tensors, one after the other, soon need no new pages; without the call each of them does."""
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how], text=True))
        for how in ("keep", "return")
    }
    assert faults["keep"] < 1000 < faults["return"]


@pytest.mark.parametrize("count", [2.0, "2", None])
def test_what_is_no_number_of_threads(count):
    with pytest.raises(TypeError, match=r"set_num_threads: count: expected an integer, got"):
        runtime.set_num_threads(count)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("frontend", [NUMPY, TORCH], ids=lambda frontend: frontend.name)
def test_kernels_get_the_threads_of_the_framework(frontend, count, monkeypatch):
    """NumPy arrays those of the runtime, torch tensors those of torch."""
    given: list[int] = []
    spec = ops.rms_norm.spec
    forward, backward = spec.kernels

    def recorded(core_frontend: Any, threads: int, *arguments: Any) -> Any:
        given.append(threads)
        return forward(core_frontend, threads, *arguments)

    monkeypatch.setitem(vars(spec), "kernels", Kernels(recorded, backward))
    with frontend.threads(count):
        frontend.forward(example("rms_norm", torch.float32))
    assert given == [count]


@pytest.mark.parametrize("op", OPERATORS)
def test_calls_from_several_python_threads(op):
    """Kernels run without the GIL and share nothing."""
    calls = [example(op, torch.float32, seed=seed) for seed in range(8)]
    drawn = [cotangents(NUMPY.forward(call)) for call in calls]
    expected = [NUMPY.run(*pair) for pair in zip(calls, drawn, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(NUMPY.run, calls, drawn))
    for result, one in zip(results, expected, strict=True):
        assert_bitwise_equal(result.outputs, one.outputs)
        assert_bitwise_equal(result.gradients, one.gradients)
