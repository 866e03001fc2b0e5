// Attention for 16-bit types: which kernels run, group after group of (chunk, head) pairs, so that the
// probabilities in the workspace stay small.
#pragma once

#include "ops/chunk_attention/products.cuh"
#include "ops/chunk_attention/score_gradients.cuh"

namespace megalodon::cuda {

inline constexpr std::int64_t kGroupBytes = std::int64_t{256} << 20;  // unless one pair needs more
inline constexpr std::int64_t kMostPairs = 65535;                     // of a grid's y

template <class T>
inline constexpr bool kTiled = sizeof(T) == 2;

// The most tiles of probabilities that a chunk keeps, over all lengths of its initial state: `before` tiles
// of keys may stand in front of the first query.
inline std::int64_t most_tiles(const AttentionShape& shape, std::int64_t chunk) {
  std::int64_t most = 0;
  for (std::int64_t before = 0; before <= divide_up(shape.initial_capacity, kTile); ++before) {
    const std::int64_t least = before == 0 ? 0 : (before - 1) * kTile + 1;  // lines of the state
    const std::int64_t bands = divide_up(std::min(shape.length, chunk - least), kTile);
    most = std::max(most, bands * (bands + 1) / 2 + bands * before);
  }
  return most;
}

// Pairs of a group: as many as fit, and groups alike in size.
inline std::int64_t pairs_of_group(std::int64_t pairs, std::int64_t bytes_per_pair) {
  const std::int64_t fit = std::clamp<std::int64_t>(kGroupBytes / bytes_per_pair, 1, kMostPairs);
  return divide_up(pairs, divide_up(pairs, fit));
}

// The first group; `size` becomes the number of its pairs.
template <class T>
Group<T> first_group(Run& run, const AttentionArgs<T>& args, const AttentionShape& shape, bool backward,
                     std::int64_t& size) {
  Group<T> group{.attention = args};
  // No chunk is longer than what there is.
  const std::int64_t chunk = std::min(args.chunk, shape.initial_capacity + shape.length);
  group.chunks = {chunk, divide(run, args.tiles.sequences, chunk), shape.initial_capacity > 0};
  group.pairs = chunk_count(group.chunks) * shape.heads;
  group.row_tiles = static_cast<int>(divide_up(std::min(shape.length, chunk), kTile));
  group.key_tiles = static_cast<int>(divide_up(chunk, kTile));
  group.tiles = most_tiles(shape, chunk);
  const std::int64_t per_element = static_cast<std::int64_t>(sizeof(T) + (backward ? sizeof(float) : 0));
  size = pairs_of_group(group.pairs, group.tiles * kTileSize * per_element);

  const std::int64_t tiles = size * group.tiles, rows = size * group.row_tiles * kTile;
  group.p = run.workspace<T>(tiles * kTileSize);
  group.exponent = run.workspace<float>(tiles * kTile);
  group.sum = run.workspace<float>(tiles * kTile);
  group.factor = run.workspace<T>(tiles * kTile);
  group.total = run.workspace<float>(rows);
  if (backward) {
    group.dp = run.workspace<float>(tiles * kTileSize);
    group.product = run.workspace<float>(tiles * kTile);
    group.mean = run.workspace<float>(rows);
  }
  return group;
}

// Calls f(group, pairs of the group) for every group.
template <class T, class F>
void each_group(Run& run, const AttentionArgs<T>& args, const AttentionShape& shape, bool backward,
                const F& f) {
  std::int64_t size = 0;
  Group<T> group = first_group(run, args, shape, backward, size);
  for (; group.first < group.pairs; group.first += size) f(group, std::min(size, group.pairs - group.first));
}

template <class T>
Blocks blocks_of_tiles(const Group<T>& group, std::int64_t pairs) {
  return {std::int64_t{group.row_tiles} * group.key_tiles, pairs};
}

// p^ rounded to W, and what makes p of it.
template <class W, class T>
void probabilities_of(Run& run, const Group<T>& group, std::int64_t pairs) {
  run.launch(score_tiles<W, T>, blocks_of_tiles(group, pairs), kProductThreads, kBandBytes<T>, group);
  run.launch(finish_rows<T>, {group.row_tiles, pairs}, kTile, 0, group);
}

template <bool kFactors, class T, class Out>
void query_products_of(Run& run, const QueryProduct<T, Out>& args, std::int64_t pairs) {
  using A = QueryWeights<T, kFactors>;
  run.launch(query_products<kFactors, T, Out>, {args.group.row_tiles * divide_up(args.width, kTile), pairs},
             kProductThreads, stages_bytes<A, ChunkDepth<T, false>, T>() + kReachBytes, args);
}

template <class T, class Out>
void key_products_of(Run& run, const KeyProduct<T, Out>& args, std::int64_t pairs) {
  run.launch(key_products<T, Out>, {args.group.key_tiles * divide_up(args.width, kTile), pairs},
             kProductThreads, stages_bytes<KeyWeights<T>, ChunkDepth<T, true>, T>() + kReachBytes, args);
}

// y.
template <class T>
void tiled_outputs(Run& run, const AttentionArgs<T>& args, const AttentionShape& shape) {
  each_group(run, args, shape, false, [&](const Group<T>& group, std::int64_t pairs) {
    probabilities_of<T>(run, group, pairs);
    query_products_of<true>(run, QueryProduct<T, T>{group, args.v, args.initial_v, args.value_dim, args.y},
                            pairs);
  });
}

template <class T, class Out>
void tiled_gradients(Run& run, const AttentionArgs<T>& args, const AttentionShape& shape,
                     const Gradients<T, Out>& to) {
  each_group(run, args, shape, true, [&](const Group<T>& group, std::int64_t pairs) {
    const Blocks tiles = blocks_of_tiles(group, pairs);
    probabilities_of<float>(run, group, pairs);
    run.launch(gradient_tiles<T>, tiles, kProductThreads, kBandBytes<T>, group);
    run.launch(finish_means<T>, {group.row_tiles, pairs}, kTile, 0, group);
    key_products_of(run, KeyProduct<T, T>{group, args.dy, args.value_dim, to.dv, to.initial_v, to.final_v},
                    pairs);
    run.launch(score_gradients<T>, tiles, kProductThreads, 0, group);
    query_products_of<false>(run, QueryProduct<T, Out>{group, args.k, args.initial_k, args.key_dim, to.dq},
                             pairs);
    key_products_of(run, KeyProduct<T, Out>{group, args.q, args.key_dim, to.dk, to.initial_k, to.final_k},
                    pairs);
  });
  clear_slots(run, args, to.initial_k, args.key_dim);
  clear_slots(run, args, to.initial_v, args.value_dim);
}

}  // namespace megalodon::cuda
