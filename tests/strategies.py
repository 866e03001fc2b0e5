"""Hypothesis strategies for calls: sizes are drawn, values follow from a seed."""

from __future__ import annotations

from typing import Any

import torch
from calls import SEQUENCE_OPERATORS, Call, Tokens, example
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

DIMS = st.sampled_from([1, 2, 3, 7, 8, 13, 16, 17, 31, 33])
SEEDS = st.integers(0, 2**16)
LENGTHS = st.integers(1, 24) | st.sampled_from([31, 64, 97])

batches = st.builds(Tokens, batch=st.integers(1, 3), length=LENGTHS)
padded = st.builds(Tokens, batch=st.integers(1, 3), length=LENGTHS, padded=st.just(True))
packed = st.builds(
    Tokens,
    documents=st.lists(st.integers(0, 17), min_size=1, max_size=5).filter(any).map(tuple),
)


@st.composite
def calls(draw, op: str, dtype: torch.dtype, tokens: SearchStrategy[Tokens] = batches) -> Call:
    """Calls of an operator; `tokens` are those of a sequence operator."""
    sizes = draw(SIZES[op])
    if op in SEQUENCE_OPERATORS:
        sizes["tokens"] = draw(tokens)
    return example(op, dtype, seed=draw(SEEDS), **sizes)


@st.composite
def attention(draw) -> dict[str, Any]:
    chunk_size = draw(st.sampled_from([1, 2, 3, 8, 13, 64]))
    return {
        "heads": draw(st.integers(1, 3)),
        "key_dim": 2 * draw(st.integers(1, 9)),
        "value_dim": draw(DIMS),
        "chunk_size": chunk_size,
        "capacity": draw(st.none() | st.integers(0, chunk_size - 1)),
    }


cema = st.fixed_dictionaries(
    {
        "dim": DIMS,
        "ndim": st.sampled_from([1, 2, 3, 5, 8, 16, 17]),
        "omega": st.booleans(),
        "state": st.booleans(),
    }
)
timestep_norm = st.fixed_dictionaries(
    {
        "groups": st.sampled_from([1, 2, 3, 5, 16]),
        "width": st.sampled_from([1, 2, 3, 7, 16]),
        "affine": st.booleans(),
        "state": st.booleans(),
    }
)
shapes = (
    st.tuples(DIMS)
    | st.tuples(st.integers(1, 5), DIMS)
    | st.tuples(st.integers(1, 3), st.integers(1, 3), DIMS)
)
affine = st.fixed_dictionaries({"shape": shapes, "affine": st.booleans()})
SIZES: dict[str, SearchStrategy[dict[str, Any]]] = {
    "cema": cema,
    "ema": cema,
    "cema_coefficients": st.fixed_dictionaries({"dim": DIMS, "ndim": st.integers(1, 17)}),
    "timestep_norm": timestep_norm,
    "chunk_attention": attention(),
    "normalized_attention": attention(),
    "rms_norm": affine,
    "layer_norm": affine,
    "add_layer_norm": affine,
    "silu_mul": st.fixed_dictionaries({"shape": shapes}),
    "two_hop_residual": affine,
}
