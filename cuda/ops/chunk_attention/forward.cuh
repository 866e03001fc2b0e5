// Outputs by online softmax: a block has 16 queries of one head and 256 values of each, two per thread.
#pragma once

#include "ops/chunk_attention/scores.cuh"

namespace megalodon::cuda {

inline constexpr int kColumns = 2;  // of the output that a thread owns

// The softmax of a thread's four queries over the keys so far, the same in all lanes of a warp.
template <class A>
struct Softmax {
  A maximum[kPerThread], sum[kPerThread];
};

template <class A>
MEGALODON_DEVICE Softmax<A> empty_softmax() {
  Softmax<A> softmax;
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    softmax.maximum[e] = -static_cast<A>(INFINITY);
    softmax.sum[e] = 0;
  }
  return softmax;
}

// Takes 32 keys in: p becomes exp(score - maximum), 0 where the query does not see the key, and the result is
// by what everything before must be multiplied.
template <class A>
MEGALODON_DEVICE A take_in(Softmax<A>& softmax, int e, bool seen, A score, A& p) {
  const A largest = warp_max(seen ? score : -static_cast<A>(INFINITY));
  const A before = softmax.maximum[e], maximum = largest > before ? largest : before;
  p = seen ? std::exp(score - maximum) : A(0);
  const A correction = maximum == before ? A(1) : std::exp(before - maximum);
  softmax.maximum[e] = maximum;
  softmax.sum[e] = softmax.sum[e] * correction + warp_sum(p);
  return correction;
}

// 1 / sum; 0 where a query saw nothing.
template <class A>
MEGALODON_DEVICE A inverse_sum(A sum) {
  return sum == 0 ? A(0) : A(1) / sum;
}

// The queries of a block: 16 positions of one sequence and head.
struct QueryBlock {
  Place at;
  std::int64_t first, last;  // positions [first, last]
  std::int64_t first_key;
  bool exists;
};

template <class T, class Q>
MEGALODON_DEVICE QueryBlock query_block(const AttentionArgs<T, Q>& op) {
  const Tile tile = tile_at(op.tiles, block_x() / op.head_count);
  QueryBlock block{};
  if (tile.tokens == 0) return block;
  block.at = place_of(op, tile.sequence, block_x() % op.head_count);
  block.first = block.at.filled + tile.first;
  block.last = block.first + tile.tokens - 1;
  block.first_key = block.first - block.first % op.chunk;
  block.exists = true;
  return block;
}

template <class T, class Q>
MEGALODON_KERNEL void attention_outputs(AttentionArgs<T, Q> op) {
  using A = Acc<T>;
  SharedMemory memory;
  const Stage<A> stage = take_stage<A>(memory);
  const Shared<A> factor = memory.take<A>(kQueries);  // of the queries' sums so far
  const QueryBlock block = query_block(op);
  if (!block.exists) return;
  const std::int64_t column = block_y() * kAttentionThreads * kColumns + thread_index();
  Softmax<A> softmax = empty_softmax<A>();
  A sums[kQueries][kColumns] = {};
  for (std::int64_t key = block.first_key; key <= block.last; key += kKeys) {
    A score[kPerThread];
    scores(op, stage, block.at, block.first, key, score);
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      const int i = warp_index() * kPerThread + e;
      const bool seen = allowed(op, block.at, block.first + i, key + lane_index());
      A p;
      const A correction = take_in(softmax, e, seen, score[e] * op.scale, p);
      stage.weights[i * kKeys + lane_index()] = p;
      if (lane_index() == 0) factor[i] = correction;
    }
    block_barrier();
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const std::int64_t c = column + n * kAttentionThreads;
      if (c >= op.value_dim) continue;
#pragma unroll
      for (int i = 0; i < kQueries; ++i) sums[i][n] *= factor[i];
      for (int j = 0; j < kKeys && key + j <= block.last; ++j) {
        const A value = at_key(op, op.v, op.initial_v, op.value_dim, block.at, key + j, c);
#pragma unroll
        for (int i = 0; i < kQueries; ++i) {
          const A p = stage.weights[i * kKeys + j];
          if (p != 0) sums[i][n] += p * value;
        }
      }
    }
    block_barrier();
  }
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    if (lane_index() == 0) factor[warp_index() * kPerThread + e] = inverse_sum(softmax.sum[e]);
  }
  block_barrier();
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    const std::int64_t c = column + n * kAttentionThreads;
    if (c >= op.value_dim) continue;
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      if (block.first + i > block.last) continue;
      write(element(op, op.y, block.at, block.first + i, c), sums[i][n] * factor[i]);
    }
  }
}

// The final state: keys and values of the unfinished chunk, zeros in empty slots.
template <class T, class Q>
struct FinalArgs {
  AttentionArgs<T, Q> attention;
  Global<Acc<T>> k, v;  // (sequences, capacity, H, width)
  Global<std::int64_t> length;
};

// A warp copies one slot of one head.
template <class T, class Q>
MEGALODON_KERNEL void final_state(FinalArgs<T, Q> op) {
  using A = Acc<T>;
  const AttentionArgs<T, Q>& from = op.attention;
  const std::int64_t i = block_x() * (kAttentionThreads / kWarp) + warp_index(), h = i % from.head_count;
  const std::int64_t slots = from.final_capacity > 0 ? from.final_capacity : 1;  // one writes the length
  const std::int64_t slot = i / from.head_count % slots, s = i / from.head_count / slots;
  if (s >= from.tiles.sequences.count) return;
  const Place at = place_of(from, s, h);
  const std::int64_t length = at.total % from.chunk, position = at.total - length + slot;
  if (slot == 0 && h == 0 && lane_index() == 0) op.length[s] = length;
  if (from.final_capacity == 0) return;
  for (std::int64_t d = lane_index(); d < from.key_dim; d += kWarp) {
    op.k[i * from.key_dim + d] =
        slot < length ? at_key(from, from.k, from.initial_k, from.key_dim, at, position, d) : A(0);
  }
  for (std::int64_t d = lane_index(); d < from.value_dim; d += kWarp) {
    op.v[i * from.value_dim + d] =
        slot < length ? at_key(from, from.v, from.initial_v, from.value_dim, at, position, d) : A(0);
  }
}

}  // namespace megalodon::cuda
