"""Linear maps of a model: what torch computes, and 16-bit types where torch has no fast product of them."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from megalodon_core import linear as linear_module
from megalodon_core.linear import linear
from tolerance import relative_error

HALVES = [torch.bfloat16, torch.float16]
SHAPES = [((7, 12), 5), ((2, 9, 12), 33), ((0, 12), 5), ((12,), 5), ((1100, 12), 5)]


@pytest.fixture(params=HALVES, ids=str)
def slow(request, monkeypatch) -> torch.dtype:
    """A 16-bit type of which this CPU is said to have no products."""
    monkeypatch.setattr(linear_module, "SLOW_TYPES", frozenset(HALVES))
    return request.param


def tensors(shape, outputs: int, dtype: torch.dtype, bias: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(outputs)
    shapes = [shape, (outputs, shape[-1])] + [(outputs,)] * bias
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def run(function, inputs, dy):
    y = function(*inputs, *[None] * (3 - len(inputs)))
    return y, torch.autograd.grad(y, inputs, dy)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_a_type_without_products_loses_one_rounding(slow, shape, outputs, bias):
    inputs = tensors(shape, outputs, slow, bias)
    dy = torch.randn(*shape[:-1], outputs).to(slow)
    y, gradients = run(linear, inputs, dy)
    exact, wanted = run(F.linear, [x.detach().double().requires_grad_() for x in inputs], dy.double())
    assert y.dtype == slow
    assert y.shape == exact.shape
    for result, reference, leaf in zip((y, *gradients), (exact, *wanted), (y, *inputs), strict=True):
        assert result.dtype == slow
        assert result.shape == leaf.shape
        if result.numel() > 0:
            assert relative_error(result.detach(), reference.detach()) < torch.finfo(slow).eps / 2


def test_it_keeps_the_narrow_tensors_for_backward(slow):
    kept = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.dtype)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        linear(*tensors((7, 12), 5, slow, True))
    assert kept == [slow, slow]


@pytest.mark.parametrize("inside", [True, False], ids=["backward_inside", "backward_outside"])
def test_autocast_multiplies_what_it_rounds(slow, inside):
    inputs = tensors((7, 12), 5, torch.float32, True)
    dy = torch.randn(7, 5).to(slow)
    with torch.autocast("cpu", dtype=slow):
        y = linear(*inputs)
        with nullcontext() if inside else torch.autocast("cpu", enabled=False):
            gradients = torch.autograd.grad(y, inputs, dy)
    rounded = [x.detach().to(slow).requires_grad_() for x in inputs]
    expected, wanted = run(linear, rounded, dy)
    assert torch.equal(y, expected)
    for result, reference in zip(gradients, wanted, strict=True):
        assert result.dtype == torch.float32
        assert torch.equal(result, reference.float())


def test_no_gradient_is_computed_that_nobody_wants(slow):
    x, weight, bias = tensors((7, 12), 5, slow, True)
    (dbias,) = torch.autograd.grad(linear(x.detach(), weight.detach(), bias).sum(), bias)
    assert torch.equal(dbias, torch.full_like(bias, 7))


# torch's own compiler still does what torch has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_without_a_graph_break(slow):
    inputs = tensors((7, 12), 5, slow, True)
    dy = torch.randn(7, 5).to(slow)
    expected, wanted = run(linear, inputs, dy)
    y, gradients = run(torch.compile(linear, fullgraph=True, backend="aot_eager"), inputs, dy)
    assert torch.equal(y, expected)
    assert all(torch.equal(*pair) for pair in zip(gradients, wanted, strict=True))


def test_per_sample_gradients(slow):
    x, weight, bias = (t.detach() for t in tensors((7, 12), 5, slow, True))

    def loss(w: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return linear(row[None], w, bias).float().square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)
    wanted = torch.stack([torch.func.grad(loss)(weight, row) for row in x])
    assert relative_error(found, wanted.double()) < 2 * torch.finfo(slow).eps


def test_mixed_types_are_torchs_error(slow):
    x, weight, _ = tensors((7, 12), 5, slow, True)
    with pytest.raises(RuntimeError, match="same dtype"):
        linear(x, weight.float(), None)
