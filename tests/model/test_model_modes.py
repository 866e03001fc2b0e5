"""Types, autocast, dropout, recomputation, compilation: the same model in other clothes."""

from __future__ import annotations

import copy

import pytest
import torch
from megalodon_core.nn import Block
from tolerance import relative_error


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_low_precision_model(tiny, tokens, dtype, rtol):
    exact, _ = tiny(dtype=torch.float64)(tokens)
    model = tiny(dtype=dtype)
    seen = []
    hooks = [
        layer.register_forward_hook(lambda *args: seen.append(args[2][0].dtype)) for layer in model.layers
    ]
    logits, state = model(tokens)
    logits.square().mean().backward()
    for hook in hooks:
        hook.remove()
    assert seen == [dtype, dtype]
    assert logits.dtype == torch.float32
    assert {tensor.dtype for tensor in state.tensors()} == {torch.float32, torch.int64}
    assert relative_error(logits, exact) < rtol
    assert all(parameter.grad.dtype == dtype for parameter in model.parameters())
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    continued, _ = model(tokens[:, :3], state)
    assert torch.isfinite(continued).all()


def test_float64_model(tiny, tokens):
    logits, state = tiny(dtype=torch.float64)(tokens)
    assert logits.dtype == torch.float64
    assert {tensor.dtype for tensor in state.tensors()} == {torch.float64, torch.int64}


def test_autocast(tiny, tokens):
    model = tiny()
    exact, _ = model(tokens)
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        logits, state = model(tokens)
        continued, _ = model(tokens[:, :3], state)
    logits.square().mean().backward()
    assert logits.dtype == torch.float32
    assert relative_error(logits, exact) < 0.05
    assert relative_error(logits, exact) > 0
    assert torch.isfinite(continued).all()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    assert {tensor.dtype for tensor in state.tensors()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("kind", ["dropout", "hidden_dropout", "attention_dropout"])
def test_dropout_is_active_in_training_only(tiny, tokens, kind):
    model = tiny(**{kind: 0.4})
    plain, _ = tiny().eval()(tokens)

    def run(seed):
        torch.manual_seed(seed)
        return model(tokens)[0]

    assert relative_error(run(0), plain) > 1e-3
    assert torch.equal(run(0), run(0))
    assert relative_error(run(1), run(0)) > 1e-3
    model.eval()
    assert torch.equal(run(0), plain)
    assert torch.equal(run(1), plain)


def test_layerwise_recomputation_changes_no_gradient(tiny, tokens):
    dropouts = {"dropout": 0.2, "hidden_dropout": 0.2, "attention_dropout": 0.2}
    results = []
    for layerwise in (False, True):
        model = tiny(layerwise_ckpt=layerwise, **dropouts)
        calls = []
        for layer in model.layers:
            layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(3)
        logits, _ = model(tokens)
        logits.square().mean().backward()
        results.append([parameter.grad for parameter in model.parameters()])
        assert len(calls) == (4 if layerwise else 2)
    for plain, recomputed in zip(*results, strict=True):
        assert relative_error(recomputed, plain) < 1e-6


def test_layerwise_recomputation_stores_less(tiny, tokens):
    def stored(**changes):
        model, sizes = tiny(**changes), {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
        ):
            model(tokens, return_state=False)
        return sum(sizes.values())

    assert stored(layerwise_ckpt=True) < 0.5 * stored()


# torch's compiler asks every input for its gradient, and torch warns of that where the input is a result.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_block_equals_eager(tiny):
    block = tiny(swiglu=True, rescale_nffn=True).layers[0]
    compiled_block = copy.deepcopy(block)
    compiled = torch.compile(compiled_block, fullgraph=True, backend="aot_eager")

    def run(function, module):
        torch.manual_seed(1)
        x = torch.randn(2, 7, 12, requires_grad=True)
        y, state = function(x)
        z, _ = function(y, state)
        z.square().sum().backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        return [y, z, x.grad, *gradients, state.cema, state.attention.k, state.timestep_norm.var]

    for ours, theirs in zip(run(compiled, compiled_block), run(block, block), strict=True):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch deprecates
def test_compiled_block_by_inductor(tiny):
    block: Block = tiny().layers[0]
    compiled = torch.compile(block, fullgraph=True)
    x = torch.randn(2, 7, 12, requires_grad=True)
    expected = block(x)[0]
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    y = compiled(x)[0]
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert relative_error(y, expected) < 1e-5
    assert relative_error(gradient, expected_gradient) < 1e-5


def test_model_runs_bitwise_the_same_twice(tiny, tokens):
    model = tiny()
    runs = []
    for _ in range(2):
        model.zero_grad()
        logits, _ = model(tokens)
        logits.square().sum().backward()
        runs.append([logits, *(parameter.grad.clone() for parameter in model.parameters())])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
