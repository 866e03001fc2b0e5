"""How many threads operators get, and that calls from several Python threads do not meet."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import megalodon_core.frontends.torch
import numpy as np
import pytest
import torch
from calls import OPERATORS, cotangents, example
from frontends import NUMPY, TORCH
from megalodon_core import _core, runtime
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


@pytest.mark.parametrize("count", [2.0, "2", None])
def test_what_is_no_number_of_threads(count):
    with pytest.raises(TypeError, match=r"set_num_threads: count: expected an integer, got"):
        runtime.set_num_threads(count)


def recording(given: list[int], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel`, which also notes how many threads it was given."""

    def recorded(allocate: Any, threads: int, *arguments: Any) -> Any:
        given.append(threads)
        return kernel(allocate, threads, *arguments)

    return recorded


@pytest.mark.parametrize("count", [1, 3])
def test_numpy_arrays_get_the_threads_of_the_runtime(count, monkeypatch):
    given: list[int] = []
    monkeypatch.setattr(_core, "rms_norm_forward", recording(given, _core.rms_norm_forward))
    with NUMPY.threads(count):
        NUMPY.forward(example("rms_norm", torch.float32))
    assert given == [count]


@pytest.mark.parametrize("count", [1, 3])
def test_torch_tensors_get_the_threads_of_torch(count, monkeypatch):
    given: list[int] = []
    frontend, call = megalodon_core.frontends.torch, megalodon_core.frontends.torch._call
    monkeypatch.setattr(
        frontend, "_call", lambda op, kernel, *rest: call(op, recording(given, kernel), *rest)
    )
    with TORCH.threads(count):
        TORCH.forward(example("rms_norm", torch.float32))
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
