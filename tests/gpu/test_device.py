"""How operators and models live on a GPU: streams, devices, graphs, and nothing that waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from calls import OPERATORS, SEQUENCE_OPERATORS, Tokens, cotangents, example
from cuda_device import converted, on
from megalodon_core import Megalodon, MegalodonConfig, ops
from tolerance import assert_all_close, assert_bitwise_equal, relative_error
from torch import Tensor

TOKENS = [Tokens(batch=2, length=150), Tokens(documents=(130, 0, 1, 64, 65)), Tokens(2, 150, padded=True)]
CASES = [(op, {}) for op in OPERATORS if op not in SEQUENCE_OPERATORS]
CASES += [(op, {"tokens": tokens}) for op in SEQUENCE_OPERATORS for tokens in TOKENS]
MODEL = MegalodonConfig(
    num_layers=2,
    model_dim=64,
    z_dim=32,
    value_dim=128,
    num_heads=2,
    ffn_hidden_dim=96,
    chunk_size=32,
    vocab_size=61,
    norm_num_groups=4,
)

every_case = pytest.mark.parametrize(("op", "sizes"), CASES, ids=str)


@pytest.fixture
def nothing_waits() -> Iterator[Callable[[str], None]]:
    """Sets what torch does when something waits for the GPU; afterwards nothing, as usual."""
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


@every_case
def test_an_operator_does_not_wait(op, sizes, gpu, nothing_waits):
    """No synchronisation and no copy to the host, forward, backward by autograd and explicit."""
    call = converted(example(op, torch.float32, **sizes), lambda x: x.to(gpu))
    arguments = call.arguments(lambda x: x.requires_grad_() if x.is_floating_point() else x)
    operator = getattr(ops, op)
    operator(**arguments)  # loads the kernels
    torch.cuda.synchronize()
    nothing_waits("error")
    outputs = operator(**arguments)
    y = outputs if isinstance(outputs, Tensor) else outputs[0]
    y.sum().backward()
    with torch.no_grad():
        operator(**arguments)
        dy = torch.ones_like(y)
        with_state = (dy, None) if op in (*SEQUENCE_OPERATORS, "cema_coefficients") else dy
        operator.backward(with_state, **call.arguments())


@every_case
def test_an_operator_follows_the_callers_stream(op, sizes, gpu):
    """Inputs are NaN until late on a stream that is not the default one, results are read on it."""
    call = example(op, torch.float32, **sizes)
    drawn = cotangents(on(gpu).forward(call))
    expected = on(gpu).run(call, drawn)
    stream = torch.cuda.Stream()
    late = converted(call, lambda x: x.to(gpu))
    ready = {name: x.clone() for name, x in late.inputs.items() if x is not None}
    for x in late.inputs.values():
        if x is not None:
            x.fill_(torch.nan)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for name, x in ready.items():
            late.inputs[name].copy_(x)
        result = on(gpu).run(late, drawn)
    assert_bitwise_equal(result.outputs, expected.outputs)
    assert_bitwise_equal(result.gradients, expected.gradients)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
@every_case
def test_an_operator_runs_on_the_device_of_its_inputs(op, sizes, gpu):
    call = example(op, torch.float32, **sizes)
    drawn = cotangents(on(gpu).forward(call))
    expected, result = (on(torch.device("cuda", i)).run(call, drawn) for i in (0, 1))
    assert torch.cuda.current_device() == 0
    assert_bitwise_equal(result.outputs, expected.outputs)
    assert_bitwise_equal(result.gradients, expected.gradients)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_devices_are_not_mixed(gpu):
    x = torch.randn(3, 8, device=gpu)
    with pytest.raises(ValueError, match=r"silu_mul: value: expected .* cuda:0 like gate, got cuda:1"):
        ops.silu_mul(x, x.to("cuda:1"))


def test_the_cpu_and_a_gpu_are_not_mixed(gpu):
    x = torch.randn(3, 8)
    with pytest.raises(ValueError, match="silu_mul: value: expected"):
        ops.silu_mul(x.to(gpu), x)
    with pytest.raises(ValueError, match="silu_mul: value: expected"):
        ops.silu_mul(x, x.to(gpu))


LARGE = {"tokens": Tokens(batch=2, length=3000)}
LARGE_SIZES: dict[str, dict[str, Any]] = {
    "cema": LARGE | {"dim": 512, "ndim": 16},
    "ema": LARGE | {"dim": 512, "ndim": 16},
    "cema_coefficients": {"dim": 4096, "ndim": 16},
    "timestep_norm": LARGE | {"groups": 64, "width": 64},
    "chunk_attention": LARGE | {"key_dim": 128, "value_dim": 512, "chunk_size": 1024, "dropout_p": 0.1},
    "normalized_attention": LARGE | {"key_dim": 128, "value_dim": 512, "chunk_size": 1024},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPERATORS)
def test_ten_runs_are_bitwise_equal(op, dtype, gpu):
    """At sizes at which many blocks share the work."""
    call = example(op, dtype, **LARGE_SIZES.get(op, {"shape": (6000, 2048)}))
    drawn = cotangents(on(gpu).forward(call))
    first = on(gpu).run(call, drawn)
    for _ in range(9):
        again = on(gpu).run(call, drawn)
        assert_bitwise_equal(again.outputs, first.outputs)
        assert_bitwise_equal(again.gradients, first.gradients)


def model_and_step(gpu: torch.device) -> tuple[Megalodon, Tensor, Callable[[], Tensor]]:
    """A small model, its tokens, and one step of training that gives the loss."""
    torch.manual_seed(0)
    model = Megalodon(MODEL).to(gpu)
    tokens = torch.randint(MODEL.vocab_size, (2, 100), generator=torch.Generator().manual_seed(1)).to(gpu)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, capturable=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        logits, _ = model(tokens, return_state=False)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss

    return model, tokens, step


def test_training_is_captured_in_a_graph(gpu):
    """Forward, backward and AdamW: replays on new tokens are the steps that eager training takes."""
    model, tokens, step = model_and_step(gpu)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    other, other_tokens, eager = model_and_step(gpu)
    for _ in range(3):
        eager()
    for seed in range(5):
        new = torch.randint(MODEL.vocab_size, (2, 100), generator=torch.Generator().manual_seed(seed)).to(gpu)
        tokens.copy_(new)
        other_tokens.copy_(new)
        graph.replay()
        assert relative_error(loss, eager()) < 1e-5
    trained, expected = (dict(m.named_parameters()) for m in (model, other))
    assert_all_close(trained, expected, 1e-4)


def test_decoding_is_captured_in_a_graph(gpu):
    """A token a replay, the state in place: the logits of one run over all tokens."""
    torch.manual_seed(0)
    model = Megalodon(MODEL).to(gpu).eval()
    tokens = torch.randint(MODEL.vocab_size, (1, 90), device=gpu)
    with torch.no_grad():
        expected, _ = model(tokens)
        _, state = model(tokens[:, :1], donate_state=True)
        _, state = model(tokens[:, 1:2], state, donate_state=True)
        token = tokens[:, 2:3].clone()
        kept = state.map(Tensor.clone)

        def step() -> Tensor:
            logits, new = model(token, state, donate_state=True)
            for old, found in zip(state.tensors(), new.tensors(), strict=True):
                if old.data_ptr() != found.data_ptr():
                    old.copy_(found)
            return logits

        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = step()
        for old, found in zip(state.tensors(), kept.tensors(), strict=True):
            old.copy_(found)
        for position in range(2, tokens.shape[1]):
            token.copy_(tokens[:, position : position + 1])
            graph.replay()
            assert relative_error(logits[:, 0], expected[:, position]) < 1e-4, position


def test_a_model_on_the_gpu_is_that_on_the_cpu(gpu, tmp_path):
    """Saved, loaded onto the GPU: the same logits and gradients, to float32."""
    torch.manual_seed(0)
    model = Megalodon(MODEL)
    model.save_pretrained(tmp_path)
    there = Megalodon.from_pretrained(tmp_path, device=gpu)
    tokens = torch.randint(MODEL.vocab_size, (2, 100))
    found = []
    for each, given in ((model.eval(), tokens), (there, tokens.to(gpu))):
        logits, _ = each(given)
        logits.square().mean().backward()
        found.append({name: p.grad.cpu() for name, p in each.named_parameters()} | {"": logits.cpu()})
    for name, x in found[0].items():
        assert relative_error(found[1][name], x) < 1e-4, name


@pytest.mark.parametrize("op", SEQUENCE_OPERATORS)
def test_wrong_documents_leave_no_token_out(op, gpu):
    """Offsets are not read for a check: the first counts as 0, the last as the length."""
    call = converted(example(op, torch.float32, tokens=Tokens(documents=(3, 4))), lambda x: x.to(gpu))
    wrong = call.with_options(cu_seqlens=torch.tensor([1, 3, 6], dtype=torch.int32, device=gpu))
    y, expected = (getattr(ops, op)(**one.arguments())[0] for one in (wrong, call))
    assert torch.equal(y, expected)
