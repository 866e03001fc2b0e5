"""Every operator against its float64 reference: 1e-10 in float64, below that as good as naive torch."""

from functools import cache

import pytest
import reference
import torch
from calls import PARAMETER_TYPE, Call, Tokens, cotangents, example
from frontends import REFERENCE, Arrays
from tolerance import GOLDEN, assert_all_close, assert_as_good_as_naive, assert_close

PACKED = Tokens(documents=(4, 0, 1, 8, 0))
PADDED = Tokens(batch=3, length=11, padded=True)
ONE = Tokens(batch=1, length=1)

SEQUENCES = [
    {},
    {"tokens": PACKED},
    {"tokens": PADDED},
    {"tokens": ONE},
    {"tokens": Tokens(batch=1, length=37)},
    # More tokens than a tile of any backend holds, and sequences that end on its boundary and beside it.
    {"tokens": Tokens(documents=(130, 0, 1, 64, 65))},
    {"tokens": Tokens(batch=2, length=150, padded=True)},
]
ATTENTION = [
    *SEQUENCES,
    *({"capacity": 4, **sizes} for sizes in SEQUENCES),
    {"capacity": 2, "dropout_p": 0.3},
    {"capacity": 2, "dropout_p": 0.3, "tokens": PACKED},
    {"capacity": 2, "dropout_p": 0.3, "tokens": PADDED},
    {"chunk_size": 1},
    {"chunk_size": 32, "tokens": Tokens(batch=1, length=37), "heads": 1, "key_dim": 20, "value_dim": 131},
    # Chunks of several tiles of 128, with tails; a long state puts whole tiles before the queries.
    {"chunk_size": 301, "tokens": ONE, "capacity": 300, "key_dim": 8, "value_dim": 16},
    {"chunk_size": 200, "tokens": Tokens(batch=1, length=331), "heads": 1, "key_dim": 40, "value_dim": 136},
    {"chunk_size": 290, "tokens": Tokens(documents=(150, 0, 270)), "heads": 1, "capacity": 180},
    {"chunk_size": 150, "tokens": Tokens(batch=1, length=230, padded=True), "heads": 1, "dropout_p": 0.3},
]
ROWS = [{}, {"shape": (2, 3, 67)}, {"shape": (67, 1)}]
AFFINE = [*ROWS, *({"affine": False, **sizes} for sizes in ROWS)]
NORM = [*AFFINE, {"eps": 1e3}]
SIZES = {
    "cema": [*SEQUENCES, {"state": False, "omega": False}, {"ndim": 1, "dim": 67}, {"ndim": 64, "dim": 19}],
    "ema": [*SEQUENCES, {"state": False, "omega": False}, {"ndim": 1, "dim": 67}, {"ndim": 64, "dim": 19}],
    "cema_coefficients": [{}, {"dim": 1, "ndim": 1}, {"dim": 67, "ndim": 17}],
    "timestep_norm": [
        *SEQUENCES,
        {"state": False},
        {"state": False, "affine": False, "tokens": PACKED},
        {"groups": 1, "width": 67},
        {"groups": 19, "width": 1},
        {"eps": 1e3},
    ],
    "chunk_attention": ATTENTION,
    "normalized_attention": [*ATTENTION, {"eps": 1e3}],
    "rms_norm": NORM,
    "layer_norm": NORM,
    "add_layer_norm": NORM,
    "silu_mul": ROWS,
    "two_hop_residual": AFFINE,
}
CASES = [(op, case) for op, cases in SIZES.items() for case in range(len(cases))]


@cache
def expected(op: str, case: int, dtype: torch.dtype) -> tuple[Call, Arrays, Arrays, Arrays]:
    """A call, its cotangents, and all outputs and gradients: exact ones and naive ones."""
    call = example(op, dtype, **SIZES[op][case])
    parameter = PARAMETER_TYPE.get(dtype, torch.float32)
    drawn = cotangents(REFERENCE.forward(call))
    drawn = {name: x.to(dtype if name == "y" else parameter) for name, x in drawn.items()}
    exact = _reference(call, drawn, torch.float64)
    if dtype == torch.float64:
        return call, drawn, exact, exact
    # Attention may round inside to the type of its activations. All else computes in float32 and rounds once.
    naive = dtype if op in ("chunk_attention", "normalized_attention") else torch.float32
    return call, drawn, exact, _reference(call, drawn, naive)


def _reference(call: Call, drawn: Arrays, dtype: torch.dtype) -> Arrays:
    """Everything computed in `dtype`; below float64, outputs are rounded to the types of `drawn`."""
    with reference.precision(dtype):
        outputs, gradients = REFERENCE.run(call, {name: x.to(dtype) for name, x in drawn.items()})
    if dtype != torch.float64:
        outputs |= {name: outputs[name].to(x.dtype) for name, x in drawn.items()}
    return _flat(outputs, gradients)


def _flat(outputs: Arrays, gradients: Arrays) -> Arrays:
    return outputs | {f"d{name}": x for name, x in gradients.items()}


@pytest.mark.parametrize(("op", "case"), CASES, ids=lambda x: str(x))
def test_operator_matches_its_reference(op, case, frontend, dtype):
    call, drawn, exact, naive = expected(op, case, dtype)
    result = frontend.run(call, drawn)
    assert_types(call, result.outputs, result.gradients, dtype)
    actual = _flat(*result)
    if dtype == torch.float64:
        assert_all_close(actual, exact, GOLDEN)
        return
    assert actual.keys() == exact.keys()
    for name, x in actual.items():
        if x is None or not x.is_floating_point():
            assert_close(x, exact[name], 0.0, name)
        else:
            assert_as_good_as_naive(x, exact[name], naive[name], name)


def assert_types(call: Call, outputs: Arrays, gradients: Arrays, dtype: torch.dtype) -> None:
    """y has the activations' type, a state that of parameters, a count int64, a gradient its input's."""
    parameter = PARAMETER_TYPE.get(dtype, torch.float32)
    for name, x in outputs.items():
        allowed = dtype if name == "y" else torch.int64 if name in ("count", "length") else parameter
        assert x.dtype == allowed, name
    for name, x in call.inputs.items():
        assert x is None or gradients[name].dtype == x.dtype, name
