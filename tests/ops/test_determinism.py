"""The same call gives the same bits; another number of threads the same numbers."""

import pytest
import torch
from calls import OPERATORS, Tokens, cotangents, example
from megalodon_core import runtime
from tolerance import assert_all_close, assert_bitwise_equal

# Large enough that two threads share the work, along whatever axis an operator divides; for the interpreter,
# larger than a tile.
LENGTH = 70 if runtime.isa() == "simt" else 301
TOKENS = {"tokens": Tokens(batch=2, length=LENGTH)}
SHAPE = {"shape": (2, LENGTH, 97)}
SIZES = {
    "cema": TOKENS | {"dim": 97, "ndim": 5},
    "ema": TOKENS | {"dim": 97, "ndim": 5},
    "cema_coefficients": {"dim": 301, "ndim": 17},
    "timestep_norm": TOKENS | {"groups": 5, "width": 19},
    "chunk_attention": TOKENS
    | {"heads": 3, "key_dim": 16, "value_dim": 40, "chunk_size": 64, "dropout_p": 0.1},
    "normalized_attention": TOKENS | {"heads": 3, "key_dim": 16, "value_dim": 40, "chunk_size": 64},
    "rms_norm": SHAPE,
    "layer_norm": SHAPE,
    "add_layer_norm": SHAPE,
    "silu_mul": SHAPE,
    "two_hop_residual": SHAPE,
}
RTOL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

pytestmark = pytest.mark.parametrize("op", OPERATORS)


@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_are_bitwise_equal(op, frontend, dtype, threads):
    call = example(op, dtype, **SIZES[op])
    with frontend.threads(threads):
        drawn = cotangents(frontend.forward(call))
        first, second = frontend.run(call, drawn), frontend.run(call, drawn)
    assert_bitwise_equal(first.outputs, second.outputs)
    assert_bitwise_equal(first.gradients, second.gradients)


def test_one_and_two_threads_agree(op, frontend, dtype):
    call = example(op, dtype, **SIZES[op])
    drawn = cotangents(frontend.forward(call))
    with frontend.threads(1):
        one = frontend.run(call, drawn)
    with frontend.threads(2):
        two = frontend.run(call, drawn)
    assert_all_close(two.outputs, one.outputs, RTOL[dtype])
    assert_all_close(two.gradients, one.gradients, RTOL[dtype])
