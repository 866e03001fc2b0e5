"""One slow, obviously right reference per operator.

Every function has the signature of the public operator of the same name, takes torch tensors of any float
type, computes in float64 with plain differentiable torch operations and a loop over time, and returns that.
No function here checks its arguments, and none imports megalodon_core.
"""

from .cema import cema, cema_coefficients, ema
from .chunk_attention import ChunkAttentionState, chunk_attention, normalized_attention
from .precision import precision
from .residual import add_layer_norm, layer_norm, rms_norm, silu_mul, two_hop_residual
from .timestep_norm import TimestepNormState, timestep_norm

__all__ = [
    "ChunkAttentionState",
    "TimestepNormState",
    "add_layer_norm",
    "cema",
    "cema_coefficients",
    "chunk_attention",
    "ema",
    "layer_norm",
    "normalized_attention",
    "precision",
    "rms_norm",
    "silu_mul",
    "timestep_norm",
    "two_hop_residual",
]
