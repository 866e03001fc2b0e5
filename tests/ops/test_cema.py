"""The moving averages at the edges of their coefficients, and the coefficients themselves."""

import math

import pytest
import torch
from calls import Call, Tokens, cotangents, example
from frontends import REFERENCE, Torch
from tolerance import GOLDEN, assert_all_close, assert_bitwise_equal, relative_error

SIZES = {torch.float64: GOLDEN, torch.float32: 1e-5}
precisions = pytest.mark.parametrize(("dtype", "rtol"), SIZES.items(), ids=["float64", "float32"])


def assert_matches_reference(frontend: Torch, call: Call, rtol: float) -> None:
    drawn = cotangents(frontend.forward(call))
    expected, result = REFERENCE.run(call, drawn), frontend.run(call, drawn)
    assert_all_close(result.outputs, expected.outputs, rtol)
    assert_all_close(result.gradients, expected.gradients, rtol)


@precisions
def test_what_is_never_forgotten_stays_accurate(frontend, dtype, rtol):
    """|q| = 1 over 1500 tokens, at angles from 0 to pi."""
    call = example("cema", dtype, tokens=Tokens(batch=1, length=1500), dim=3, ndim=4)
    angle = torch.linspace(0, math.pi, 12, dtype=torch.float64).view(3, 4)
    q = torch.stack((torch.cos(angle), torch.sin(angle)), -1).to(call.inputs["q"])
    assert_matches_reference(frontend, call.with_inputs(q=q), rtol)


@precisions
@pytest.mark.parametrize("op", ["cema", "ema"])
def test_what_is_forgotten_at_once(op, frontend, dtype, rtol):
    """q = 0: a state is the last token alone."""
    call = example(op, dtype)
    call = call.with_inputs(q=torch.zeros_like(call.inputs["q"]))
    assert_matches_reference(frontend, call, rtol)
    x, p = call.inputs["x"][:, -1], call.inputs["p"]
    last = x[:, :, None] * p
    state = frontend.forward(call)["state"]
    assert torch.equal(state[..., 0] if op == "cema" else state, last)


@pytest.mark.parametrize("scale", [2.0**90, 2.0**-90])
@pytest.mark.parametrize("op", ["cema", "ema"])
def test_huge_and_tiny_values(op, frontend, scale):
    """Linear in tokens and state: a power of two passes through bitwise, far from where float32 ends."""
    call = example(op, torch.float32)
    state = call.inputs["initial_state"]
    scaled = call.with_inputs(x=call.inputs["x"] * scale, initial_state=state * scale)
    expected = {name: x * scale for name, x in frontend.forward(call).items()}
    assert_bitwise_equal(frontend.forward(scaled), expected)


@pytest.mark.parametrize("op", ["cema", "ema"])
def test_sums_over_many_tokens_are_accurate(op, frontend):
    """bfloat16 tokens: state and gradients of parameters still accumulate in float32."""
    call = example(op, torch.bfloat16, tokens=Tokens(length=400), dim=3)
    drawn = cotangents(frontend.forward(call))
    result = frontend.run(call, drawn)
    expected = REFERENCE.run(call, drawn)
    assert relative_error(result.outputs["state"], expected.outputs["state"]) < 1e-5
    for name in ("p", "q", "gamma", "omega", "initial_state"):
        assert relative_error(result.gradients[name], expected.gradients[name]) < 1e-5, name


LONG = [
    # Several stages of 512 tokens of the kernels for GPUs, with and without a rest, and less than one.
    {"tokens": Tokens(batch=1, length=1040), "dim": 17, "ndim": 16},
    {"tokens": Tokens(batch=2, length=513), "dim": 8, "ndim": 5, "state": False},
    {"tokens": Tokens(batch=2, length=560, padded=True), "dim": 16, "ndim": 2},
    {"tokens": Tokens(documents=(530, 0, 16, 17, 1, 300)), "dim": 24, "ndim": 3},
    {"tokens": Tokens(documents=(15, 49, 16, 1, 32, 130)), "dim": 3, "ndim": 16, "omega": False},
    {"tokens": Tokens(batch=37, length=21), "dim": 3, "ndim": 3},
]


@pytest.mark.parametrize("sizes", LONG, ids=range(len(LONG)))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_long_and_many_sequences_of_sixteen_bits(frontend, dtype, sizes):
    """y is rounded once; states and gradients of parameters are about as precise as in float32."""
    call = example("cema", dtype, **sizes)
    drawn = cotangents(frontend.forward(call))
    result, expected = frontend.run(call, drawn), REFERENCE.run(call, drawn)
    for name, x in (expected.outputs | expected.gradients).items():
        if x is None:
            continue
        actual = result.outputs.get(name, result.gradients.get(name))
        allowed = torch.finfo(dtype).eps / 4 if name in ("y", "x") else 1e-6 if name == "state" else 3e-6
        assert relative_error(actual, x) < allowed, name


@precisions
@pytest.mark.parametrize("padded", [False, True], ids=["batch", "padded"])
@pytest.mark.parametrize("ndim", [3, 16, 40])
@pytest.mark.parametrize("op", ["cema", "ema"])
def test_one_token(op, frontend, dtype, rtol, ndim, padded):
    tokens = Tokens(batch=5, length=1, padded=padded)
    assert_matches_reference(frontend, example(op, dtype, tokens=tokens, dim=19, ndim=ndim), rtol)


@pytest.mark.large
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_array_is_the_channels_of_small_ones(dtype, frontend):
    """Outputs of 8 MiB and more are written past the caches; the channels of a part are computed alone."""
    length = 1 + 2**23 // (256 * dtype.itemsize)
    call = example("cema", dtype, tokens=Tokens(batch=1, length=length), dim=256, ndim=5)
    assert_channels_are_independent(frontend, call, 96)


@pytest.mark.large
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "tokens",
    [Tokens(batch=2, length=150), Tokens(batch=2, length=70, padded=True), Tokens(documents=(65, 0, 1, 130))],
    ids=["batch", "padded", "documents"],
)
def test_many_channels(tokens, threads, frontend):
    """A thread takes several blocks of channels through a tile of tokens, and the last block is not full."""
    with frontend.threads(threads):
        call = example("cema", torch.float32, tokens=tokens, dim=1100, ndim=5)
        assert_channels_are_independent(frontend, call, 500)


def assert_channels_are_independent(frontend: Torch, call: Call, width: int) -> None:
    drawn = cotangents(frontend.forward(call))
    whole = frontend.run(call, drawn)
    for part in torch.arange(call.inputs["x"].shape[-1]).split(width):
        part_of = {name: call.inputs[name][part] for name in ("p", "q", "gamma", "omega")}
        part_of |= {"x": call.inputs["x"][..., part], "initial_state": call.inputs["initial_state"][:, part]}
        own = {"y": drawn["y"][..., part], "state": drawn["state"][:, part]}
        result = frontend.run(call.with_inputs(**part_of), own)
        assert torch.equal(result.outputs["y"], whole.outputs["y"][..., part])
        assert torch.equal(result.outputs["state"], whole.outputs["state"][:, part])
        assert torch.equal(result.gradients["x"], whole.gradients["x"][..., part])


def test_ema_is_cema_with_real_coefficients(frontend):
    real = example("ema", torch.float64)
    names = ("q", "gamma", "initial_state")
    pairs = {name: torch.stack((x, torch.zeros_like(x)), -1) for name in names for x in [real.inputs[name]]}
    y, state = frontend.forward(real).values()
    complex_y, complex_state = frontend.forward(Call("cema", real.inputs | pairs, real.options)).values()
    assert relative_error(y, complex_y) < GOLDEN
    assert relative_error(state, complex_state[..., 0]) < GOLDEN


@precisions
@pytest.mark.parametrize("value", [-60.0, 0.0, 60.0])
def test_coefficients_of_extreme_parameters_stay_in_the_unit_disc(frontend, dtype, rtol, value):
    call = example("cema_coefficients", dtype, ndim=16)
    call = call.with_inputs(**{name: torch.full_like(x, value) for name, x in call.inputs.items()})
    assert_matches_reference(frontend, call, rtol)
    outputs = frontend.forward(call)
    assert outputs["p"].min() >= 0
    assert outputs["p"].max() <= 1
    assert outputs["q"].norm(dim=-1).max() <= 1 + 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("ndim", [1, 16, 64])
def test_coefficients_turn_by_equal_steps(frontend, ndim):
    """q_k lies at k times one angle: the phases of q_1^k."""
    q = frontend.forward(example("cema_coefficients", torch.float64, ndim=ndim))["q"]
    direction = torch.view_as_complex(q / q.norm(dim=-1, keepdim=True))
    power = direction[:, :1] ** torch.arange(1, ndim + 1)
    assert (direction - power).abs().max() < 1e-12
