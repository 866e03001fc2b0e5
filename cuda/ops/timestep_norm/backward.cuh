// Gradients through the statistics, as sums over the tokens from t on. With g = dy weight, S = D / G, r =
// rsqrt:
//
//   A_t = -r_t sum_c g          the gradient of mean_t          B_t = -r_t^2 / 2 sum_c g x^       of var_t
//   p_t(m) = sum_{s >= t} (A_s - 2 B_s (mean_s - m)) / n_s      b_t = sum_{s >= t} B_s / n_s
//   dx  = r_t g + (p_t(m) + 2 b_t (x - m)) / S                  for any m
//
// since n_t mean_t and n_t (var_t + mean_t^2) are plain sums over tokens. With m near the means nothing
// cancels, so it moves along with mean_t. The cotangents of the final mean and variance are one more term at
// the last token; dmean_0 = n_0 p_1(mean_0), dvar_0 = n_0 b_1.
#pragma once

#include "ops/timestep_norm/apply.cuh"
#include "ops/timestep_norm/statistics.cuh"

namespace megalodon::cuda {

template <class T>
struct TermArgs {
  Tiles tiles;
  Tokens<const T> x, dy;
  Global<const Acc<T>> weight;
  Global<const double> statistics;  // (B, L, G, 2): mean_t and rsqrt(var_t + eps)
  Global<double> token;             // (B, L, G, 2): sums of g and of g x^, then the two terms of dx
  Global<double> tile;  // (tiles, G, 2): p and b of the tile's tokens, then of all tokens after it;
                        // m is the mean of the tile's first token
  Global<const std::int64_t> initial_count;
  Global<const Acc<T>> initial_mean;
  Global<const Acc<T>> dmean, dvar;  // cotangents of the final state, or absent
  Global<Acc<T>> dinitial_mean, dinitial_var;
  std::int64_t batch, groups, width;
};

// p and b of some tokens, with m = mean.
struct Suffix {
  double p, b, mean;
};

MEGALODON_DEVICE Suffix moved(const Suffix& all, double mean) {
  return {all.p + 2 * all.b * (mean - all.mean), all.b, mean};
}

// Those of tokens before others, with the m of the former.
MEGALODON_DEVICE Suffix join(const Suffix& before, const Suffix& after) {
  return {before.p + moved(after, before.mean).p, before.b + after.b, before.mean};
}

// The sums of g and of g x^ over a token's group: a warp each.
template <class T>
MEGALODON_KERNEL void token_gradients(TermArgs<T> op) {
  using A = Acc<T>;
  const auto [row, time, g] = token_group(op);
  if (row >= op.batch) return;
  const Global<const T> x = token(op.x, row, time), dy = token(op.dy, row, time);
  const std::int64_t pair = pair_index(op, row, time, g);
  const Center<A> at = center<A>(op.statistics, pair);
  A sum = 0, product = 0;
  for (std::int64_t lane = lane_index(); lane < op.width; lane += kWarp) {
    const std::int64_t c = g * op.width + lane;
    const A gradient = rounded_product(A(read(dy[c])), op.weight ? op.weight[c] : A(1));
    sum += gradient;
    product += gradient * (deviation(at, A(read(x[c]))) * at.scale);
  }
  sum = warp_sum(sum);
  product = warp_sum(product);
  if (lane_index() != 0) return;
  op.token[pair] = sum;
  op.token[pair + 1] = product;
}

// p and b of token j of a tile.
template <class T>
MEGALODON_DEVICE Suffix term_of(const TermArgs<T>& op, const TileGroup& at, std::int64_t j,
                                std::int64_t pair) {
  const double mean = op.statistics[pair], scale = op.statistics[pair + 1];
  const double before = static_cast<double>(op.initial_count ? op.initial_count[at.tile.sequence] : 0);
  const double n = before + static_cast<double>(at.tile.first + j + 1);
  const double dmean = -scale * op.token[pair], dvar = -0.5 * scale * scale * op.token[pair + 1];
  return {dmean / n, dvar / n, mean};
}

template <class T>
MEGALODON_KERNEL void tile_terms(TermArgs<T> op) {
  const TileGroup at = tile_group(op);
  if (!at.exists) return;
  Suffix all{0, 0, 0};
  for (std::int64_t j = at.tile.tokens; j-- > 0;) all = join(term_of(op, at, j, pair_of(op, at, j)), all);
  op.tile[at.index] = all.p;
  op.tile[at.index + 1] = all.b;
}

// mean_t of token j of a sequence.
template <class T>
MEGALODON_DEVICE double mean_at(const TermArgs<T>& op, const Sequence& sequence, std::int64_t j,
                                std::int64_t g) {
  return op.statistics[pair_index(op, sequence.row, time_of(op.tiles.sequences, sequence, j), g)];
}

// p and b of the cotangents of the final state.
template <class T>
MEGALODON_DEVICE Suffix final_term(const TermArgs<T>& op, std::int64_t i, const Sequence& sequence,
                                   std::int64_t g, double n) {
  const double dmean = op.dmean ? op.dmean[i] : Acc<T>(0), dvar = op.dvar ? op.dvar[i] : Acc<T>(0);
  return {dmean / n, dvar / n, mean_at(op, sequence, sequence.length - 1, g)};
}

template <class T>
MEGALODON_KERNEL void carry_terms(TermArgs<T> op) {
  using A = Acc<T>;
  const std::int64_t i = block_x() * kStatisticsThreads + thread_index();
  if (i >= op.tiles.sequences.count * op.groups) return;
  const std::int64_t s = i / op.groups, g = i % op.groups, size = op.tiles.size;
  const Sequence sequence = sequence_at(op.tiles.sequences, s);
  if (sequence.length == 0) {  // the state passes through, and so does its gradient
    if (op.dinitial_mean) op.dinitial_mean[i] = op.dmean ? op.dmean[i] : A(0);
    if (op.dinitial_var) op.dinitial_var[i] = op.dvar ? op.dvar[i] : A(0);
    return;
  }
  const double before = static_cast<double>(op.initial_count ? op.initial_count[s] : 0);
  Suffix all = final_term(op, i, sequence, g, before + static_cast<double>(sequence.length));
  for (std::int64_t tile = (sequence.length + size - 1) / size; tile-- > 0;) {
    const std::int64_t at = ((first_tile(op.tiles, s) + tile) * op.groups + g) * 2;
    const Suffix here{op.tile[at], op.tile[at + 1], mean_at(op, sequence, tile * size, g)};
    op.tile[at] = moved(all, here.mean).p;
    op.tile[at + 1] = all.b;
    all = join(here, all);
  }
  if (op.dinitial_mean) op.dinitial_mean[i] = static_cast<A>(before * moved(all, op.initial_mean[i]).p);
  if (op.dinitial_var) op.dinitial_var[i] = static_cast<A>(before * all.b);
}

// dx = r g + p / S + 2 b / S (x - mean_t), with m = mean_t.
template <class T>
MEGALODON_KERNEL void token_terms(TermArgs<T> op) {
  const TileGroup at = tile_group(op);
  if (!at.exists || at.tile.tokens == 0) return;
  const double inverse = 1 / static_cast<double>(op.width);
  Suffix all{op.tile[at.index], op.tile[at.index + 1], mean_at(op, at.sequence, at.tile.first, at.g)};
  for (std::int64_t j = at.tile.tokens; j-- > 0;) {
    const std::int64_t pair = pair_of(op, at, j);
    all = join(term_of(op, at, j, pair), all);
    op.token[pair] = all.p * inverse;
    op.token[pair + 1] = 2 * all.b * inverse;
  }
}

}  // namespace megalodon::cuda
