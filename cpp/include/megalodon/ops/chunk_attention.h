// Attention inside chunks, plain and normalized (Megalodon, section 3.3).
//
//   y_t = softmax over s of scale (q_t . k_s) applied to v_s,   s <= t, s in the chunk of t
//
// Normalized: one z per head gives both q and k. z^ = z rsqrt(mean(z^2) + eps), q = z^ gamma[0] + beta[0],
// k = z^ gamma[1] + beta[1], then RoPE at the position inside the chunk, and scale = 1.
// Positions count unpadded tokens of the row (or document), starting at the initial state's length.
#pragma once

#include "megalodon/ops/sequence.h"

namespace megalodon {

// What both operators share. Keys of the state are the rotated ones.
struct Attention {
  Tensor v;               // (B, L, H, Dv)
  Tensor initial_k;       // (count, P, H, Dz); the three parts are given together or not at all
  Tensor initial_v;       // (count, P, H, Dv)
  Tensor initial_length;  // int64 (count,), each in [0, P], P <= chunk_size - 1
  SequenceInputs sequence;
  std::int64_t chunk_size = 1;
  double dropout_p = 0;  // DropKey: a score is dropped before the softmax with this probability
  std::uint64_t seed = 0;
};

struct ChunkAttention : Attention {
  Tensor q, k;  // (B, L, H, Dz)
  double scale = 1;
};

struct NormalizedAttention : Attention {
  Tensor z;            // (B, L, H, Dz), Dz even
  Tensor gamma, beta;  // (2, H, Dz)
  double rope_base = 10000;
  double eps = 1e-5;
};

struct AttentionShape : SequenceShape {
  std::int64_t heads = 0;             // H
  std::int64_t key_dim = 0;           // Dz
  std::int64_t value_dim = 0;         // Dv
  std::int64_t initial_capacity = 0;  // P
  std::int64_t capacity = 0;          // of the final state: at least min(chunk_size - 1, P + L)
};

AttentionShape validate(const ChunkAttention& op);
AttentionShape validate(const NormalizedAttention& op);

struct AttentionOutputs {
  Tensor y;             // (B, L, H, Dv)
  Tensor final_k;       // (count, capacity, H, Dz); may be initial_k itself, and final_v then initial_v
  Tensor final_v;       // (count, capacity, H, Dv)
  Tensor final_length;  // int64 (count,)
};

struct AttentionCotangents {
  Tensor dy;                  // (B, L, H, Dv)
  Tensor dfinal_k, dfinal_v;  // absent where the state takes no part in the loss
};

struct AttentionGradients {
  Tensor dv;
  Tensor dinitial_k, dinitial_v;  // absent where there is no initial state
};

struct ChunkAttentionForward : ChunkAttention, AttentionOutputs {};
struct NormalizedAttentionForward : NormalizedAttention, AttentionOutputs {};

// Backward needs nothing but the inputs of forward: scores are recomputed, tile by tile.
struct ChunkAttentionBackward : ChunkAttention, AttentionCotangents, AttentionGradients {
  Tensor dq, dk;
};
struct NormalizedAttentionBackward : NormalizedAttention, AttentionCotangents, AttentionGradients {
  Tensor dz, dgamma, dbeta;
};

void validate_cotangents(const ChunkAttentionBackward& op, const AttentionShape& shape);
void validate_cotangents(const NormalizedAttentionBackward& op, const AttentionShape& shape);

}  // namespace megalodon
