// dx of a tile, and its sums of the gradients of weight and bias.
#pragma once

#include "ops/timestep_norm/backward.cuh"

namespace megalodon::cuda {

// What a channel's gradients are made of at a token.
template <class A>
struct TokenTerms {
  A mean, rest, scale, constant, slope;
};

template <class A>
MEGALODON_DEVICE TokenTerms<A> terms_of(const TileMemory<A>& memory, int t) {
  return {memory.mean[t], memory.rest[t], memory.scale[t], static_cast<A>(memory.first[t]),
          static_cast<A>(memory.second[t])};
}

// dx of V channels of a token; adds their terms of dweight and dbias.
template <int V, class A>
MEGALODON_DEVICE void take_gradients(const TokenTerms<A>& at, const A (&x)[V], const A (&dy)[V],
                                     const A (&weight)[V], A (&dx)[V], A (&dweight)[V], A (&dbias)[V]) {
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const A deviation = x[e] - at.mean - at.rest;
    dweight[e] += dy[e] * (deviation * at.scale);
    dbias[e] += dy[e];
    dx[e] = rounded_product(dy[e], weight[e]) * at.scale + at.constant + at.slope * deviation;
  }
}

// Where the tile's sums for channel c of the group lie.
template <class T>
MEGALODON_DEVICE std::int64_t sum_index(const GradientArgs<T>& op, const GroupTile& at, std::int64_t c) {
  return at.link * op.width + c;  // (tiles, G, S)
}

template <class T>
MEGALODON_DEVICE Tokens<T> dx_of(const GradientArgs<T>& op) {
  const std::int64_t dim = op.groups * op.width;
  return {op.dx, op.tiles.sequences.length * dim, dim};
}

// Adds the sums of the block's teams, in a fixed order. `sums` has (warps, 2, team, V) elements.
template <int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void finish_sums(const GradientArgs<T>& op, const GroupTile& at, A (&dweight)[V],
                                  A (&dbias)[V], const Shared<A>& sums) {
  for (int step = at.team; step < kWarp; step *= 2) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      dweight[e] += warp_shuffle(dweight[e], lane_index() ^ step);
      dbias[e] += warp_shuffle(dbias[e], lane_index() ^ step);
    }
  }
  const int columns = at.team * V;
  if (lane_index() < at.team) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      sums[warp_index() * 2 * columns + at.lane * V + e] = dweight[e];
      sums[(warp_index() * 2 + 1) * columns + at.lane * V + e] = dbias[e];
    }
  }
  block_barrier();
  for (int c = thread_index(); c < columns && c < op.width; c += kTimestepThreads) {
    A weight = sums[c], bias = sums[columns + c];
    for (int warp = 1; warp < kTimestepWarps; ++warp) {
      weight += sums[warp * 2 * columns + c];
      bias += sums[(warp * 2 + 1) * columns + c];
    }
    if (op.dweight) op.dweight[sum_index(op, at, c)] = weight;
    if (op.dbias) op.dbias[sum_index(op, at, c)] = bias;
  }
}

// From the rows that the lanes keep, whose memory `sums` may share.
template <int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void write_held(const GradientArgs<T>& op, const GroupTile& at, const Rows<true, V, T>& x,
                                 const Rows<true, V, T>& dy, const TileMemory<A>& memory,
                                 const Shared<A>& sums) {
  const Tokens<T> to = dx_of(op);
  A weight[V], dweight[V] = {}, dbias[V] = {};
  load_or<V>(op, at, op.weight, at.lane * V, A(1), weight);
#pragma unroll 2
  for (int j = 0; j < kTeamTokens; ++j) {
    const int t = token_of(at, 0, j);
    for_pairs(op, at, x, dy, 0, j, [&](std::int64_t c, const A(&values)[V], const A(&gradients)[V]) {
      A dx[V];
      take_gradients(terms_of(memory, t), values, gradients, weight, dx, dweight, dbias);
      store<V>(group_of(op, at, to, t), c, dx);
    });
  }
  block_barrier();
  if (op.dweight || op.dbias) finish_sums(op, at, dweight, dbias, sums);
}

// From memory: a thread owns V channels and walks the tile's tokens.
template <int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void write_wide(const GradientArgs<T>& op, const GroupTile& at,
                                 const TileMemory<A>& memory) {
  const Tokens<T> to = dx_of(op);
  for (std::int64_t c = thread_index() * V; c < op.width; c += kTimestepThreads * V) {
    A weight[V], dweight[V] = {}, dbias[V] = {};
    load_or<V>(op, at, op.weight, c, A(1), weight);
    for (int t = 0; t < at.tokens; ++t) {
      A x[V], dy[V], dx[V];
      load<V>(group_of(op, at, op.x, t), c, x);
      load<V>(group_of(op, at, op.dy, t), c, dy);
      take_gradients(terms_of(memory, t), x, dy, weight, dx, dweight, dbias);
      store<V>(group_of(op, at, to, t), c, dx);
    }
    if (op.dweight) store<V>(op.dweight, sum_index(op, at, c), dweight);
    if (op.dbias) store<V>(op.dbias, sum_index(op, at, c), dbias);
  }
}

// A tile that does not exist adds nothing to the parameters' gradients.
template <class T>
MEGALODON_DEVICE void clear_sums(const GradientArgs<T>& op, const GroupTile& at) {
  for (std::int64_t c = thread_index(); c < op.width; c += kTimestepThreads) {
    if (op.dweight) op.dweight[sum_index(op, at, c)] = 0;
    if (op.dbias) op.dbias[sum_index(op, at, c)] = 0;
  }
}

template <bool kHeld, int V, class T>
MEGALODON_KERNEL MEGALODON_RESIDENT(kTimestepThreads,
                                    kDifferentiateBlocks) void differentiate(GradientArgs<T> op) {
  using A = Acc<T>;
  SharedMemory shared;
  const TileMemory<A> memory = take_tile_memory<A>(shared);
  const std::int64_t links = op.tiles.count * op.groups;
  const GroupTile at = group_tile(op, links - 1 - block_ticket(op.terms, memory.ticket));
  if (at.tokens == 0) {
    clear_sums(op, at);
    return;
  }
  SharedMemory reused = shared;
  const auto x = take_rows<kHeld, V>(shared, op.x), dy = take_rows<kHeld, V>(shared, op.dy);
  const auto fetched = fetch(op, at, x), fetched_dy = fetch(op, at, dy);
  keep(op, at, x, fetched);
  keep(op, at, dy, fetched_dy);
  find_terms(op, at, x, dy, memory);
  if constexpr (kHeld) {
    write_held(op, at, x, dy, memory, reused.take<A>(kTimestepWarps * 2 * kWarp * V));
  } else {
    write_wide<V>(op, at, memory);
  }
}

}  // namespace megalodon::cuda
