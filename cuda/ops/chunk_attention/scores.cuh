// What every attention kernel does with a block of 16 queries and 32 keys: their scores, each computed anew
// wherever it is needed. Lane j of a warp has key j, warp w the queries 4 w .. 4 w + 3.
#pragma once

#include "common/sequences.cuh"
#include "common/types.cuh"
#include "megalodon/math/philox.h"

namespace megalodon::cuda {

inline constexpr int kAttentionThreads = 128;
inline constexpr int kQueries = 16;  // of a block
inline constexpr int kKeys = kWarp;
inline constexpr int kPerThread = kQueries * kKeys / kAttentionThreads;
inline constexpr int kDepth = 32;          // of a dot product that is staged at a time
inline constexpr int kPitch = kDepth + 1;  // so that lanes meet different banks

// A (B, L, H, width) array; the last axis is dense.
template <class T>
struct Heads {
  Global<T> data;
  std::int64_t row_stride, time_stride, head_stride;
};

template <class T>
Heads<T> heads(const Tensor& tensor, const char* memory) {
  if (!tensor.defined()) return {};
  return {elements<T>(tensor, memory), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// A dense (B, L, H, width) array in workspace.
template <class T>
Heads<T> dense_heads(Global<T> data, std::int64_t length, std::int64_t heads, std::int64_t width) {
  return {data, length * heads * width, heads * width, width};
}

// T is the type of values, Q of queries and keys: T, or the accumulator where they were rotated before.
template <class T, class Q>
struct AttentionArgs {
  using A = Acc<T>;
  Tiles tiles;  // of kQueries tokens, or of kKeys where keys are outputs
  Heads<const Q> q, k;
  Heads<const T> v, dy;
  Global<const A> initial_k, initial_v;  // (sequences, P, H, width)
  Global<const std::int64_t> initial_length;
  std::int64_t head_count, key_dim, value_dim, capacity, final_capacity, chunk;  // capacity: P
  A scale;
  std::uint32_t threshold, seed_low, seed_high;  // of dropout; threshold 0 drops nothing
  Global<A> statistics;                          // (B, L, H, 3): maximum, 1 / sum, sum_s p (dy . v_s)
  Heads<T> y;
  Heads<Q> dq;
};

// One sequence and head: positions count from the start of its unfinished chunk, so the first `filled` keys
// are those of the initial state.
struct Place {
  std::int64_t s, h, filled, total;
  Sequence sequence;
};

template <class T, class Q>
MEGALODON_DEVICE Place place_of(const AttentionArgs<T, Q>& op, std::int64_t s, std::int64_t h) {
  const Sequence sequence = sequence_at(op.tiles.sequences, s);
  const std::int64_t filled = op.initial_length ? op.initial_length[s] : 0;
  return {s, h, filled, filled + sequence.length, sequence};
}

// Element d of the row of a token at a position.
template <class E, class T, class Q>
MEGALODON_DEVICE E& element(const AttentionArgs<T, Q>& op, const Heads<E>& array, const Place& at,
                            std::int64_t position, std::int64_t d) {
  const std::int64_t time = time_of(op.tiles.sequences, at.sequence, position - at.filled);
  return array
      .data[at.sequence.row * array.row_stride + time * array.time_stride + at.h * array.head_stride + d];
}

template <class E, class T, class Q>
MEGALODON_DEVICE Acc<T> at_token(const AttentionArgs<T, Q>& op, const Heads<E>& array, const Place& at,
                                 std::int64_t position, std::int64_t d) {
  return read(element(op, array, at, position, d));
}

// The same of a key or a value, which may stand in the initial state.
template <class E, class T, class Q>
MEGALODON_DEVICE Acc<T> at_key(const AttentionArgs<T, Q>& op, const Heads<E>& array,
                               const Global<const Acc<T>>& initial, std::int64_t width, const Place& at,
                               std::int64_t position, std::int64_t d) {
  if (position >= at.filled) return at_token(op, array, at, position, d);
  return initial[((at.s * op.capacity + position) * op.head_count + at.h) * width + d];
}

// Whether the query sees the key.
template <class T, class Q>
MEGALODON_DEVICE bool allowed(const AttentionArgs<T, Q>& op, const Place& at, std::int64_t query,
                              std::int64_t key) {
  if (query < at.filled || query >= at.total || key > query || key < query - query % op.chunk) return false;
  if (op.threshold == 0) return true;
  const auto word = [](std::int64_t value) { return static_cast<std::uint32_t>(value); };
  return math::philox4x32_10(word(key), word(query), word(at.h), word(at.s), op.seed_low, op.seed_high) >=
         op.threshold;
}

template <class A>
struct Stage {
  Shared<A> a, b;     // (kQueries, kPitch), (kKeys, kPitch)
  Shared<A> weights;  // (kQueries, kKeys): what the outputs are weighted with
};

template <class A>
inline constexpr std::int64_t kStageBytes =
    shared_size<A>(kQueries * kPitch) + shared_size<A>(kKeys * kPitch) + shared_size<A>(kQueries * kKeys);

template <class A>
MEGALODON_DEVICE Stage<A> take_stage(SharedMemory& memory) {
  Stage<A> stage;
  stage.a = memory.take<A>(kQueries * kPitch);
  stage.b = memory.take<A>(kKeys * kPitch);
  stage.weights = memory.take<A>(kQueries * kKeys);
  return stage;
}

// to[e] = sum_d a(query, d) b(key, d) for the thread's four queries and its key.
template <class A, class RowA, class RowB>
MEGALODON_DEVICE void dot_products(const Stage<A>& stage, std::int64_t width, const RowA& a, const RowB& b,
                                   A (&to)[kPerThread]) {
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) to[e] = 0;
  for (std::int64_t first = 0; first < width; first += kDepth) {
    const std::int64_t d = first + lane_index();
    for (int i = warp_index(); i < kQueries; i += kAttentionThreads / kWarp) {
      stage.a[i * kPitch + lane_index()] = d < width ? a(i, d) : A(0);
    }
    for (int j = warp_index(); j < kKeys; j += kAttentionThreads / kWarp) {
      stage.b[j * kPitch + lane_index()] = d < width ? b(j, d) : A(0);
    }
    block_barrier();
    for (int depth = 0; depth < kDepth; ++depth) {
      const A key = stage.b[lane_index() * kPitch + depth];
#pragma unroll
      for (int e = 0; e < kPerThread; ++e) {
        to[e] += stage.a[(warp_index() * kPerThread + e) * kPitch + depth] * key;
      }
    }
    block_barrier();
  }
}

// The products of rows `from` of queries and rows `with` of keys, for the block that starts with these
// positions.
template <class E, class F, class T, class Q, class A = Acc<T>>
MEGALODON_DEVICE void block_products(const AttentionArgs<T, Q>& op, const Stage<A>& stage,
                                     const Heads<E>& from, const Heads<F>& with,
                                     const Global<const A>& initial, std::int64_t width, const Place& at,
                                     std::int64_t query, std::int64_t key, A (&to)[kPerThread]) {
  dot_products(
      stage, width,
      [&](int i, std::int64_t d) {
        return query + i < at.total ? at_token(op, from, at, query + i, d) : A(0);
      },
      [&](int j, std::int64_t d) {
        return key + j < at.total ? at_key(op, with, initial, width, at, key + j, d) : A(0);
      },
      to);
}

// q . k
template <class T, class Q, class A = Acc<T>>
MEGALODON_DEVICE void scores(const AttentionArgs<T, Q>& op, const Stage<A>& stage, const Place& at,
                             std::int64_t query, std::int64_t key, A (&to)[kPerThread]) {
  block_products(op, stage, op.q, op.k, op.initial_k, op.key_dim, at, query, key, to);
}

// dy . v, the gradient of the probabilities.
template <class T, class Q, class A = Acc<T>>
MEGALODON_DEVICE void probability_gradients(const AttentionArgs<T, Q>& op, const Stage<A>& stage,
                                            const Place& at, std::int64_t query, std::int64_t key,
                                            A (&to)[kPerThread]) {
  block_products(op, stage, op.dy, op.v, op.initial_v, op.value_dim, at, query, key, to);
}

template <class T, class Q>
MEGALODON_DEVICE std::int64_t statistics_index(const AttentionArgs<T, Q>& op, const Place& at,
                                               std::int64_t query) {
  const std::int64_t time = time_of(op.tiles.sequences, at.sequence, query - at.filled);
  return ((at.sequence.row * op.tiles.sequences.length + time) * op.head_count + at.h) * 3;
}

// The largest over the warp; NaN loses, and comes back with the exponentials.
template <class A>
MEGALODON_DEVICE A warp_max(A value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const A other = warp_shuffle(value, lane_index() ^ step);
    if (other > value) value = other;
  }
  return value;
}

}  // namespace megalodon::cuda
