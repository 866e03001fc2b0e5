"""Arrays are read through any strides, and a call changes none of them."""

import numpy as np
import pytest
import torch
from calls import OPERATORS, cotangents, example
from frontends import NUMPY, TORCH
from hypothesis import given
from hypothesis import strategies as st
from strategies import calls
from tolerance import assert_all_close, assert_bitwise_equal
from torch import Tensor

RTOL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}

dtypes = st.sampled_from(list(RTOL))
pytestmark = pytest.mark.parametrize("op", OPERATORS)


def transposed(x: Tensor) -> Tensor:
    """Axes in the opposite order in memory."""
    reverse = tuple(reversed(range(x.ndim)))
    return x.permute(reverse).contiguous().permute(reverse)


def sliced(x: Tensor) -> Tensor:
    """Every other element along every axis, ones in between."""
    larger = x.new_ones([2 * n + 1 for n in x.shape])
    return larger[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)].copy_(x)


def start_of_rows(x: Tensor) -> Tensor:
    """The first elements of longer rows: the last axis is dense, the others have gaps."""
    larger = x.new_ones((*x.shape[:-1], x.shape[-1] + 3))
    return larger[..., : x.shape[-1]].copy_(x)


def offset(x: Tensor) -> Tensor:
    """One element into its memory, so on no vector boundary."""
    return x.new_ones(x.numel() + 1)[1:].view(x.shape).copy_(x)


def column_major(x: np.ndarray) -> np.ndarray:
    return np.asfortranarray(x)


def backwards(x: np.ndarray) -> np.ndarray:
    """Negative strides along every axis."""
    return np.flip(np.ascontiguousarray(np.flip(x)))


def field(x: np.ndarray) -> np.ndarray:
    """A field of packed records: strides are no multiple of an element, and elements are not aligned."""
    records = np.zeros(x.shape, dtype=[("tag", np.uint8), ("value", x.dtype)])
    records["value"] = x
    return records["value"]


LAYOUTS = [
    *((TORCH, layout) for layout in (transposed, sliced, start_of_rows, offset)),
    *(
        pytest.param(NUMPY, layout, marks=pytest.mark.cpu("a layout of NumPy"))
        for layout in (column_major, backwards, field)
    ),
]


@pytest.mark.parametrize(("through", "layout"), LAYOUTS, ids=lambda x: getattr(x, "__name__", None) or x.name)
@given(data=st.data(), dtype=dtypes)
def test_strided_equals_contiguous(op, through, layout, data, dtype):
    call = data.draw(calls(op, dtype))
    drawn = cotangents(through.forward(call))
    expected = through.run(call, drawn)
    result = through.run(call, drawn, layout)
    assert_all_close(result.outputs, expected.outputs, RTOL[dtype])
    assert_all_close(result.gradients, expected.gradients, RTOL[dtype])


@given(data=st.data(), dtype=dtypes)
def test_stride_zero_equals_repeated(op, frontend, data, dtype):
    """All floats repeat their first element along the first axis, cotangents too, as `y.sum()` makes them."""
    call = data.draw(calls(op, dtype))
    drawn = {name: x[:1].expand(x.shape) for name, x in cotangents(frontend.forward(call)).items()}
    call = call.with_inputs(
        **{n: None if x is None else x[:1].expand(x.shape) for n, x in call.inputs.items()}
    )
    repeated = call.with_inputs(**{n: None if x is None else x.contiguous() for n, x in call.inputs.items()})
    expected = frontend.run(repeated, {name: x.contiguous() for name, x in drawn.items()})
    result = frontend.run(call, drawn)
    assert_all_close(result.outputs, expected.outputs, RTOL[dtype])
    assert_all_close(result.gradients, expected.gradients, RTOL[dtype])


def test_inputs_are_left_alone(op, frontend, dtype):
    call = example(op, dtype)
    drawn = cotangents(frontend.forward(call))
    before = {name: x.clone() for name, x in call.inputs.items() if x is not None}
    drawn_before = {name: x.clone() for name, x in drawn.items()}
    frontend.run(call, drawn)
    assert_bitwise_equal({name: call.inputs[name] for name in before}, before)
    assert_bitwise_equal(drawn, drawn_before)
