"""CuPy's arrays: the same values as torch's, in the order of CuPy's streams."""

from __future__ import annotations

import pytest
import torch
from calls import OPERATORS, Call, cotangents, example
from cuda_device import on
from frontends import Explicit
from megalodon_core import ops
from tolerance import assert_bitwise_equal
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.float16]


@pytest.fixture(scope="module")
def cupy(gpu):
    return pytest.importorskip("cupy")


@pytest.fixture(scope="module")
def frontend(cupy):
    def to(x: Tensor):
        return cupy.asarray(x.detach().cpu().numpy())

    def back(array) -> Tensor:
        assert type(array) is cupy.ndarray
        return torch.from_numpy(cupy.asnumpy(array))

    return Explicit("cupy", to, back, after=lambda: None)


@pytest.fixture(scope="module")
def by_torch(gpu):
    return on(gpu)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPERATORS)
def test_outputs_and_gradients(op, dtype, frontend, by_torch):
    call = example(op, dtype)
    drawn = cotangents(by_torch.forward(call))
    expected, result = by_torch.run(call, drawn), frontend.run(call, drawn)
    assert_bitwise_equal(result.outputs, expected.outputs)
    assert_bitwise_equal(result.gradients, expected.gradients)


def test_strides(cupy):
    x = cupy.random.standard_normal((4, 6, 8), dtype=cupy.float32)
    expected = ops.rms_norm(x)
    for layout in (cupy.asfortranarray(x), cupy.flip(cupy.ascontiguousarray(cupy.flip(x)))):
        assert (ops.rms_norm(layout) == expected).all()


def test_streams_are_followed(cupy):
    """Inputs are made late on a stream of CuPy's, outputs are read on it."""
    x = cupy.random.standard_normal((2000, 2048), dtype=cupy.float32)
    expected = ops.rms_norm(x)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        late = cupy.full_like(x, cupy.nan)
        a = cupy.random.standard_normal((4096, 4096), dtype=cupy.float32)
        for _ in range(20):
            a = a @ a
            a /= cupy.abs(a).max()
        late[...] = x
        y = ops.rms_norm(late)
        doubled = 2 * y
        stream.synchronize()
    assert (doubled == 2 * expected).all()


def test_a_donated_state_is_updated_in_place(frontend, cupy):
    call: Call = example("normalized_attention", torch.float32, chunk_size=5, capacity=4)
    arguments = call.arguments(frontend.to)
    expected, state = ops.normalized_attention(**arguments)
    y, donated = ops.normalized_attention(**arguments, donate_state=True)
    assert (y == expected).all()
    for part, given, other in zip(donated[:2], arguments["initial_state"][:2], state[:2], strict=True):
        assert part.data.ptr == given.data.ptr
        assert (given == other).all()
