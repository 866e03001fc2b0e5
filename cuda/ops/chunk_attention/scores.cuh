// What every simple attention kernel (float32 and float64) does with a block of 16 queries and 32 keys: their
// scores, each computed anew wherever it is needed. Lane j of a warp has key j, warp w the queries 4 w .. 4 w
// + 3.
#pragma once

#include "ops/chunk_attention/attention.cuh"

namespace megalodon::cuda {

inline constexpr int kAttentionThreads = 128;
inline constexpr int kQueries = 16;  // of a block
inline constexpr int kKeys = kWarp;
inline constexpr int kPerThread = kQueries * kKeys / kAttentionThreads;
inline constexpr int kDepth = 32;          // of a dot product that is staged at a time
inline constexpr int kPitch = kDepth + 1;  // so that lanes meet different banks

// Whether the query sees the key.
template <class T>
MEGALODON_DEVICE bool allowed(const AttentionArgs<T>& op, const Place& at, std::int64_t query,
                              std::int64_t key) {
  if (query < at.filled || query >= at.total || key > query || key < query - query % op.chunk) return false;
  return !dropped(op, at, query, key);
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
template <class E, class F, class T, class A = Acc<T>>
MEGALODON_DEVICE void block_products(const AttentionArgs<T>& op, const Stage<A>& stage, const Heads<E>& from,
                                     const Heads<F>& with, const Global<const A>& initial, std::int64_t width,
                                     const Place& at, std::int64_t query, std::int64_t key,
                                     A (&to)[kPerThread]) {
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
template <class T, class A = Acc<T>>
MEGALODON_DEVICE void scores(const AttentionArgs<T>& op, const Stage<A>& stage, const Place& at,
                             std::int64_t query, std::int64_t key, A (&to)[kPerThread]) {
  block_products(op, stage, op.q, op.k, op.initial_k, op.key_dim, at, query, key, to);
}

// dy . v, the gradient of the probabilities.
template <class T, class A = Acc<T>>
MEGALODON_DEVICE void probability_gradients(const AttentionArgs<T>& op, const Stage<A>& stage,
                                            const Place& at, std::int64_t query, std::int64_t key,
                                            A (&to)[kPerThread]) {
  block_products(op, stage, op.dy, op.v, op.initial_v, op.value_dim, at, query, key, to);
}

template <class T>
MEGALODON_DEVICE std::int64_t statistics_index(const AttentionArgs<T>& op, const Place& at,
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
