#include "megalodon/ops/chunk_attention.h"

#include <algorithm>

namespace megalodon {
namespace {

void validate_state(const Check& check, const Attention& op, AttentionShape& shape) {
  check.together("initial_state.k", op.initial_k, "initial_state.v", op.initial_v);
  check.together("initial_state.k", op.initial_k, "initial_state.length", op.initial_length);
  if (!op.initial_k.defined()) return;
  if (op.initial_k.rank != 4 || op.initial_k.size(1) > op.chunk_size - 1) {
    check.fail("initial_state.k",
               "shape (" + std::to_string(shape.count) + ", P, " + std::to_string(shape.heads) + ", " +
                   std::to_string(shape.key_dim) + ") with P <= " + std::to_string(op.chunk_size - 1),
               shape_string(op.initial_k));
  }
  shape.initial_capacity = op.initial_k.size(1);
  check.parameter("initial_state.k", op.initial_k,
                  {shape.count, shape.initial_capacity, shape.heads, shape.key_dim});
  check.parameter("initial_state.v", op.initial_v,
                  {shape.count, shape.initial_capacity, shape.heads, shape.value_dim});
  check.exact("initial_state.length", op.initial_length, DType::int64, {shape.count});
  if (op.initial_length.device.type != DeviceType::cpu) return;
  for (std::int64_t i = 0; i < shape.count; ++i) {
    check.range("initial_state.length",
                op.initial_length.as<const std::int64_t>()[i * op.initial_length.stride(0)], 0,
                shape.initial_capacity);
  }
}

// `queries` is q or z, which gives B, L, H and Dz.
AttentionShape validate_attention(const Check& check, const Attention& op, const Tensor& queries) {
  AttentionShape shape;
  shape.heads = queries.size(2);
  shape.key_dim = queries.size(3);
  const std::int64_t batch = queries.size(0), length = queries.size(1);
  check.activation("v", op.v, {batch, length, shape.heads, -1});
  shape.value_dim = op.v.size(3);
  check.range("chunk_size", op.chunk_size, 1, INT64_MAX);
  if (!(op.dropout_p >= 0 && op.dropout_p < 1)) {
    check.fail("dropout_p", "a number in [0, 1)", std::to_string(op.dropout_p));
  }
  static_cast<SequenceShape&>(shape) = validate(check, op.sequence, batch, length);
  validate_state(check, op, shape);
  shape.capacity = std::min(op.chunk_size - 1, shape.initial_capacity + shape.length);
  return shape;
}

void validate_attention_cotangents(const Check& check, const AttentionCotangents& cotangents,
                                   const AttentionShape& shape) {
  check.activation("dy", cotangents.dy, {shape.batch, shape.length, shape.heads, shape.value_dim});
  if (cotangents.dfinal_k.defined()) {
    check.parameter("dfinal_k", cotangents.dfinal_k,
                    {shape.count, shape.capacity, shape.heads, shape.key_dim});
  }
  if (cotangents.dfinal_v.defined()) {
    check.parameter("dfinal_v", cotangents.dfinal_v,
                    {shape.count, shape.capacity, shape.heads, shape.value_dim});
  }
}

}  // namespace

AttentionShape validate(const ChunkAttention& op) {
  const Check check("chunk_attention", "q", op.q);
  check.activation("q", op.q, {-1, -1, -1, -1});
  check.activation("k", op.k, {op.q.size(0), op.q.size(1), op.q.size(2), op.q.size(3)});
  check.finite("scale", op.scale);
  return validate_attention(check, op, op.q);
}

AttentionShape validate(const NormalizedAttention& op) {
  const Check check("normalized_attention", "z", op.z);
  check.activation("z", op.z, {-1, -1, -1, -1});
  const std::int64_t heads = op.z.size(2), key_dim = op.z.size(3);
  if (key_dim % 2 != 0) check.fail("z", "an even last axis, which RoPE takes in pairs", shape_string(op.z));
  check.parameter("gamma", op.gamma, {2, heads, key_dim});
  check.parameter("beta", op.beta, {2, heads, key_dim});
  check.positive("rope_base", op.rope_base);
  check.positive("eps", op.eps);
  return validate_attention(check, op, op.z);
}

void validate_cotangents(const ChunkAttentionBackward& op, const AttentionShape& shape) {
  validate_attention_cotangents(Check("chunk_attention", "q", op.q), op, shape);
}

void validate_cotangents(const NormalizedAttentionBackward& op, const AttentionShape& shape) {
  validate_attention_cotangents(Check("normalized_attention", "z", op.z), op, shape);
}

}  // namespace megalodon
