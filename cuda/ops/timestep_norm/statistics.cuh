// Cumulative statistics and the normalized tokens, in one pass over x. A block has one group of a tile: it
// measures its tokens, adds them up over the tile, takes the statistics of all tokens before from the chain
// of tiles, and normalizes what it kept. In double from a token's mean and variance on.
#pragma once

#include "ops/timestep_norm/group_tile.cuh"

namespace megalodon::cuda {

// n tokens with this mean and sum of squared deviations of their groups' values, divided by a group's width.
struct Moments {
  double n, mean, squares;
};

// What merging b into a takes of their counts. With it, merging is products and sums, and a chain of merges
// does not wait for divisions.
struct MergeWeights {
  double share, spread;
};

MEGALODON_DEVICE MergeWeights merge_weights(double a, double b) { return {b / (a + b), a * b / (a + b)}; }

// Chan, Golub, LeVeque 1979: no cancellation, whatever the mean. (mean, squares) of both, rounded alike
// wherever it is compiled.
MEGALODON_DEVICE Link<2> merge(const Link<2>& a, const Link<2>& b, const MergeWeights& weights) {
  const double delta = b.part[0] - a.part[0];
  return {a.part[0] + rounded_product(delta, weights.share),
          a.part[1] + b.part[1] + rounded_product(rounded_product(delta, delta), weights.spread)};
}

MEGALODON_DEVICE Moments merge(const Moments& a, const Moments& b) {
  const Link<2> all = merge({a.mean, a.squares}, {b.mean, b.squares}, merge_weights(a.n, b.n));
  return {a.n + b.n, all.part[0], all.part[1]};
}

// The shared memory of a block.
template <class A>
struct TileMemory {
  Shared<double> first, second;  // (tokens,): mean and variance; in backward sums, then terms of dx
  Shared<A> mean, rest, scale;   // (tokens,): of the running statistics
  Shared<double> warps;          // (warps, 3)
  Shared<double> own, before;    // (3,): of the tile, and of all tiles before (backward: after) it
  Shared<std::int32_t> ticket;
};

template <class A>
inline constexpr std::int64_t kTileMemoryBytes =
    2 * shared_size<double>(kTimestepThreads) + 3 * shared_size<A>(kTimestepThreads) +
    shared_size<double>(kTimestepWarps * 3) + 2 * shared_size<double>(3) + shared_size<std::int32_t>(1);

template <class A>
MEGALODON_DEVICE TileMemory<A> take_tile_memory(SharedMemory& memory) {
  TileMemory<A> tile;
  tile.first = memory.take<double>(kTimestepThreads);
  tile.second = memory.take<double>(kTimestepThreads);
  tile.mean = memory.take<A>(kTimestepThreads);
  tile.rest = memory.take<A>(kTimestepThreads);
  tile.scale = memory.take<A>(kTimestepThreads);
  tile.warps = memory.take<double>(kTimestepWarps * 3);
  tile.own = memory.take<double>(3);
  tile.before = memory.take<double>(3);
  tile.ticket = memory.take<std::int32_t>(1);
  return tile;
}

// Leaves mean and variance of every token of the tile in memory.first and memory.second. The mean first and
// then squares of deviations, less what rounding of the mean left.
template <bool kHeld, int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void measure_tokens(const TimestepArgs<T>& op, const GroupTile& at,
                                     const Rows<kHeld, V, T>& x, const TileMemory<A>& memory) {
  constexpr int N = Rows<kHeld, V, T>::kTokens;
  const A inverse = A(1) / static_cast<A>(op.width);
#pragma unroll 1
  for (int first = 0; first < kTeamTokens; first += N) {
    A mean[N] = {}, rest[N] = {}, squares[N] = {};
#pragma unroll
    for (int j = 0; j < N; ++j) {
      for_packs(op, at, x, first, j, [&](std::int64_t, const A(&values)[V]) {
#pragma unroll
        for (int e = 0; e < V; ++e) mean[j] += values[e];
      });
    }
    team_sum(at, mean);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      mean[j] *= inverse;
      for_packs(op, at, x, first, j, [&](std::int64_t, const A(&values)[V]) {
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const A deviation = values[e] - mean[j];
          rest[j] += deviation;
          squares[j] += deviation * deviation;
        }
      });
    }
    team_sum(at, rest);
    team_sum(at, squares);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int t = token_of(at, first, j);
      const A remainder = rest[j] * inverse, variance = squares[j] * inverse - remainder * remainder;
      if (at.lane != 0 || t >= at.tokens) continue;
      memory.first[t] = static_cast<double>(mean[j]) + static_cast<double>(remainder);
      memory.second[t] = variance > 0 ? variance : variance * 0;
    }
  }
  block_barrier();
}

// Of the tile's tokens up to the thread's own one, which is its index. Within a tile means count from the
// first token's and squares are plain sums: that token is in every one of them, so they lose no more digits
// than the tile has tokens.
template <class A>
MEGALODON_DEVICE Moments moments_upto(const GroupTile& at, const TileMemory<A>& memory) {
  const int t = thread_index();
  const double pivot = memory.first[0], n = t + 1, inverse = 1 / n;
  double sum = 0, squares = 0;
  if (t < at.tokens) {
    sum = memory.first[t] - pivot;
    squares = memory.second[t] + sum * sum;
  }
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int from = lane_index() >= step ? lane_index() - step : lane_index();
    const double sum_before = warp_shuffle(sum, from), squares_before = warp_shuffle(squares, from);
    if (from == lane_index()) continue;
    sum += sum_before;
    squares += squares_before;
  }
  if (lane_index() == kWarp - 1) {
    memory.warps[warp_index() * 2] = sum;
    memory.warps[warp_index() * 2 + 1] = squares;
  }
  block_barrier();
  for (int warp = 0; warp < warp_index(); ++warp) {
    sum += memory.warps[warp * 2];
    squares += memory.warps[warp * 2 + 1];
  }
  const double around = squares - sum * (sum * inverse);
  return {n, pivot + sum * inverse, around > 0 ? around : around * 0};
}

// Statistics of tokens before the first one of this call.
template <class T>
MEGALODON_DEVICE Moments initial_moments(const TimestepArgs<T>& op, std::int64_t s, std::int64_t g) {
  const double n = initial_count(op, s);
  if (n == 0) return {0, 0, 0};
  const std::int64_t i = s * op.groups + g;
  return {n, op.initial_mean[i], n * op.initial_var[i]};
}

// Of all tokens before a tile that is not the first, from the tiles before it; by a whole warp.
template <class T>
MEGALODON_DEVICE Moments moments_before(const TimestepArgs<T>& op, const GroupTile& at) {
  const double size = static_cast<double>(op.tiles.size);
  const double n = count_before(op, at);
  const auto weigh = [&](const Link<2>& own, int k) {
    const MergeWeights weights = merge_weights(n - k * size, size);
    return Link<4>{own.part[0], own.part[1], weights.share, weights.spread};
  };
  const auto join = [](const Link<2>& all, const Link<4>& own) {
    return merge(all, {own.part[0], own.part[1]}, {own.part[2], own.part[3]});
  };
  const Link<2> all =
      look_back<2, 4>(op.statistics, at.link, op.groups, at.tile.first / op.tiles.size, weigh, join);
  return {n, all.part[0], all.part[1]};
}

template <class T>
struct NormalizeArgs : TimestepArgs<T> {
  Global<T> y;                 // absent where only the tokens' statistics are wanted, for backward
  Global<std::int64_t> count;  // final state, absent in backward
  Global<Acc<T>> mean, var;
};

template <class T>
MEGALODON_DEVICE void write_state(const NormalizeArgs<T>& op, const GroupTile& at, const Moments& all) {
  using A = Acc<T>;
  const std::int64_t s = at.tile.sequence, i = s * op.groups + at.g;
  if (at.g == 0) op.count[s] = (op.initial_count ? op.initial_count[s] : 0) + at.sequence.length;
  op.mean[i] = static_cast<A>(all.mean);
  op.var[i] = static_cast<A>(all.squares / all.n);
}

// An empty sequence returns its state as it came.
template <class T>
MEGALODON_KERNEL void pass_state_through(NormalizeArgs<T> op) {
  using A = Acc<T>;
  const std::int64_t i = block_x() * kTimestepThreads + thread_index(), s = i / op.groups;
  if (s >= op.tiles.sequences.count || sequence_at(op.tiles.sequences, s).length > 0) return;
  if (i % op.groups == 0) op.count[s] = op.initial_count ? op.initial_count[s] : 0;
  op.mean[i] = op.initial_mean ? op.initial_mean[i] : A(0);
  op.var[i] = op.initial_var ? op.initial_var[i] : A(1);
}

// The kept statistics behind those of a row with padding are 0.
template <class T>
MEGALODON_KERNEL void clear_after(NormalizeArgs<T> op) {
  const Sequences& rows = op.tiles.sequences;
  const std::int64_t i = block_x() * kTimestepThreads + thread_index(), token = i / op.groups;
  const std::int64_t row = token / rows.length;
  if (row >= rows.count || token % rows.length < rows.lengths[row]) return;
  op.token_mean[i] = 0;
  op.token_scale[i] = 0;
}

// Links the tile into its chain; returns the statistics of all tokens before it. `own` are those upto the
// thread's token.
template <class T, class A = Acc<T>>
MEGALODON_DEVICE Moments link_statistics(const NormalizeArgs<T>& op, const GroupTile& at, const Moments& own,
                                         const TileMemory<A>& memory) {
  if (thread_index() == at.tokens - 1) {
    memory.own[0] = own.mean;
    memory.own[1] = own.squares;
    if (!is_first(at) && !is_last(at)) tell<2>(op.statistics, at.link, kOwn, {own.mean, own.squares});
  }
  block_barrier();
  if (warp_index() == 0) {
    const Moments before =
        is_first(at) ? initial_moments(op, at.tile.sequence, at.g) : moments_before(op, at);
    if (lane_index() == 0) {
      const double n = static_cast<double>(at.tokens);
      const Moments all = merge(before, {n, memory.own[0], memory.own[1]});
      if (!is_last(at)) tell<2>(op.statistics, at.link, kUpto, {all.mean, all.squares});
      if (is_last(at) && op.mean) write_state(op, at, all);
      memory.before[0] = before.mean;
      memory.before[1] = before.squares;
    }
  }
  block_barrier();
  return {count_before(op, at), memory.before[0], memory.before[1]};
}

// Running statistics of the thread's token.
struct Running {
  double n, mean, scale;  // scale: rsqrt(var + eps)
};

// Those of the thread's token, from the ones before the tile and the tile's own up to the token.
template <class T>
MEGALODON_DEVICE Running run_statistics(const TimestepArgs<T>& op, const Moments& before,
                                        const Moments& own) {
  const Moments all = merge(before, own);
  return {all.n, all.mean, 1 / std::sqrt(all.squares / all.n + op.eps)};
}

// For backward.
template <class T>
MEGALODON_DEVICE void keep_statistics(const TimestepArgs<T>& op, const GroupTile& at,
                                      const Running& running) {
  if (!op.token_mean || thread_index() >= at.tokens) return;
  const std::int64_t i = kept_at(op, at, thread_index());
  op.token_mean[i] = running.mean;
  op.token_scale[i] = static_cast<Acc<T>>(running.scale);
}

// Leaves the running statistics of all tokens in memory. The mean is split, so that x - mean loses nothing
// where the mean is large.
template <class A>
MEGALODON_DEVICE void share_statistics(const Running& running, const TileMemory<A>& memory) {
  const A mean = static_cast<A>(running.mean);
  memory.mean[thread_index()] = mean;
  memory.rest[thread_index()] = static_cast<A>(running.mean - static_cast<double>(mean));
  memory.scale[thread_index()] = static_cast<A>(running.scale);
  block_barrier();
}

template <class T, int V, class A = Acc<T>>
MEGALODON_DEVICE void load_affine(const TimestepArgs<T>& op, const GroupTile& at, std::int64_t c,
                                  A (&weight)[V], A (&bias)[V]) {
  load_or<V>(op, at, op.weight, c, A(1), weight);
  load_or<V>(op, at, op.bias, c, A(0), bias);
}

template <bool kHeld, int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void write_normalized(const NormalizeArgs<T>& op, const GroupTile& at,
                                       const Rows<kHeld, V, T>& x, const TileMemory<A>& memory) {
  constexpr int N = Rows<kHeld, V, T>::kTokens;
  const std::int64_t dim = op.groups * op.width;
  const Tokens<T> y{op.y, op.tiles.sequences.length * dim, dim};
  A weight[V], bias[V];
  if constexpr (kHeld) load_affine(op, at, at.lane * V, weight, bias);
#pragma unroll 1
  for (int first = 0; first < kTeamTokens; first += N) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int t = token_of(at, first, j);
      for_packs(op, at, x, first, j, [&](std::int64_t c, const A(&values)[V]) {
        A normalized[V];
        if constexpr (!kHeld) load_affine(op, at, c, weight, bias);
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const A deviation = values[e] - memory.mean[t] - memory.rest[t];
          normalized[e] = deviation * memory.scale[t] * weight[e] + bias[e];
        }
        store<V>(group_of(op, at, y, t), c, normalized);
      });
    }
  }
}

template <bool kHeld, int V, class T>
MEGALODON_KERNEL MEGALODON_RESIDENT(kTimestepThreads,
                                    kNormalizeBlocks<kHeld>) void normalize(NormalizeArgs<T> op) {
  using A = Acc<T>;
  SharedMemory shared;
  const TileMemory<A> memory = take_tile_memory<A>(shared);
  const GroupTile at = group_tile(op, block_ticket(op.statistics, memory.ticket));
  if (at.tokens == 0) return;
  const auto x = take_rows<kHeld, V>(shared, op.x);
  keep(op, at, x, fetch(op, at, x));
  measure_tokens(op, at, x, memory);
  const Moments own = moments_upto(at, memory);
  const Moments before = link_statistics(op, at, own, memory);
  const Running running = run_statistics(op, before, own);
  keep_statistics(op, at, running);
  if (!op.y) return;
  share_statistics(running, memory);
  write_normalized(op, at, x, memory);
}

}  // namespace megalodon::cuda
