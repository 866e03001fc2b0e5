"""Tensors of more than 2^31 elements: their last part is what a call on that part alone gives.

Without a GPU the same comparisons run on few elements, so that they are right when there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from frontends import why_no_gpu
from megalodon_core import ops
from tolerance import relative_error
from torch import Tensor

DTYPE, WIDTH, TAIL = torch.bfloat16, 2048, 64
ROWS = (2**31 if why_no_gpu() is None else 2**18) // WIDTH + TAIL
RTOL = 1e-2
"""Both round to bfloat16; a sum over time may be taken in another order."""


@pytest.fixture(autouse=True)
def memory(device) -> Iterator[None]:
    """Nothing of an earlier test stays allocated: some of these need most of a GPU."""
    torch.manual_seed(0)
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def draw(device) -> Callable[..., Tensor]:
    def drawn(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    return drawn


def assert_same(actual: Tensor, expected: Tensor, what: str) -> None:
    assert relative_error(actual, expected) < RTOL, what


ROW_WISE = {"rms_norm": 1, "layer_norm": 1, "add_layer_norm": 2, "silu_mul": 2, "two_hop_residual": 2}
"""How many activations the operator has."""
VECTORS = {"rms_norm": 1, "layer_norm": 2, "add_layer_norm": 2, "silu_mul": 0, "two_hop_residual": 1}


@pytest.mark.parametrize("op", ROW_WISE)
def test_rows(op, draw):
    operator = getattr(ops, op)
    activations = [draw(ROWS, WIDTH) for _ in range(ROW_WISE[op])]
    vectors = [draw(WIDTH, dtype=torch.float32) for _ in range(VECTORS[op])]
    last = [x[-TAIL:].clone() for x in activations]
    assert_same(operator(*activations, *vectors)[-TAIL:], operator(*last, *vectors), "y")

    dy = draw(ROWS, WIDTH)
    gradients = operator.backward(dy, *activations, *vectors)
    expected = operator.backward(dy[-TAIL:].clone(), *last, *vectors)
    for index in range(len(activations)):
        assert_same(gradients[index][-TAIL:], expected[index], f"gradient {index}")
    if vectors:
        halves = [
            operator.backward(dy[part], *(x[part] for x in activations), *vectors)[len(activations)]
            for part in (slice(ROWS // 2), slice(ROWS // 2, None))
        ]
        assert_same(gradients[len(activations)], halves[0] + halves[1], "gradient of the first vector")


def cema(draw: Callable[..., Tensor]) -> tuple[Callable[..., tuple], Callable[..., tuple], Tensor]:
    """An operator of x and a state, its backward of (dy, None), and x, one sequence."""
    p, q = ops.cema_coefficients(
        *(draw(WIDTH, 2, dtype=torch.float32) for _ in range(2)), draw(WIDTH, dtype=torch.float32)
    )
    given = p, q, draw(WIDTH, 2, 2, dtype=torch.float32), draw(WIDTH, dtype=torch.float32)
    return (
        lambda x, state=None: ops.cema(x, *given, initial_state=state),
        lambda dy, x, state=None: ops.cema.backward((dy, None), x, *given, initial_state=state).x,
        draw(1, ROWS, WIDTH),
    )


def timestep_norm(draw: Callable[..., Tensor]) -> tuple[Callable[..., tuple], Callable[..., tuple], Tensor]:
    given = draw(WIDTH, dtype=torch.float32), draw(WIDTH, dtype=torch.float32), 32
    return (
        lambda x, state=None: ops.timestep_norm(x, *given, initial_state=state),
        lambda dy, x, state=None: ops.timestep_norm.backward((dy, None), x, *given, initial_state=state).x,
        draw(1, ROWS, WIDTH),
    )


def normalized_attention(
    draw: Callable[..., Tensor],
) -> tuple[Callable[..., tuple], Callable[..., tuple], Tensor]:
    """x are the values; the keys are of width 16."""
    gamma, beta = (draw(2, 1, 16, dtype=torch.float32) for _ in range(2))
    z = draw(1, ROWS, 1, 16)

    def forward(v: Tensor, state: object = None) -> tuple:
        part = z[:, -v.shape[1] :] if state is not None else z[:, : v.shape[1]]
        return ops.normalized_attention(part, gamma, beta, v, chunk_size=TAIL, initial_state=state)

    def backward(dy: Tensor, v: Tensor, state: object = None) -> Tensor:
        part = z[:, -v.shape[1] :] if state is not None else z[:, : v.shape[1]]
        return ops.normalized_attention.backward(
            (dy, None), part, gamma, beta, v, chunk_size=TAIL, initial_state=state
        ).v

    return forward, backward, draw(1, ROWS, 1, WIDTH)


@pytest.mark.parametrize("make", [cema, timestep_norm, normalized_attention], ids=lambda f: f.__name__)
def test_one_sequence(make, draw):
    """The last tokens, forward and backward, continue the state of those before them."""
    forward, backward, x = make(draw)
    _, state = forward(x[:, :-TAIL])
    last = x[:, -TAIL:].clone()
    assert_same(forward(x)[0][:, -TAIL:], forward(last, state)[0], "y")
    dy = torch.randn_like(x)
    expected = backward(dy[:, -TAIL:].clone(), last, state)
    assert_same(backward(dy, x)[:, -TAIL:], expected, "dx")


@pytest.mark.parametrize("make", [cema, timestep_norm], ids=lambda f: f.__name__)
def test_many_sequences(make, draw):
    """The last row of a batch is what it is alone."""
    forward, backward, x = make(draw)
    batch = x.view(-1, TAIL, WIDTH)
    last = batch[-1:].clone()
    assert_same(forward(batch)[0][-1:], forward(last)[0], "y")
    dy = torch.randn_like(batch)
    assert_same(backward(dy, batch)[-1:], backward(dy[-1:].clone(), last), "dx")
