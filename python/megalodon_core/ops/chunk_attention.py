"""Attention inside chunks: `chunk_attention` and `normalized_attention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from megalodon_core.ops.operator import Call, number, operator, state_parts
from megalodon_core.spec import Inferred, Input, Spec


class ChunkAttentionState(NamedTuple):
    """Keys (rotated) and values of the unfinished chunk, and how many positions of each row are filled.

    k (B, P, H, Dz), v (B, P, H, Dv), length (B,) int64. P <= chunk_size - 1; slots from length on are 0.
    """

    k: Any
    v: Any
    length: Any


class ChunkAttentionGradients(NamedTuple):
    """Gradients of `chunk_attention` in its inputs."""

    q: Any
    k: Any
    v: Any
    initial_k: Any
    initial_v: Any


class NormalizedAttentionGradients(NamedTuple):
    """Gradients of `normalized_attention` in its inputs."""

    z: Any
    gamma: Any
    beta: Any
    v: Any
    initial_k: Any
    initial_v: Any


_STATE_INPUTS = (
    Input("initial_k", optional=True),
    Input("initial_v", optional=True),
    Input("initial_length", optional=True, gradient=None),
    Input("cu_seqlens", optional=True, gradient=None),
    Input("padding_mask", optional=True, gradient=None),
)
_OUTPUTS = ("y", "k", "v", "length")


def _infer(keys: Any, v: Any, inputs: Sequence[Any], chunk_size: int) -> list[Inferred]:
    initial_k, cu_seqlens = inputs[-5], inputs[-2]
    batch, length, heads, key_dim = keys.shape
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    capacity = min(chunk_size - 1, length + (0 if initial_k is None else initial_k.shape[1]))
    return [
        (tuple(v.shape), "activation"),
        ((rows, capacity, heads, key_dim), "parameter"),
        ((rows, capacity, heads, v.shape[3]), "parameter"),
        ((rows,), "int64"),
    ]


CHUNK_ATTENTION = Spec(
    "chunk_attention",
    (Input("q", activation=True), Input("k", activation=True), Input("v", activation=True), *_STATE_INPUTS),
    _OUTPUTS,
    lambda inputs, attributes: _infer(inputs[0], inputs[2], inputs, attributes[0]),
    attributes=(("chunk_size", int), ("scale", float), ("dropout_p", float), ("seed", int)),
    y_like=2,
    integer_outputs=("length",),
)
NORMALIZED_ATTENTION = Spec(
    "normalized_attention",
    (Input("z", activation=True), Input("gamma"), Input("beta"), Input("v", activation=True), *_STATE_INPUTS),
    _OUTPUTS,
    lambda inputs, attributes: _infer(inputs[0], inputs[3], inputs, attributes[0]),
    attributes=(
        ("chunk_size", int),
        ("rope_base", float),
        ("eps", float),
        ("dropout_p", float),
        ("seed", int),
    ),
    y_like=3,
    integer_outputs=("length",),
)


def _pack(outputs: tuple[Any, ...]) -> tuple[Any, ChunkAttentionState]:
    return outputs[0], ChunkAttentionState(*outputs[1:])


def _seed(op: str, dropout_p: float, seed: int | None) -> int:
    if seed is None:
        if dropout_p != 0:
            raise ValueError(f"{op}: seed: expected an integer in [0, 2^63) beside dropout_p, got None")
        return 0
    value: int = number(op, "seed", int, seed)
    if value < 0:
        raise ValueError(f"{op}: seed: expected an integer in [0, 2^63), got {value}")
    return value


@operator(CHUNK_ATTENTION, _pack, ChunkAttentionGradients)
def chunk_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    chunk_size: int,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int | None = None,
    initial_state: Any = None,
    donate_state: bool = False,
    cu_seqlens: Any = None,
    padding_mask: Any = None,
) -> Call:
    """Causal attention inside chunks of `chunk_size` tokens.

        y_t = softmax over s of scale (q_t . k_s) applied to v_s,    s <= t, s in the chunk of t

    Positions and chunk boundaries count unpadded tokens of the row (or document), from the initial state's
    length on. No L x L matrix is stored, forward or backward: scores of at most one chunk and head.

    Args:
        q, k: (B, L, H, Dz), float32, bfloat16, float16 or float64; any strides.
        v: (B, L, H, Dv), same type.
        chunk_size: c >= 1.
        scale: finite factor of the scores.
        dropout_p: DropKey: each allowed score is dropped before the softmax with this probability, in [0, 1);
            nothing is rescaled, and a row with nothing left gives 0. The pattern is Philox4x32-10 of
            (seed, row, head, t, s), regenerated in backward.
        seed: integer in [0, 2^63), needed with dropout.
        initial_state: ChunkAttentionState or tuple (k (B, P, H, Dz), v (B, P, H, Dv), length (B,) int64) with
            any capacity P <= c - 1, float32 (float64 beside float64 activations); n rows beside `cu_seqlens`.
        donate_state: the memory of `initial_state` may be used for the returned state, and must not be used
            otherwise from then on: in eager calls without gradients a state of capacity c - 1 is updated in
            place, so that decoding copies nothing. The returned capacity is then c - 1.
        cu_seqlens, padding_mask: as in `cema`.

    Returns:
        (y, ChunkAttentionState): y like `v`; the state has capacity min(c - 1, P + L).

    Backward saves the inputs only and recomputes the scores tile by tile.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    state = state_parts("chunk_attention", initial_state, ChunkAttentionState._fields)
    attributes = (chunk_size, scale, dropout_p, _seed("chunk_attention", dropout_p, seed))
    return Call((q, k, v, *state, cu_seqlens, padding_mask), attributes, donate_state)


@operator(NORMALIZED_ATTENTION, _pack, NormalizedAttentionGradients)
def normalized_attention(
    z: Any,
    gamma: Any,
    beta: Any,
    v: Any,
    *,
    chunk_size: int,
    rope_base: float = 10000.0,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    seed: int | None = None,
    initial_state: Any = None,
    donate_state: bool = False,
    cu_seqlens: Any = None,
    padding_mask: Any = None,
) -> Call:
    """Normalized attention inside chunks (Megalodon, section 3.3; released `MovingAverageGatedAttention`).

        zn = z rsqrt(mean(z^2) + eps)  over the head's Dz values
        q = zn gamma[0] + beta[0]      k = zn gamma[1] + beta[1]
        RoPE on q and k at the position inside the chunk: pairs (2j, 2j + 1), angle t rope_base^(-2j / Dz)
        y_t = softmax over s of (q_t . k_s) applied to v_s,    s <= t, s in the chunk of t

    There is no further 1 / sqrt(Dz): the model passes (gamma + 1) / sqrt(Dz) and beta.

    Args:
        z: (B, L, H, Dz), Dz even, float32, bfloat16, float16 or float64; any strides.
        gamma, beta: (2, H, Dz), float32 (float64 beside float64 activations).
        v: (B, L, H, Dv), the type of `z`. Dv may be any multiple or fraction of Dz.
        rope_base, eps: finite and > 0.
        chunk_size, dropout_p, seed, initial_state, donate_state, cu_seqlens, padding_mask: as in
            `chunk_attention`; the state's keys are the rotated ones.

    Returns:
        (y, ChunkAttentionState): y like `v`.

    Backward saves the inputs only and recomputes norm, rotation and scores.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    state = state_parts("normalized_attention", initial_state, ChunkAttentionState._fields)
    attributes = (chunk_size, rope_base, eps, dropout_p, _seed("normalized_attention", dropout_p, seed))
    return Call((z, gamma, beta, v, *state, cu_seqlens, padding_mask), attributes, donate_state)
