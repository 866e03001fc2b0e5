"""torch autograd: finite differences, explicit gradients, partial graphs, and no backward of backward."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from calls import OPERATORS, SEQUENCE_OPERATORS, Call, Tokens, cotangents, example
from frontends import TORCH, TORCH_EXPLICIT
from megalodon_core import ops
from tolerance import GOLDEN, assert_all_close, assert_bitwise_equal
from torch import Tensor

SIZES = {
    "cema": {"dim": 2, "ndim": 2},
    "ema": {"dim": 2, "ndim": 2},
    "cema_coefficients": {"dim": 2},
    "timestep_norm": {"groups": 2},
    "chunk_attention": {"chunk_size": 3, "capacity": 2, "key_dim": 2, "value_dim": 3, "heads": 1},
    "normalized_attention": {"chunk_size": 3, "capacity": 2, "key_dim": 4, "value_dim": 3, "heads": 1},
}
TOKENS = [Tokens(batch=2, length=5), Tokens(documents=(2, 0, 4)), Tokens(batch=2, length=5, padded=True)]
CASES = [(op, SIZES.get(op, {"shape": (2, 3)})) for op in OPERATORS if op not in SEQUENCE_OPERATORS]
CASES += [(op, SIZES[op] | {"tokens": tokens}) for op in SEQUENCE_OPERATORS for tokens in TOKENS]


def as_function(call: Call) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """The differentiable outputs as a function of the differentiable inputs, and those inputs as leaves."""
    given = {name: x for name, x in call.inputs.items() if x is not None}

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        outputs = TORCH.forward(call.with_inputs(**dict(zip(given, leaves, strict=True))))
        return tuple(x for x in outputs.values() if x.is_floating_point())

    return function, [x.clone().requires_grad_() for x in given.values()]


@pytest.mark.parametrize(("op", "sizes"), CASES)
def test_gradcheck(op, sizes):
    """Every differentiable input, states included, in every differentiable output, states included."""
    function, leaves = as_function(example(op, torch.float64, **sizes))
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("op", OPERATORS)
def test_explicit_gradients_are_those_of_autograd(op, dtype):
    call = example(op, dtype)
    drawn = cotangents(TORCH.forward(call))
    explicit, autograd = TORCH_EXPLICIT.run(call, drawn), TORCH.run(call, drawn)
    assert_bitwise_equal(explicit.outputs, autograd.outputs)
    assert_bitwise_equal(explicit.gradients, autograd.gradients)


@pytest.mark.parametrize("op", [*SEQUENCE_OPERATORS, "cema_coefficients"])
def test_any_output_may_stay_out_of_the_loss(op):
    """A missing cotangent is a zero one, whichever outputs have one."""
    call = example(op, torch.float64)
    drawn = cotangents(TORCH.forward(call))
    for used in (set(names) for n in range(1, len(drawn)) for names in combinations(drawn, n)):
        some = {name: x for name, x in drawn.items() if name in used}
        zeros = {name: x if name in used else torch.zeros_like(x) for name, x in drawn.items()}
        assert_all_close(TORCH.run(call, some).gradients, TORCH.run(call, zeros).gradients, GOLDEN)


@pytest.mark.parametrize("op", SEQUENCE_OPERATORS)
def test_a_state_may_have_no_explicit_cotangent(op):
    call = example(op, torch.float64)
    drawn = {"y": cotangents(TORCH.forward(call))["y"]}
    assert_bitwise_equal(TORCH_EXPLICIT.run(call, drawn).gradients, TORCH.run(call, drawn).gradients)


@pytest.mark.parametrize("op", OPERATORS)
def test_gradients_of_some_inputs_only(op):
    """Each input may be the only one that requires a gradient, which does not depend on the others."""
    call = example(op, torch.float64)
    drawn = cotangents(TORCH.forward(call))
    expected = TORCH.run(call, drawn).gradients
    for name, x in call.inputs.items():
        if x is not None:
            leaf = x.clone().requires_grad_()
            outputs = TORCH.forward(call.with_inputs(**{name: leaf}))
            (gradient,) = torch.autograd.grad([outputs[k] for k in drawn], [leaf], list(drawn.values()))
            assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("op", OPERATORS)
def test_no_graph_is_built_without_a_need(op):
    call = example(op, torch.float32)
    assert not any(x.requires_grad for x in TORCH.forward(call).values())
    function, leaves = as_function(call)
    with torch.no_grad():
        assert not any(x.requires_grad for x in function(*leaves))


@pytest.mark.parametrize("op", OPERATORS)
def test_counts_and_lengths_require_no_gradient(op):
    call = example(op, torch.float32)
    leaves = {name: x.clone().requires_grad_() for name, x in call.inputs.items() if x is not None}
    for name, x in TORCH.forward(call.with_inputs(**leaves)).items():
        assert x.requires_grad == x.is_floating_point(), name


@pytest.mark.parametrize("op", OPERATORS)
def test_backward_of_backward_is_a_clear_error(op):
    function, leaves = as_function(example(op, torch.float64))
    gradients = torch.autograd.grad([x.sum() for x in function(*leaves)], leaves, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{op}: backward of backward"):
        sum((g * g).sum() for g in gradients).backward()


# torch.func.jvp loads torch's decompositions, which warn of what they are written in.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("op", OPERATORS)
def test_forward_mode_is_a_clear_error(op):
    """A derivative that no formula gives must not come out as zero."""
    function, leaves = as_function(example(op, torch.float64))
    values = tuple(x.detach() for x in leaves)
    ones = tuple(torch.ones_like(x) for x in values)
    refused = pytest.raises(NotImplementedError, match=f"{op}: forward-mode differentiation")
    with refused:
        torch.func.jvp(lambda *given: function(*given)[0], values, ones)
    with refused, torch.autograd.forward_ad.dual_level():
        function(*map(torch.autograd.forward_ad.make_dual, values, ones))
    y = function(*leaves)[0]
    with refused, torch.autograd.forward_ad.dual_level():
        torch.autograd.grad(y, leaves, torch.autograd.forward_ad.make_dual(torch.ones_like(y), y.detach()))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_mode_elsewhere_is_no_error():
    x = torch.randn(2, 3)
    with torch.autograd.forward_ad.dual_level():
        torch.autograd.forward_ad.make_dual(torch.zeros(()), torch.ones(()))
        assert torch.equal(ops.rms_norm(x), ops.rms_norm(x.clone()))
    _, tangent = torch.func.jvp(lambda weight: weight * ops.rms_norm(x), (torch.ones(3),), (torch.ones(3),))
    assert torch.equal(tangent, ops.rms_norm(x))
