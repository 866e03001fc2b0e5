"""The operators, for torch tensors and NumPy arrays alike.

A call takes arrays of one framework and returns arrays of it. On torch tensors the operators are
differentiable by autograd; on NumPy arrays `op.backward(cotangents, *args, **kwargs)` gives the gradients.
"""

from megalodon_core.ops.cema import cema, cema_coefficients, ema
from megalodon_core.ops.chunk_attention import ChunkAttentionState, chunk_attention, normalized_attention
from megalodon_core.ops.operator import Operator
from megalodon_core.ops.residual import add_layer_norm, layer_norm, rms_norm, silu_mul, two_hop_residual
from megalodon_core.ops.timestep_norm import TimestepNormState, timestep_norm

__all__ = [
    "SPECS",
    "ChunkAttentionState",
    "Operator",
    "TimestepNormState",
    "add_layer_norm",
    "cema",
    "cema_coefficients",
    "chunk_attention",
    "ema",
    "layer_norm",
    "normalized_attention",
    "rms_norm",
    "silu_mul",
    "timestep_norm",
    "two_hop_residual",
]

# Every operator's description, for frontends that register them.
SPECS = tuple(
    op.spec
    for op in (
        cema,
        ema,
        cema_coefficients,
        timestep_norm,
        chunk_attention,
        normalized_attention,
        rms_norm,
        layer_norm,
        add_layer_norm,
        silu_mul,
        two_hop_residual,
    )
)
