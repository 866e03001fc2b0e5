// The descriptor of attention on the device, and how its arrays are read: by the position of a token in its
// chunk's numbering, whatever the strides, padding and packing.
#pragma once

#include "common/sequences.cuh"
#include "common/types.cuh"
#include "common/width.cuh"
#include "megalodon/math/philox.h"

namespace megalodon::cuda {

// A (B, L, H, width) array; the last axis is dense.
template <class T>
struct Heads {
  Global<T> data;
  std::int64_t row_stride, time_stride, head_stride;
  bool wide;  // every row is whole pieces of 16 bytes, aligned
};

template <class T>
Heads<T> heads(const Tensor& tensor, const char* memory) {
  if (!tensor.defined()) return {};
  constexpr int piece = kWidest<T>;
  bool wide = aligned(piece, {&tensor}) && tensor.size(3) % piece == 0;
  for (int axis = 0; axis < 3; ++axis) wide &= tensor.stride(axis) % piece == 0;
  return {elements<T>(tensor, memory), tensor.stride(0), tensor.stride(1), tensor.stride(2), wide};
}

// A dense (B, L, H, width) array in workspace.
template <class T>
Heads<T> dense_heads(Global<T> data, std::int64_t length, std::int64_t heads, std::int64_t width) {
  return {data, length * heads * width, heads * width, width, width % kWidest<T> == 0};
}

template <class E>
Heads<const E> constant(const Heads<E>& array) {
  return {array.data, array.row_stride, array.time_stride, array.head_stride, array.wide};
}

template <class T>
struct AttentionArgs {
  using A = Acc<T>;
  Tiles tiles;
  Heads<const T> q, k, v, dy;
  Global<const A> initial_k, initial_v;  // (sequences, P, H, width)
  Global<const std::int64_t> initial_length;
  std::int64_t head_count, key_dim, value_dim, capacity, final_capacity, chunk;  // capacity: P
  A scale;
  std::uint32_t threshold, seed_low, seed_high;  // of dropout; threshold 0 drops nothing
  Heads<T> y, dq;
  Global<A> statistics;  // (B, L, H, 3), of the simple kernels: maximum, 1 / sum, sum_s p (dy . v_s)
};

// Where gradients go, and what came back through the final state. Out is T, or the accumulator where q and k
// were rotated before.
template <class T, class Out>
struct Gradients {
  using A = Acc<T>;
  Heads<Out> dq, dk;
  Heads<T> dv;
  Global<A> initial_k, initial_v;    // (sequences, P, H, width), or absent
  Global<const A> final_k, final_v;  // (sequences, capacity, H, width), or absent
};

// One sequence and head: positions count from the start of its unfinished chunk, so the first `filled` keys
// are those of the initial state.
struct Place {
  std::int64_t s, h, filled, total;
  Sequence sequence;
};

template <class T>
MEGALODON_DEVICE Place place_of(const AttentionArgs<T>& op, std::int64_t s, std::int64_t h) {
  const Sequence sequence = sequence_at(op.tiles.sequences, s);
  std::int64_t filled = op.initial_length ? op.initial_length[s] : 0;
  if (filled < 0 || filled > op.capacity) filled = 0;  // wrong, but must not lead out of memory
  return {s, h, filled, filled + sequence.length, sequence};
}

// Element d of the row of a token at a position.
template <class E, class T>
MEGALODON_DEVICE E& element(const AttentionArgs<T>& op, const Heads<E>& array, const Place& at,
                            std::int64_t position, std::int64_t d) {
  const std::int64_t time = time_of(op.tiles.sequences, at.sequence, position - at.filled);
  return array
      .data[at.sequence.row * array.row_stride + time * array.time_stride + at.h * array.head_stride + d];
}

template <class E, class T>
MEGALODON_DEVICE Acc<T> at_token(const AttentionArgs<T>& op, const Heads<E>& array, const Place& at,
                                 std::int64_t position, std::int64_t d) {
  return read(element(op, array, at, position, d));
}

// The same of a key or a value, which may stand in the initial state.
template <class E, class T>
MEGALODON_DEVICE Acc<T> at_key(const AttentionArgs<T>& op, const Heads<E>& array,
                               const Global<const Acc<T>>& initial, std::int64_t width, const Place& at,
                               std::int64_t position, std::int64_t d) {
  if (position >= at.filled) return at_token(op, array, at, position, d);
  return initial[((at.s * op.capacity + position) * op.head_count + at.h) * width + d];
}

// Whether dropout takes the key from the query.
template <class T>
MEGALODON_DEVICE bool dropped(const AttentionArgs<T>& op, const Place& at, std::int64_t query,
                              std::int64_t key) {
  if (op.threshold == 0) return false;
  const auto word = [](std::int64_t value) { return static_cast<std::uint32_t>(value); };
  return math::philox4x32_10(word(key), word(query), word(at.h), word(at.s), op.seed_low, op.seed_high) <
         op.threshold;
}

}  // namespace megalodon::cuda
