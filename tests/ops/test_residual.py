"""Norms, gate and second hop at the edges of their inputs."""

import numpy as np
import pytest
import torch
from calls import cotangents, example
from frontends import REFERENCE
from tolerance import GOLDEN, assert_all_close, relative_error

RTOL = {torch.float64: GOLDEN, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}

norms = pytest.mark.parametrize("op", ["rms_norm", "layer_norm", "add_layer_norm"])


@norms
@pytest.mark.parametrize("affine", [True, False])
def test_rows_of_zeros(op, frontend, dtype, affine):
    """The scale is rsqrt(eps), and nothing is divided by 0."""
    call = example(op, dtype, affine=affine)
    activations = [name for name in ("x", "branch", "residual") if name in call.inputs]
    call = call.with_inputs(**{name: torch.zeros_like(call.inputs[name]) for name in activations})
    drawn = cotangents(frontend.forward(call))
    result, expected = frontend.run(call, drawn), REFERENCE.run(call, drawn)
    rtol = 8 * torch.finfo(dtype).eps
    assert_all_close(result.outputs, expected.outputs, rtol)
    assert_all_close(result.gradients, expected.gradients, rtol)


@norms
@pytest.mark.parametrize("dim", [64, 600, 4096, 9000, 9001])
def test_rows_of_any_length(op, frontend, dtype, dim):
    """From one that a few lanes hold to one that no block does, and more rows than a block has."""
    call = example(op, dtype, shape=(5, dim))
    drawn = cotangents(frontend.forward(call))
    result, expected = frontend.run(call, drawn), REFERENCE.run(call, drawn)
    assert_all_close(result.outputs, expected.outputs, RTOL[dtype])
    assert_all_close(result.gradients, expected.gradients, RTOL[dtype])


@norms
def test_rows_of_large_values_do_not_overflow(op, frontend):
    """Squares of 1e4 overflow float16, so they are summed in float32."""
    call = example(op, torch.float16, shape=(4, 512), affine=False)
    activations = {name: x.sign() * 1e4 for name, x in call.inputs.items() if x is not None}
    call = call.with_inputs(**activations)
    y = frontend.forward(call)["y"]
    assert relative_error(y, REFERENCE.forward(call)["y"]) < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_before_a_norm_is_not_rounded(frontend, dtype):
    """Beside 512 or 4096, bfloat16 and float16 keep nothing of a small residual; the norm must see it all."""
    call = example("add_layer_norm", dtype, shape=(5, 64), affine=False)
    call = call.with_inputs(branch=torch.full((5, 64), 4096.0, dtype=dtype))
    assert (call.inputs["branch"] + call.inputs["residual"]).unique().numel() < 10
    exact = REFERENCE.forward(call)["y"]
    assert relative_error(frontend.forward(call)["y"], exact) < torch.finfo(dtype).eps


def test_bfloat16_rounds_every_number_to_nearest(frontend):
    """alpha * branch for every bfloat16 branch, subnormal numbers, infinities and NaN among them."""
    branch = torch.from_numpy(np.arange(2**16, dtype=np.uint16).view(np.int16)).view(torch.bfloat16)
    call = example("two_hop_residual", torch.bfloat16, shape=(256, 256))
    branch, residual = branch.view(256, 256), torch.zeros_like(call.inputs["residual"])
    call = call.with_inputs(branch=branch, residual=residual)
    y, expected = frontend.forward(call)["y"], (call.inputs["alpha"] * branch.float()).to(torch.bfloat16)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gate_of_16_bits_costs_no_digits(frontend, dtype):
    """silu and its slope at every gate, which are computed only as exactly as the type can tell.

    To half a unit in the last place, and what a relative error of 2^-17 of e^-|x| adds: 1/64 of a unit of
    float16, 1/512 of one of bfloat16.
    """
    bits = torch.from_numpy(np.arange(2**16, dtype=np.uint16).view(np.int16)).view(dtype)
    gate = bits[bits.isfinite()].unsqueeze(-1)
    call = example("silu_mul", dtype).with_inputs(gate=gate, value=torch.ones_like(gate))
    result = frontend.run(call, {"y": torch.ones_like(gate)})
    x = gate.double()
    s, rest = x.sigmoid(), (-x).sigmoid()
    limits = torch.finfo(dtype)
    for found, exact, slope in (
        (result.outputs["y"], x * s, x),
        (result.gradients["gate"], s + x * s * rest, 1 + x * (rest - s)),
    ):
        unit = (limits.eps * exact.abs().log2().floor().exp2()).clamp(min=limits.smallest_normal * limits.eps)
        error = (found.double() - exact).abs()
        float32 = 2**-22 * (exact.abs() + x.abs() * s * rest)
        assert (error <= 0.5 * unit + 2**-17 * s * rest * slope.abs() + float32).all()


@pytest.mark.parametrize("gate", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_silu_saturates(frontend, dtype, gate):
    """silu(gate) runs from 0 to gate and its slope from 0 to 1, without overflow of exp."""
    call = example("silu_mul", dtype)
    call = call.with_inputs(gate=torch.full_like(call.inputs["gate"], gate))
    drawn = {"y": torch.ones_like(call.inputs["value"])}
    result, expected = frontend.run(call, drawn), REFERENCE.run(call, drawn)
    rtol = 4 * torch.finfo(dtype).eps
    assert_all_close(result.outputs, expected.outputs, rtol)
    assert_all_close(result.gradients, expected.gradients, rtol)


rowwise = pytest.mark.parametrize(
    "op", ["rms_norm", "layer_norm", "add_layer_norm", "silu_mul", "two_hop_residual"]
)


@pytest.mark.large
@rowwise
@pytest.mark.parametrize("dim", [1000, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_array_is_the_rows_of_small_ones(op, dtype, dim, frontend):
    """Outputs of 8 MiB and more are written past the caches, where all vectors of their rows are aligned."""
    rows = 1 + 2**23 // (dim * dtype.itemsize)
    call = example(op, dtype, shape=(rows, dim))
    drawn = cotangents(frontend.forward(call))
    whole = frontend.run(call, drawn)
    for part in torch.arange(rows).tensor_split(5):
        rows_of = {name: x[part] for name, x in call.inputs.items() if x is not None and x.ndim == 2}
        result = frontend.run(call.with_inputs(**rows_of), {"y": drawn["y"][part]})
        assert torch.equal(result.outputs["y"], whole.outputs["y"][part])
        for name in rows_of:
            assert torch.equal(result.gradients[name], whole.gradients[name][part]), name


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
@rowwise
def test_any_rank_is_rows_of_the_last_axis(op, rank, frontend):
    rows = example(op, torch.float64, shape=(24, 7))
    shape = {1: (7,), 2: (24, 7), 3: (4, 6, 7), 4: (2, 3, 4, 7), 5: (2, 3, 2, 2, 7)}[rank]
    call = rows.with_inputs(
        **{
            name: (x[:1] if rank == 1 else x).reshape(shape)
            for name, x in rows.inputs.items()
            if x is not None and x.ndim == 2
        }
    )
    expected = frontend.forward(rows)["y"]
    y = frontend.forward(call)["y"]
    assert y.shape == shape
    assert relative_error(y.reshape(-1, 7), expected[: y.numel() // 7]) < GOLDEN
