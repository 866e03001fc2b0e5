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

template <class T>
MEGALODON_DEVICE QueryBlock query_block(const AttentionArgs<T>& op) {
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

template <class T>
MEGALODON_KERNEL void attention_outputs(AttentionArgs<T> op) {
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

template <class T>
Blocks blocks_of(const AttentionArgs<T>& args, std::int64_t width, int columns = 1) {
  return {args.tiles.count * args.head_count, divide_up(width, std::int64_t{columns} * kAttentionThreads)};
}

// y.
template <class T>
void simple_outputs(Run& run, AttentionArgs<T> args) {
  args.tiles = divide(run, args.tiles.sequences, kQueries);
  run.launch(attention_outputs<T>, blocks_of(args, args.value_dim, kColumns), kAttentionThreads,
             kStageBytes<Acc<T>> + shared_size<Acc<T>>(kQueries), args);
}

}  // namespace megalodon::cuda
