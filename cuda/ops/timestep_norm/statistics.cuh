// Cumulative statistics in three steps, like the scan of cema, in double. Tokens of a tile that are merged
// before:
//
//   1 token_statistics   mean and variance of each token's group      a warp per token and group
//   2 tile_statistics    of each tile's tokens                        a thread per tile and group
//   3 carry_statistics   of all tokens before each tile               a thread per sequence and group
//   4 running_statistics mean_t and rsqrt(var_t + eps) of each token  a thread per tile and group
#pragma once

#include "common/sequences.cuh"
#include "common/types.cuh"

namespace megalodon::cuda {

inline constexpr int kStatisticsTile = 32;  // tokens
inline constexpr int kStatisticsThreads = 128;

// n tokens with this mean and sum of squared deviations of their groups' values, divided by a group's width.
struct Moments {
  double n, mean, squares;
};

// Chan, Golub, LeVeque 1979: no cancellation, whatever the mean.
MEGALODON_DEVICE Moments merge(const Moments& a, const Moments& b) {
  const double n = a.n + b.n, delta = b.mean - a.mean;
  return {n, a.mean + delta * (b.n / n), a.squares + b.squares + delta * delta * (a.n * b.n / n)};
}

template <class T>
struct StatisticsArgs {
  Tiles tiles;
  Tokens<const T> x;
  Global<double> token;  // (B, L, G, 2): mean and variance, then mean_t and rsqrt(var_t + eps)
  Global<double> tile;   // (tiles, G, 2): mean and squares, then those of all tokens before
  Global<const std::int64_t> initial_count;
  Global<const Acc<T>> initial_mean, initial_var;
  Global<std::int64_t> count;  // final state, absent in backward
  Global<Acc<T>> mean, var;
  std::int64_t batch, groups, width;  // D = groups width
  double eps;
};

// Where the pair of a token, or of a tile, and a group lies.
template <class Args>
MEGALODON_DEVICE std::int64_t pair_index(const Args& op, std::int64_t row, std::int64_t time,
                                         std::int64_t g) {
  return ((row * op.tiles.sequences.length + time) * op.groups + g) * 2;
}

// Statistics of tokens before the first one of this call.
template <class T>
MEGALODON_DEVICE Moments initial_moments(const StatisticsArgs<T>& op, std::int64_t s, std::int64_t g) {
  const std::int64_t n = op.initial_count ? op.initial_count[s] : 0;
  if (n == 0) return {0, 0, 0};
  const std::int64_t i = s * op.groups + g;
  const double count = static_cast<double>(n);
  return {count, op.initial_mean[i], count * op.initial_var[i]};
}

// A group of a token, of which a warp has one each.
struct TokenGroup {
  std::int64_t row, time, g;
};

template <class Args>
MEGALODON_DEVICE TokenGroup token_group(const Args& op) {
  const std::int64_t i = block_x() * (kStatisticsThreads / kWarp) + warp_index();
  const std::int64_t token = i / op.groups, length = op.tiles.sequences.length;
  return {token / length, token % length, i % op.groups};
}

template <class T>
MEGALODON_KERNEL void token_statistics(StatisticsArgs<T> op) {
  using A = Acc<T>;
  const auto [row, time, g] = token_group(op);
  if (row >= op.batch) return;
  const Global<const T> x = token(op.x, row, time) + g * op.width;
  const A inverse = A(1) / static_cast<A>(op.width);
  A sum = 0;
  for (std::int64_t c = lane_index(); c < op.width; c += kWarp) sum += A(read(x[c]));
  const A mean = warp_sum(sum) * inverse;
  A rest = 0, squares = 0;
  for (std::int64_t c = lane_index(); c < op.width; c += kWarp) {
    const A deviation = A(read(x[c])) - mean;
    rest += deviation;
    squares += deviation * deviation;
  }
  const A remainder = warp_sum(rest) * inverse;  // what rounding of the mean left
  const A variance = warp_sum(squares) * inverse - remainder * remainder;
  if (lane_index() != 0) return;
  const std::int64_t at = pair_index(op, row, time, g);
  op.token[at] = static_cast<double>(mean) + static_cast<double>(remainder);
  op.token[at + 1] = variance > 0 ? variance : variance * 0;
}

// A tile and a group as a thread takes them; `exists` is false past the last.
struct TileGroup {
  Tile tile;
  Sequence sequence;
  std::int64_t index, g;  // of the tile's pair; the group
  bool exists;
};

template <class Args>
MEGALODON_DEVICE TileGroup tile_group(const Args& op) {
  const std::int64_t i = block_x() * kStatisticsThreads + thread_index(), tile = i / op.groups;
  if (tile >= op.tiles.count) return {{}, {}, 0, 0, false};
  const Tile found = tile_at(op.tiles, tile);
  return {found, sequence_at(op.tiles.sequences, found.sequence), i * 2, i % op.groups, true};
}

// Where the pair of token j of the tile lies.
template <class Args>
MEGALODON_DEVICE std::int64_t pair_of(const Args& op, const TileGroup& at, std::int64_t j) {
  const std::int64_t time = time_of(op.tiles.sequences, at.sequence, at.tile.first + j);
  return pair_index(op, at.sequence.row, time, at.g);
}

template <class T>
MEGALODON_KERNEL void tile_statistics(StatisticsArgs<T> op) {
  const TileGroup at = tile_group(op);
  if (!at.exists) return;
  Moments all{0, 0, 0};
  for (std::int64_t j = 0; j < at.tile.tokens; ++j) {
    const std::int64_t pair = pair_of(op, at, j);
    all = merge(all, {1, op.token[pair], op.token[pair + 1]});
  }
  op.tile[at.index] = all.mean;
  op.tile[at.index + 1] = all.squares;
}

template <class T>
MEGALODON_DEVICE void write_state(const StatisticsArgs<T>& op, std::int64_t s, std::int64_t g,
                                  const Moments& all, std::int64_t tokens) {
  using A = Acc<T>;
  const std::int64_t i = s * op.groups + g, before = op.initial_count ? op.initial_count[s] : 0;
  if (g == 0) op.count[s] = before + tokens;
  if (tokens > 0) {
    op.mean[i] = static_cast<A>(all.mean);
    op.var[i] = static_cast<A>(all.squares / all.n);
  } else {  // an empty sequence returns its state as it came
    op.mean[i] = op.initial_mean ? op.initial_mean[i] : A(0);
    op.var[i] = op.initial_var ? op.initial_var[i] : A(1);
  }
}

template <class T>
MEGALODON_KERNEL void carry_statistics(StatisticsArgs<T> op) {
  const std::int64_t i = block_x() * kStatisticsThreads + thread_index();
  if (i >= op.tiles.sequences.count * op.groups) return;
  const std::int64_t s = i / op.groups, g = i % op.groups;
  Moments all = initial_moments(op, s, g);
  const std::int64_t length = sequence_at(op.tiles.sequences, s).length, size = op.tiles.size;
  std::int64_t at = (first_tile(op.tiles, s) * op.groups + g) * 2;
  for (std::int64_t first = 0; first < length; first += size, at += op.groups * 2) {
    const double tokens = static_cast<double>(length - first < size ? length - first : size);
    const Moments tile{tokens, op.tile[at], op.tile[at + 1]};
    op.tile[at] = all.mean;
    op.tile[at + 1] = all.squares;
    all = merge(all, tile);
  }
  if (op.mean) write_state(op, s, g, all, length);
}

template <class T>
MEGALODON_KERNEL void running_statistics(StatisticsArgs<T> op) {
  const TileGroup at = tile_group(op);
  if (!at.exists || at.tile.tokens == 0) return;
  Moments all{0, op.tile[at.index], op.tile[at.index + 1]};
  all.n = static_cast<double>(op.initial_count ? op.initial_count[at.tile.sequence] : 0) +
          static_cast<double>(at.tile.first);
  for (std::int64_t j = 0; j < at.tile.tokens; ++j) {
    const std::int64_t pair = pair_of(op, at, j);
    all = merge(all, {1, op.token[pair], op.token[pair + 1]});
    op.token[pair] = all.mean;
    op.token[pair + 1] = 1 / std::sqrt(all.squares / all.n + op.eps);
  }
}

}  // namespace megalodon::cuda
