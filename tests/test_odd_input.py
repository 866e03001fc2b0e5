"""Unusual arguments that are legal: each gives bitwise what the usual one gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from calls import OPERATORS, SEQUENCE_OPERATORS, STATES, Call, Tokens, cotangents, example
from frontends import NUMPY, TORCH, Explicit, Result, as_given, from_numpy, to_numpy
from megalodon_core import ops
from tolerance import assert_bitwise_equal
from torch import Tensor

ROW_OPERATORS = ["rms_norm", "layer_norm", "add_layer_norm", "silu_mul", "two_hop_residual"]
PACKED = Tokens(documents=(3, 0, 4))
every_operator = pytest.mark.parametrize("op", OPERATORS)


def run(frontend: Explicit, call: Call) -> Result:
    return frontend.run(call, cotangents(TORCH.forward(call)))


def assert_same(actual: Result, expected: Result) -> None:
    assert_bitwise_equal(actual.outputs, expected.outputs)
    assert_bitwise_equal(actual.gradients, expected.gradients)


def read_only(x: Tensor) -> np.ndarray:
    array = to_numpy(x).copy()
    array.flags.writeable = False
    return array


def unaligned(x: Tensor) -> np.ndarray:
    array = np.zeros(x.numel() * x.element_size() + 1, np.uint8)[1:].view(to_numpy(x).dtype).reshape(x.shape)
    array[...] = to_numpy(x)
    return array


def unaligned_tensor(x: Tensor) -> Tensor:
    memory = bytearray(1) + bytearray(x.contiguous().view(torch.uint8).numpy())
    return torch.frombuffer(memory, dtype=x.dtype, offset=1).view(x.shape)


def subclass(x: Tensor) -> np.ndarray:
    return to_numpy(x).view(np.memmap)


def parameter(x: Tensor) -> Tensor:
    return torch.nn.Parameter(x, requires_grad=False)


def negated_lazily(x: Tensor) -> Tensor:
    """A view whose memory holds the opposite values."""
    return torch.complex(x, -x).conj().imag if x.is_floating_point() else x


LAYOUTS: list[tuple[str, Callable[[Tensor], Any], Callable[[Any], Tensor]]] = [
    ("numpy", read_only, from_numpy),
    ("numpy", unaligned, from_numpy),
    ("numpy", subclass, from_numpy),
    ("torch", unaligned_tensor, as_given),
    ("torch", parameter, as_given),
    ("torch", negated_lazily, as_given),
]


@every_operator
@pytest.mark.parametrize(("name", "to", "back"), LAYOUTS, ids=lambda x: getattr(x, "__name__", x))
def test_unusual_arrays(op, name, to, back):
    call = example(op, torch.float32)
    assert_same(run(Explicit(name, to, back), call), run(NUMPY, call))


@pytest.mark.parametrize("op", SEQUENCE_OPERATORS)
@pytest.mark.parametrize("frontend", [TORCH, NUMPY], ids=lambda frontend: frontend.name)
def test_offsets_of_either_integer_type(op, frontend):
    call = example(op, torch.float32, tokens=PACKED)
    assert call.options["cu_seqlens"].dtype == torch.int64
    narrow = call.with_options(cu_seqlens=call.options["cu_seqlens"].int())
    assert_same(run(frontend, narrow), run(frontend, call))


@pytest.mark.parametrize("op", SEQUENCE_OPERATORS)
def test_a_mask_with_any_true_byte(op):
    """True is any byte but 0, as it is for NumPy."""
    call = example(op, torch.float32, tokens=Tokens(padded=True))
    given = call.arguments(to_numpy)
    expected, _ = getattr(ops, op)(**given)
    given["padding_mask"] = (given["padding_mask"].view(np.uint8) * 254).view(np.bool_)
    y, _ = getattr(ops, op)(**given)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("op", [op for op in SEQUENCE_OPERATORS if len(STATES[op]) > 1])
def test_a_state_as_a_plain_sequence(op, kind):
    call = example(op, torch.float32, **({"capacity": 3} if "attention" in op else {}))
    given = call.arguments(to_numpy)
    y, state = getattr(ops, op)(**given)
    again, again_state = getattr(ops, op)(**given | {"initial_state": kind(given["initial_state"])})
    np.testing.assert_array_equal(again, y)
    for part, expected in zip(again_state, state, strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("frontend", [TORCH, NUMPY], ids=lambda frontend: frontend.name)
@pytest.mark.parametrize("shape", [(0, 7), (3, 0, 7), (1,) * 7 + (7,), (7,)], ids=str)
@pytest.mark.parametrize("op", ROW_OPERATORS)
def test_any_number_of_rows(op, shape, frontend):
    call = example(op, torch.float32, shape=shape)
    outputs, gradients = run(frontend, call)
    assert outputs["y"].shape == shape
    for name, x in call.inputs.items():
        assert gradients[name].shape == x.shape
        assert 0 not in shape or not gradients[name].any()


@pytest.mark.parametrize("op", ["chunk_attention", "normalized_attention"])
@pytest.mark.parametrize("chunk_size", [np.int64(5), np.uint8(5), 2**62])
def test_chunk_sizes_of_any_integer_type(op, chunk_size):
    call = example(op, torch.float32, chunk_size=chunk_size, capacity=0)
    expected = example(op, torch.float32, chunk_size=int(min(chunk_size, 64)), capacity=0)
    assert_same(run(NUMPY, call), run(NUMPY, expected))


@pytest.mark.parametrize("op", ["rms_norm", "timestep_norm", "normalized_attention"])
@pytest.mark.parametrize("eps", [1, np.float32(1), np.int64(1)])
def test_eps_of_any_number_type(op, eps):
    expected = run(NUMPY, example(op, torch.float32, eps=1.0))
    assert_same(run(NUMPY, example(op, torch.float32, eps=eps)), expected)


def test_counts_up_to_the_largest():
    call = example("timestep_norm", torch.float32)
    length = call.inputs["x"].shape[1]
    largest = torch.full_like(call.options["initial_count"], 2**63 - 1 - length)
    outputs = NUMPY.forward(call.with_options(initial_count=largest))
    assert (outputs["count"] == 2**63 - 1).all()
    with pytest.raises(ValueError, match=r"timestep_norm: initial_state.count: expected .*, got"):
        NUMPY.forward(call.with_options(initial_count=largest + 1))
