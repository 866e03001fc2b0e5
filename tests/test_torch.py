"""The torch operators as torch sees them: registration, compilation, autocast."""

from contextlib import nullcontext

import pytest
import torch
from calls import ACTIVATIONS, OPERATORS, SEQUENCE_OPERATORS, Tokens, cotangents, example
from frontends import PLACE, TORCH
from megalodon_core import _core, ops
from megalodon_core.frontends import torch as torch_frontend
from tolerance import assert_all_close, assert_bitwise_equal
from torch.utils._python_dispatch import TorchDispatchMode

MIXED = [op for op in OPERATORS if len(ACTIVATIONS[op]) > 1]
LOW = torch.bfloat16


class Recorder(TorchDispatchMode):
    """Records the calls of megalodon_core's torch operators that reach dispatch."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "megalodon_core":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("op", "sizes"),
    [(op, {}) for op in OPERATORS]
    + [(op, {"tokens": Tokens(padded=True)}) for op in SEQUENCE_OPERATORS]
    + [(op, {"tokens": Tokens(documents=(3, 0, 4))}) for op in SEQUENCE_OPERATORS],
)
def test_opcheck(op, sizes):
    """Schema, fake kernel, autograd registration and tracing, of forward and of backward."""
    call = example(op, torch.float32, **sizes)
    with Recorder() as recorder:
        TORCH.run(call, cotangents(TORCH.forward(call)))
    names = [function._opname for function, _ in recorder.calls]
    assert names == [op, op, f"{op}_backward"]
    for function, args in recorder.calls[1:]:
        is_backward = function._opname.endswith("_backward")
        leaves = [leaf(x, requires_grad=not is_backward) for x in args]
        torch.library.opcheck(function, tuple(leaves))


def leaf(x, requires_grad: bool):
    if not isinstance(x, torch.Tensor):
        return x
    return x.detach().clone().requires_grad_(requires_grad and x.is_floating_point())


@pytest.mark.parametrize("context", [nullcontext, Recorder], ids=["direct", "dispatched"])
@pytest.mark.parametrize("op", OPERATORS)
def test_autograd_saves_the_inputs_and_what_the_spec_keeps(op, context):
    given, saved = [], []

    def placed(x: torch.Tensor) -> torch.Tensor:
        given.append(leaf(PLACE.to(x), requires_grad=True))
        return given[-1]

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved.append(x)
        return x

    arguments = example(op, torch.float32).arguments(placed)
    with context(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        getattr(ops, op)(**arguments)
    kept = [x for x in saved if all(x.data_ptr() != y.data_ptr() for y in given)]
    assert len(saved) - len(kept) == len(given)
    assert len(kept) == len(getattr(ops, op).spec.kept)


@pytest.mark.parametrize("op", OPERATORS)
def test_a_call_means_the_same_with_and_without_the_dispatcher(op):
    call = example(op, torch.float32)
    drawn = cotangents(TORCH.forward(call))
    direct = TORCH.run(call, drawn)
    with Recorder() as recorder:
        dispatched = TORCH.run(call, drawn)
    assert len(recorder.calls) == 2
    assert_bitwise_equal(direct.outputs, dispatched.outputs)
    assert_bitwise_equal(direct.gradients, dispatched.gradients)


@pytest.mark.parametrize("op", OPERATORS)
def test_tensors_without_an_exchange_table(op, monkeypatch):
    """As in releases of torch before 2.10."""
    call = example(op, torch.float32)
    drawn = cotangents(TORCH.forward(call))
    expected = TORCH.run(call, drawn)
    name = "_cuda_frontend" if PLACE.on_gpu else "_frontend"
    monkeypatch.setattr(torch_frontend, name, torch_frontend.make_frontend(direct=False, device=PLACE.type))
    result = TORCH.run(call, drawn)
    assert_bitwise_equal(result.outputs, expected.outputs)
    assert_bitwise_equal(result.gradients, expected.gradients)


@pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch before 2.10")
def test_tensors_that_are_read_directly_are_allocated_directly():
    with pytest.raises(TypeError, match="allocate_like: expected a function beside direct_types"):
        _core.Frontend(torch.Tensor, torch_frontend._describe, torch.empty, (torch.Tensor,))


def test_outputs_have_the_type_of_tensors_whatever_the_inputs_are():
    """What is made like a parameter is a tensor, and views of one memory each have an output of their own."""
    parameter = torch.nn.Parameter(torch.ones(4, 6, device=PLACE.type))
    with torch.no_grad():
        y = ops.silu_mul(parameter, parameter)
        row = ops.silu_mul(parameter[0], parameter[0])
        weighted = ops.rms_norm(parameter, parameter[0])
    assert [type(result) for result in (y, row, weighted)] == 3 * [torch.Tensor]
    assert not y.requires_grad
    column = torch.ones(1, 6, device=PLACE.type).t()
    assert ops.silu_mul(column, column).stride() == (1, 1)
    assert [result.shape for result in (y, row, weighted)] == [(4, 6), (6,), (4, 6)]
    assert torch.equal(y[0], row)


def test_a_profile_names_the_operators():
    x = torch.randn(2, 8, requires_grad=True)
    with torch.profiler.profile() as profile:
        ops.rms_norm(x).sum().backward()
    names = {event.name for event in profile.events()}
    assert {"megalodon_core::rms_norm", "megalodon_core::rms_norm_backward"} <= names


def test_outputs_are_on_the_cpu_whatever_the_default_device():
    x = torch.randn(2, 8)
    with torch.device("meta"):
        assert ops.rms_norm(x).device == x.device


@pytest.mark.parametrize("recorded", [True, False])
def test_a_tensor_that_outlived_its_transform(recorded):
    """It still wears the transform's wrapper, whose memory is that of the tensor within."""
    outlived = []

    def loss(x):
        outlived.append(x)
        return x.sum()

    x = torch.randn(2, 8, device=PLACE.type)
    torch.func.grad(loss)(x)
    gate = torch.randn(2, 8, device=PLACE.type, requires_grad=True)
    with torch.set_grad_enabled(recorded):
        y = ops.silu_mul(gate, outlived[0])
        expected = ops.silu_mul(gate, x)
    assert torch.equal(y, expected)
    if recorded:
        assert torch.equal(*(torch.autograd.grad(z.sum(), gate)[0] for z in (y, expected)))


def block(x, alpha, delta, theta, gamma, omega, weight, bias, attention_gamma, attention_beta, cu_seqlens):
    """All operators one after another on (1, L, 8), with two heads and four groups."""
    normed, norm_state = ops.timestep_norm(x, weight, bias, 4, cu_seqlens=cu_seqlens)
    p, q = ops.cema_coefficients(alpha, delta, theta)
    averaged, cema_state = ops.cema(normed, p, q, gamma, omega, cu_seqlens=cu_seqlens)
    m = ops.rms_norm(averaged, weight)
    real, ema_state = ops.ema(m, p, q[..., 0], gamma[..., 0], cu_seqlens=cu_seqlens)
    heads = (m.unflatten(-1, (2, 4)), real.unflatten(-1, (2, 4)))
    a, state = ops.normalized_attention(
        heads[0], attention_gamma, attention_beta, heads[1], chunk_size=3, cu_seqlens=cu_seqlens
    )
    b, _ = ops.chunk_attention(*heads, a, chunk_size=4, dropout_p=0.2, seed=11, cu_seqlens=cu_seqlens)
    h = ops.layer_norm(ops.silu_mul(b.flatten(-2), real), weight, bias)
    y = ops.two_hop_residual(ops.add_layer_norm(h, x, weight, bias), x, omega)
    return y, norm_state.mean, norm_state.var, cema_state, ema_state, state.k, state.v


def block_inputs(length: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, length, 8), (8, 3), (8, 3), (8,), (8, 3, 2), (8,), (8,), (8,), (2, 2, 4), (2, 2, 4)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [PLACE.to(x).requires_grad_() for x in drawn]


# torch's own compiler still imports what torch has deprecated, and on a GPU it recommends what rounds more.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("documents", [None, (4, 0, 7)], ids=["whole", "packed"])
def test_compile(backend, documents):
    """A block compiles without a graph break, to eager's values and gradients, and for other lengths."""
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for length in (11, 17):
        cu_seqlens = None
        if documents is not None:
            cu_seqlens = PLACE.to(torch.tensor([0, *documents]).cumsum(0))
            cu_seqlens[-1] = length
        inputs = block_inputs(length)
        expected = block(*inputs, cu_seqlens)
        outputs = compiled(*inputs, cu_seqlens)
        assert_all_close(dict(enumerate(outputs)), dict(enumerate(expected)), 1e-12)
        weights = [torch.ones_like(x) for x in expected]
        actual, wanted = (torch.autograd.grad(results, inputs, weights) for results in (outputs, expected))
        assert_all_close(dict(enumerate(actual)), dict(enumerate(wanted)), 1e-11)


def autocast():
    return torch.autocast(PLACE.type, dtype=LOW)


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("op", [op for op in OPERATORS if len(ACTIVATIONS[op]) == 1])
def test_autocast_keeps_the_type_of_a_single_activation(op, dtype):
    call = example(op, dtype)
    expected = TORCH.forward(call)
    with autocast():
        result = TORCH.forward(call)
    assert result["y"].dtype == dtype
    assert_all_close(result, expected, rtol=0.0)


@pytest.mark.parametrize("op", MIXED)
def test_autocast_promotes_several_activations_to_the_widest(op):
    """As if the narrow ones had been converted; gradients come back in the type of each."""
    call = example(op, torch.float32)
    narrow = ACTIVATIONS[op][0]
    low = call.inputs[narrow].to(LOW)
    mixed, wide = call.with_inputs(**{narrow: low}), call.with_inputs(**{narrow: low.float()})
    drawn = cotangents(TORCH.forward(wide))
    expected = TORCH.run(wide, drawn)
    with autocast():
        result = TORCH.run(mixed, drawn)
    assert result.outputs["y"].dtype == torch.float32
    assert_all_close(result.outputs, expected.outputs, rtol=0.0)
    for name, x in result.gradients.items():
        if x is not None:
            assert torch.equal(x, expected.gradients[name].to(mixed.inputs[name].dtype)), name


@pytest.mark.parametrize("op", MIXED)
def test_autocast_promotes_two_half_types_to_float32(op):
    call = example(op, torch.float16)
    narrow = ACTIVATIONS[op][0]
    with autocast():
        y = TORCH.forward(call.with_inputs(**{narrow: call.inputs[narrow].to(LOW)}))["y"]
    assert y.dtype == torch.float32


@pytest.mark.parametrize("op", MIXED)
def test_mixed_activations_are_an_error_outside_autocast(op):
    call = example(op, torch.float32)
    first, second = ACTIVATIONS[op][:2]
    with pytest.raises(TypeError, match=f"{op}: {second}: expected"):
        TORCH.forward(call.with_inputs(**{first: call.inputs[first].to(LOW)}))
