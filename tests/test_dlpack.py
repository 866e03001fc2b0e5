"""Arrays of a framework that is known by DLPack alone: what they give is bitwise what torch's give."""

from __future__ import annotations

import other_framework
import pytest
import torch
from calls import OPERATORS, SEQUENCE_OPERATORS, Tokens, cotangents, example
from frontends import PLACE, TORCH, TORCH_EXPLICIT, Explicit
from megalodon_core import ops
from other_framework import Array
from tolerance import assert_bitwise_equal
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def current_device(monkeypatch):
    monkeypatch.setattr(other_framework, "current_device", PLACE.device or torch.device("cpu"))


def transposed(array: Array) -> Array:
    """Axes in the opposite order in memory."""
    reverse = tuple(reversed(range(array.tensor.ndim)))
    return Array(array.tensor.permute(reverse).contiguous().permute(reverse))


def to(x: Tensor) -> Array:
    return Array(PLACE.to(x.detach()))


OTHER = Explicit("other", to, lambda array: PLACE.back(array.tensor))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPERATORS)
def test_outputs_and_gradients(op, dtype):
    call = example(op, dtype)
    drawn = cotangents(TORCH.forward(call))
    expected, result = TORCH_EXPLICIT.run(call, drawn), OTHER.run(call, drawn)
    assert_bitwise_equal(result.outputs, expected.outputs)
    assert_bitwise_equal(result.gradients, expected.gradients)


@pytest.mark.parametrize("tokens", [Tokens(documents=(3, 0, 4)), Tokens(padded=True)], ids=str)
@pytest.mark.parametrize("op", SEQUENCE_OPERATORS)
def test_offsets_masks_and_strides(op, tokens):
    call = example(op, torch.float32, tokens=tokens)
    drawn = cotangents(TORCH.forward(call))
    expected, result = TORCH_EXPLICIT.run(call, drawn), OTHER.run(call, drawn, transposed)
    assert_bitwise_equal(result.outputs, expected.outputs)
    assert_bitwise_equal(result.gradients, expected.gradients)


def test_results_are_arrays_of_the_caller():
    x = to(torch.randn(3, 8))
    assert type(ops.rms_norm(x)) is Array
    gradients = ops.rms_norm.backward(x, x)
    assert type(gradients.x) is Array
    dy = ops.two_hop_residual.backward(x, x, x).residual
    assert torch.equal(dy.tensor, x.tensor)
    assert dy.tensor.data_ptr() != x.tensor.data_ptr()


def test_a_gpu_is_told_the_stream_and_the_cpu_none():
    other_framework.exported_to.clear()
    ops.rms_norm(to(torch.randn(3, 8)))
    assert set(other_framework.exported_to) == ({1, -1} if PLACE.on_gpu else {None})


def test_what_it_cannot_serve_is_named():
    x = to(torch.randn(3, 8))
    with pytest.raises(TypeError, match=r"rms_norm: x: expected one of float32.*, got torch\.int8"):
        ops.rms_norm(to(torch.ones(3, 8, dtype=torch.int8)))
    with pytest.raises(TypeError, match=r"silu_mul: value: expected other_framework\.Array like gate"):
        ops.silu_mul(x, x.tensor)
    with pytest.raises(ValueError, match="rms_norm: x: expected at most 8 axes, got 9"):
        ops.rms_norm(to(torch.ones([1] * 9)))
    with pytest.raises(TypeError, match="rms_norm: x: expected a NumPy array, a torch tensor or an array"):
        ops.rms_norm([1.0])


class Immutable:
    """A framework of arrays that are never written."""

    float32 = torch.float32

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> ImmutableArray:
        return ImmutableArray(torch.zeros(shape, dtype=dtype))


class ImmutableArray(Array):
    def __array_namespace__(self) -> type[Immutable]:
        return Immutable

    def __setitem__(self, key: object, value: Array) -> None:
        raise TypeError("never")


def test_arrays_that_cannot_be_written_are_refused():
    with pytest.raises(TypeError, match=r"rms_norm: x: expected .* be written.*, got test_dlpack\.Immutable"):
        ops.rms_norm(ImmutableArray(torch.ones(3, 8)))


class Elsewhere(Array):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (8, 3)


def test_devices_are_not_mixed(monkeypatch):
    x = to(torch.randn(3, 8))
    with pytest.raises(ValueError, match=r"rms_norm: x: expected an array on .*, got one on .* \(8, 3\)"):
        ops.rms_norm(Elsewhere(x.tensor))
    with pytest.raises(
        ValueError, match=r"rms_norm: weight: expected an array on .* the first, got \(8, 3\)"
    ):
        ops.rms_norm(x, ElsewhereLater(x.tensor[0]))
    monkeypatch.setattr(other_framework, "empty", lambda shape, dtype: Elsewhere(torch.empty(shape)))
    with pytest.raises(ValueError, match="rms_norm: expected arrays on the framework's current device"):
        ops.rms_norm(x)


class ElsewhereLater(Array):
    """An `Array` by its type's name and namespace, on another device."""

    __dlpack_device__ = Elsewhere.__dlpack_device__
