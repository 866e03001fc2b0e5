// Gradients of attention. With p the probabilities, dp = dy . v and D = sum_s p dp:
//
//   ds = p (dp - D)      dq = scale sum_s ds k_s      dk = scale sum_t ds q_t      dv = sum_t p dy_t
//
// p and dp are computed anew in each kernel: for the statistics of the queries, for dq, for dk; dv needs p
// only.
#pragma once

#include "ops/chunk_attention/forward.cuh"
#include "ops/chunk_attention/state.cuh"

namespace megalodon::cuda {

// Maximum, 1 / sum and D of every query.
template <class T>
MEGALODON_KERNEL void query_statistics(AttentionArgs<T> op) {
  using A = Acc<T>;
  SharedMemory memory;
  const Stage<A> stage = take_stage<A>(memory);
  const QueryBlock block = query_block(op);
  if (!block.exists) return;
  Softmax<A> softmax = empty_softmax<A>();
  A products[kPerThread] = {};
  for (std::int64_t key = block.first_key; key <= block.last; key += kKeys) {
    A score[kPerThread], dp[kPerThread];
    scores(op, stage, block.at, block.first, key, score);
    probability_gradients(op, stage, block.at, block.first, key, dp);
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      const std::int64_t query = block.first + warp_index() * kPerThread + e;
      const bool seen = allowed(op, block.at, query, key + lane_index());
      A p;
      const A correction = take_in(softmax, e, seen, score[e] * op.scale, p);
      products[e] = products[e] * correction + warp_sum(seen ? p * dp[e] : A(0));
    }
  }
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    const std::int64_t query = block.first + warp_index() * kPerThread + e;
    if (lane_index() != 0 || query > block.last) continue;
    const std::int64_t at = statistics_index(op, block.at, query);
    const A inverse = inverse_sum(softmax.sum[e]);
    op.statistics[at] = softmax.maximum[e];
    op.statistics[at + 1] = inverse;
    op.statistics[at + 2] = products[e] * inverse;
  }
}

// p of a score, from the statistics of its query.
template <class T, class A = Acc<T>>
MEGALODON_DEVICE A probability(const AttentionArgs<T>& op, std::int64_t statistics, A score) {
  return std::exp(score * op.scale - op.statistics[statistics]) * op.statistics[statistics + 1];
}

// Leaves p, or scale ds, of a block in stage.weights. Ends with a barrier.
template <bool kScores, class T, class A = Acc<T>>
MEGALODON_DEVICE void weigh(const AttentionArgs<T>& op, const Stage<A>& stage, const Place& at,
                            std::int64_t query, std::int64_t key) {
  A score[kPerThread], dp[kPerThread] = {};
  scores(op, stage, at, query, key, score);
  if constexpr (kScores) probability_gradients(op, stage, at, query, key, dp);
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    const int i = warp_index() * kPerThread + e;
    A weight = 0;
    if (allowed(op, at, query + i, key + lane_index())) {
      const std::int64_t statistics = statistics_index(op, at, query + i);
      weight = probability(op, statistics, score[e]);
      if constexpr (kScores) weight *= (dp[e] - op.statistics[statistics + 2]) * op.scale;
    }
    stage.weights[i * kKeys + lane_index()] = weight;
  }
  block_barrier();
}

template <class T>
MEGALODON_KERNEL void query_gradients(AttentionArgs<T> op) {
  using A = Acc<T>;
  SharedMemory memory;
  const Stage<A> stage = take_stage<A>(memory);
  const QueryBlock block = query_block(op);
  if (!block.exists) return;
  const std::int64_t c = block_y() * kAttentionThreads + thread_index();
  A sums[kQueries] = {};
  for (std::int64_t key = block.first_key; key <= block.last; key += kKeys) {
    weigh<true>(op, stage, block.at, block.first, key);
    for (int j = 0; c < op.key_dim && j < kKeys && key + j <= block.last; ++j) {
      const A k = at_key(op, op.k, op.initial_k, op.key_dim, block.at, key + j, c);
#pragma unroll
      for (int i = 0; i < kQueries; ++i) {
        const A weight = stage.weights[i * kKeys + j];
        if (weight != 0) sums[i] += weight * k;
      }
    }
    block_barrier();
  }
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    if (c >= op.key_dim || block.first + i > block.last) continue;
    write(element(op, op.dq, block.at, block.first + i, c), sums[i]);
  }
}

// Where the gradients of 32 keys, or of their values, go.
template <class T>
struct KeyArgs {
  AttentionArgs<T> attention;
  Heads<T> out;                 // tokens' keys
  Global<Acc<T>> initial;       // (sequences, P, H, width): the initial state's, if these are meant
  Global<const Acc<T>> dfinal;  // (sequences, capacity, H, width), or absent
  std::int64_t width;
};

// The keys of a block: of a tile of tokens, or of the initial state.
template <class T>
MEGALODON_DEVICE QueryBlock key_block(const KeyArgs<T>& op) {
  const AttentionArgs<T>& from = op.attention;
  const std::int64_t i = block_x() / from.head_count, h = block_x() % from.head_count;
  QueryBlock block{};
  if (op.initial) {
    const std::int64_t per_sequence = (from.capacity + kKeys - 1) / kKeys;
    block.at = place_of(from, i / per_sequence, h);
    block.first = i % per_sequence * kKeys;
    block.last = (block.first + kKeys < from.capacity ? block.first + kKeys : from.capacity) - 1;
    block.exists = true;
    return block;
  }
  const Tile tile = tile_at(from.tiles, i);
  if (tile.tokens == 0) return block;
  block.at = place_of(from, tile.sequence, h);
  block.first = block.at.filled + tile.first;
  block.last = block.first + tile.tokens - 1;
  block.exists = true;
  return block;
}

// dk (kScores) or dv of 32 keys, one column per thread.
template <bool kScores, class T>
MEGALODON_KERNEL void key_gradients(KeyArgs<T> op) {
  using A = Acc<T>;
  const AttentionArgs<T>& from = op.attention;
  SharedMemory memory;
  const Stage<A> stage = take_stage<A>(memory);
  const QueryBlock block = key_block(op);
  if (!block.exists) return;
  const Place& at = block.at;
  const std::int64_t c = block_y() * kAttentionThreads + thread_index();
  A sums[kKeys] = {};
  const std::int64_t chunk_end = block.last - block.last % from.chunk + from.chunk;
  const std::int64_t end = chunk_end < at.total ? chunk_end : at.total;
  for (std::int64_t query = block.first > at.filled ? block.first : at.filled; query < end;
       query += kQueries) {
    weigh<kScores>(from, stage, at, query, block.first);
    for (int i = 0; c < op.width && i < kQueries && query + i < end; ++i) {
      const A value =
          kScores ? at_token(from, from.q, at, query + i, c) : at_token(from, from.dy, at, query + i, c);
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const A weight = stage.weights[i * kKeys + j];
        if (weight != 0) sums[j] += weight * value;
      }
    }
    block_barrier();
  }
#pragma unroll
  for (int j = 0; j < kKeys; ++j) {
    const std::int64_t key = block.first + j;
    if (c >= op.width || key > block.last) continue;
    if (op.initial) {
      op.initial[((at.s * from.capacity + key) * from.head_count + at.h) * op.width + c] =
          key < at.filled ? sums[j] + through_state(from, op.dfinal, op.width, at, key, c) : A(0);
    } else {
      write(element(from, op.out, at, key, c),
            sums[j] + through_state(from, op.dfinal, op.width, at, key, c));
    }
  }
}

// dk (kScores) or dv: of the tokens, and of the initial state where there is one.
template <bool kScores, class T>
void key_gradients_of(Run& run, KeyArgs<T> args, Global<Acc<T>> initial) {
  constexpr std::int64_t shared = kStageBytes<Acc<T>>;
  const AttentionArgs<T>& from = args.attention;
  run.launch(key_gradients<kScores, T>, blocks_of(from, args.width), kAttentionThreads, shared, args);
  if (!initial || from.capacity == 0) return;
  args.initial = initial;
  Blocks blocks = blocks_of(from, args.width);
  blocks.x = from.tiles.sequences.count * divide_up(from.capacity, kKeys) * from.head_count;
  run.launch(key_gradients<kScores, T>, blocks, kAttentionThreads, shared, args);
}

template <class T>
void simple_gradients(Run& run, AttentionArgs<T> args, const AttentionShape& shape,
                      const Gradients<T, T>& to) {
  using A = Acc<T>;
  const Sequences sequences = args.tiles.sequences;
  args.tiles = divide(run, sequences, kQueries);
  args.dq = to.dq;
  args.statistics = run.workspace<A>(shape.batch * shape.length * shape.heads * 3);
  const Blocks queries = blocks_of(args, shape.key_dim);
  run.launch(query_statistics<T>, {queries.x}, kAttentionThreads, kStageBytes<A>, args);
  run.launch(query_gradients<T>, queries, kAttentionThreads, kStageBytes<A>, args);

  args.tiles = divide(run, sequences, kKeys);
  key_gradients_of<true>(run, KeyArgs<T>{args, to.dk, {}, to.final_k, shape.key_dim}, to.initial_k);
  key_gradients_of<false>(run, KeyArgs<T>{args, to.dv, {}, to.final_v, shape.value_dim}, to.initial_v);
}

}  // namespace megalodon::cuda
