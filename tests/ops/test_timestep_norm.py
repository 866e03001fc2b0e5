"""Cumulative statistics: long streams, hard data, counts."""

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import reference
import torch
from calls import Call, Tokens, cotangents, example
from frontends import PLACE, REFERENCE, TORCH, TORCH_EXPLICIT
from tolerance import (
    GOLDEN,
    assert_all_close,
    assert_as_good_as_naive,
    assert_bitwise_equal,
    relative_error,
)
from torch import Tensor

TOKENS, GROUPS, WIDTH = 2**24, 2, 2
RTOL = {torch.float64: GOLDEN, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


class Stream(NamedTuple):
    x: Tensor  # (1, L, D) float32
    samples: Tensor  # times at which y is compared
    y: Tensor  # (samples, D) float64
    mean: Tensor  # (G,) float64, after the last token
    var: Tensor


@cache
def stream() -> Stream:
    """2^24 tokens whose mean is six standard deviations from 0 and drifts, with their exact statistics.

    mean_t and var_t + mean_t^2 are plain averages, of the block means and of the block mean squares, so
    cumulative sums in float64 give them at every time.
    """
    generator = np.random.default_rng(0)
    x = generator.standard_normal((TOKENS, GROUPS, WIDTH), dtype=np.float32)
    x *= 0.5
    x += np.linspace(2.5, 3.5, TOKENS, dtype=np.float32)[:, None, None]
    n = np.arange(1, TOKENS + 1, dtype=np.float64)[:, None]
    samples = np.unique(np.geomspace(1, TOKENS, 4000).astype(np.int64)) - 1
    mean = x.mean(-1, dtype=np.float64).cumsum(0) / n
    square = np.square(x, dtype=np.float64).mean(-1).cumsum(0) / n
    mean, var = mean[samples], square[samples] - mean[samples] ** 2
    y = (x[samples] - mean[..., None]) / np.sqrt(var[..., None] + 1e-5)
    arrays = samples, y.reshape(len(samples), -1), mean[-1], var[-1]
    return Stream(torch.from_numpy(x).view(1, TOKENS, -1), *map(torch.from_numpy, arrays))


@pytest.mark.large
@pytest.mark.parametrize("calls", [1, 16])
def test_2_to_the_24_tokens(frontend, calls):
    """Mean and variance stay within 1e-6 of float64, in one call and over a stream of calls."""
    expected = stream()
    call, ys = unaffine(expected.x, GROUPS), []
    for x in expected.x.chunk(calls, 1):
        outputs = frontend.forward(call.with_inputs(x=x))
        call = call.with_state(outputs)
        ys.append(outputs["y"])
    y = torch.cat(ys, 1)[0, expected.samples]
    assert outputs["count"].tolist() == [TOKENS]
    assert ((outputs["mean"][0] - expected.mean) / expected.mean).abs().max() < 1e-6
    assert ((outputs["var"][0] - expected.var) / expected.var).abs().max() < 1e-6
    assert relative_error(y, expected.y) < 1e-6


def unaffine(x: Tensor, groups: int) -> Call:
    none = dict.fromkeys(("weight", "bias", "initial_mean", "initial_var"))
    return Call("timestep_norm", {"x": x} | none, {"num_groups": groups, "initial_count": None})


def test_far_from_zero(frontend):
    """Mean 1000, deviation 1: nothing is lost to cancellation that naive float32 would keep."""
    call = example("timestep_norm", torch.float32, groups=2, width=16, state=False, affine=False)
    call = call.with_inputs(x=call.inputs["x"] + 1000)
    drawn = cotangents(frontend.forward(call))
    result, exact = frontend.run(call, drawn), REFERENCE.run(call, drawn)
    with reference.precision(torch.float32):
        naive = REFERENCE.run(call, drawn)
    for name in ("y", "mean", "var"):
        assert_as_good_as_naive(result.outputs[name], exact.outputs[name], naive.outputs[name], name)
    assert_as_good_as_naive(result.gradients["x"], exact.gradients["x"], naive.gradients["x"], "dx")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "tokens",
    [Tokens(2, 500), Tokens(documents=(1, 600, 0, 333)), Tokens(2, 500, padded=True)],
    ids=["batch", "packed", "padded"],
)
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_a_sequence(frontend, tokens, groups, threads):
    """Statistics and their gradients pass from block to block, whichever thread has it.

    With more threads than processors, one that waits for a block must let another run.
    """
    call = example("timestep_norm", torch.float64, tokens=tokens, groups=groups, width=50)
    with frontend.threads(threads):
        drawn = cotangents(frontend.forward(call))
        result = frontend.run(call, drawn)
    expected = REFERENCE.run(call, drawn)
    assert_all_close(result.outputs, expected.outputs, GOLDEN)
    assert_all_close(result.gradients, expected.gradients, GOLDEN)


@pytest.mark.parametrize(
    "tokens",
    [Tokens(2, 300), Tokens(documents=(1, 300, 0, 33)), Tokens(2, 300, padded=True)],
    ids=["batch", "packed", "padded"],
)
def test_statistics_found_again_are_those_that_forward_kept(dtype, tokens):
    """Autograd hands backward the statistics of forward, `ops.timestep_norm.backward` has none: same bits."""
    call = example("timestep_norm", dtype, tokens=tokens, groups=2, width=24)
    drawn = cotangents(TORCH.forward(call))
    assert_bitwise_equal(TORCH.run(call, drawn).gradients, TORCH_EXPLICIT.run(call, drawn).gradients)


def test_padding_has_no_statistics_for_backward():
    """They are those of the other tokens, and then 0."""
    x, padding_mask = torch.randn(2, 7, 6), torch.zeros(2, 7, dtype=torch.bool)
    padding_mask[0, [1, 4, 5]] = True
    kept = keep(x, padding_mask)
    for found, expected in zip(kept, keep(x[:1, ~padding_mask[0]]), strict=True):
        assert torch.equal(found[0, :4], expected[0])
        assert not found[0, 4:].any()
    for found, expected in zip(kept, keep(x[1:]), strict=True):
        assert torch.equal(found[1], expected[0])


def keep(x: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and scale of each token, as forward keeps them for backward."""
    mask = None if padding_mask is None else PLACE.to(padding_mask)
    *_, mean, scale = torch.ops.megalodon_core.timestep_norm(PLACE.to(x), *[None] * 6, mask, 3, 1e-5)
    return PLACE.back(mean), PLACE.back(scale)


def test_statistics_for_backward_are_checked():
    x = PLACE.to(torch.randn(2, 5, 6))
    *_, mean, scale = torch.ops.megalodon_core.timestep_norm(x.requires_grad_(), *[None] * 7, 3, 1e-5)
    assert mean.shape == scale.shape == (2, 5, 3)
    assert not mean.requires_grad
    assert not scale.requires_grad
    for kept, error, match in (
        ((None, scale), ValueError, "token_mean: expected an array, because token_scale is given"),
        ((mean, None), ValueError, "token_scale: expected an array, because token_mean is given"),
        ((mean[:, 1:].contiguous(), scale), ValueError, r"token_mean: expected shape \(2, 5, 3\)"),
        ((mean, scale[:1].contiguous()), ValueError, r"token_scale: expected shape \(2, 5, 3\)"),
        ((mean.float(), scale), TypeError, "token_mean: expected float64"),
        ((mean, scale.double()), TypeError, "token_scale: expected float32"),
    ):
        with pytest.raises(error, match=match):
            torch.ops.megalodon_core.timestep_norm_backward(x, *[None] * 2, x, *[None] * 7, *kept, 3, 1e-5)


@pytest.mark.large
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("groups", "width"), [(8, 128), (8, 125), (1024, 1)])
def test_a_large_array_is_the_rows_of_small_ones(frontend, dtype, groups, width):
    """Outputs of 8 MiB and more are written past the caches, where all vectors of their rows are aligned."""
    tokens = Tokens(3, 1 + 2**23 // (3 * groups * width * dtype.itemsize))
    call = example("timestep_norm", dtype, tokens=tokens, groups=groups, width=width, state=False)
    drawn = cotangents(frontend.forward(call))
    whole = frontend.run(call, drawn)
    for row in range(3):
        one = slice(row, row + 1)
        own = {name: x[one] for name, x in drawn.items()}
        result = frontend.run(call.with_inputs(x=call.inputs["x"][one]), own)
        for found, large in (
            (result.outputs["y"], whole.outputs["y"]),
            (result.gradients["x"], whole.gradients["x"]),
        ):
            assert relative_error(found, large[one]) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("width", [3, 24, 320], ids=lambda width: f"width{width}")
@pytest.mark.parametrize(
    "tokens",
    [Tokens(1, 300), Tokens(documents=(0, 129, 0, 128, 1)), Tokens(2, 130, padded=True)],
    ids=["batch", "packed", "padded"],
)
def test_groups_of_any_width(frontend, dtype, tokens, width):
    """Groups of one to all lanes of a warp, in parts of one and of 16 bytes, and wider ones."""
    call = example("timestep_norm", dtype, tokens=tokens, groups=2, width=width)
    drawn = cotangents(frontend.forward(call))
    result, expected = frontend.run(call, drawn), REFERENCE.run(call, drawn)
    assert_all_close(result.outputs, expected.outputs, RTOL[dtype])
    assert_all_close(result.gradients, expected.gradients, RTOL[dtype])


@pytest.mark.parametrize("value", [0.0, 3.0, 1e15])
def test_constant_tokens_have_no_variance(frontend, dtype, value):
    """y is 0 and gradients are finite, with rsqrt(eps) as the scale."""
    value = min(value, torch.finfo(dtype).max / 16)
    call = unaffine(torch.full((2, 9, 6), value, dtype=dtype), 3)
    drawn = cotangents(frontend.forward(call))
    result, expected = frontend.run(call, drawn), REFERENCE.run(call, drawn)
    assert not result.outputs["y"].any()
    assert not result.outputs["var"].any()
    assert result.gradients["x"].isfinite().all()
    assert relative_error(result.gradients["x"], expected.gradients["x"]) < 4 * torch.finfo(dtype).eps


def test_the_first_token_has_its_own_statistics(frontend):
    """Count 0: the initial mean and variance have no weight and no gradient."""
    call = example("timestep_norm", torch.float64)
    fresh = call.with_options(initial_count=torch.zeros_like(call.options["initial_count"]))
    drawn = cotangents(frontend.forward(fresh))
    result, expected = frontend.run(fresh, drawn), frontend.run(unstated(call), drawn)
    assert_all_close(result.outputs, expected.outputs, GOLDEN)
    assert_all_close(result.gradients, expected.gradients | zero_statistics(call), GOLDEN)


def unstated(call: Call) -> Call:
    return call.with_state({"count": None, "mean": None, "var": None})


def zero_statistics(call: Call) -> dict[str, Tensor]:
    return {name: torch.zeros_like(call.inputs[name]) for name in ("initial_mean", "initial_var")}


def test_counts_are_64_bit(frontend):
    """After 2^40 tokens the statistics stand almost still, and the count goes on."""
    call = example("timestep_norm", torch.float64)
    call = call.with_options(initial_count=torch.full_like(call.options["initial_count"], 2**40))
    outputs = frontend.forward(call)
    length = call.inputs["x"].shape[1]
    assert outputs["count"].tolist() == [2**40 + length] * len(outputs["count"])
    assert relative_error(outputs["mean"], call.inputs["initial_mean"]) < 1e-9
    assert relative_error(outputs["var"], call.inputs["initial_var"]) < 1e-9
