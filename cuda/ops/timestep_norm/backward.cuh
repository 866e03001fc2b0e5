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
//
// The statistics of the tokens are there: forward kept them, or its pass over x came before. Gradients come
// in a pass over x and dy, along a chain of tiles that starts at the last one.
#pragma once

#include "ops/timestep_norm/statistics.cuh"

namespace megalodon::cuda {

template <class T>
struct GradientArgs : TimestepArgs<T> {
  Tokens<const T> dy;
  Chain terms;                       // links (tiles, G), from the last to the first: p, b and its m
  Global<const Acc<T>> dmean, dvar;  // cotangents of the final state, or absent
  Global<T> dx;                      // (B, L, D)
  Global<Acc<T>> dinitial_mean, dinitial_var;
  Global<Acc<T>> dweight, dbias;  // (tiles, D) sums, or absent
};

// p and b of some tokens, with m = mean: that of the first of them.
struct Suffix {
  double p, b, mean;
};

MEGALODON_DEVICE Suffix moved(const Suffix& all, double mean) {
  return {all.p + rounded_product(2 * all.b, mean - all.mean), all.b, mean};
}

// Those of tokens before others; rounded alike wherever it is compiled.
MEGALODON_DEVICE Suffix join(const Suffix& before, const Suffix& after) {
  return {before.p + moved(after, before.mean).p, before.b + after.b, before.mean};
}

MEGALODON_DEVICE Suffix suffix_of(const Link<3>& link) { return {link.part[0], link.part[1], link.part[2]}; }
MEGALODON_DEVICE Link<3> link_of(const Suffix& suffix) { return {suffix.p, suffix.b, suffix.mean}; }

MEGALODON_DEVICE Suffix read_suffix(const Shared<double>& from, int i) {
  return {from[i * 3], from[i * 3 + 1], from[i * 3 + 2]};
}
MEGALODON_DEVICE void write_suffix(const Shared<double>& to, int i, const Suffix& suffix) {
  to[i * 3] = suffix.p;
  to[i * 3 + 1] = suffix.b;
  to[i * 3 + 2] = suffix.mean;
}

// Leaves the sums of g and of g x^ of every token in memory.first and memory.second.
template <bool kHeld, int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void sum_gradients(const GradientArgs<T>& op, const GroupTile& at,
                                    const Rows<kHeld, V, T>& x, const Rows<kHeld, V, T>& dy,
                                    const TileMemory<A>& memory) {
  constexpr int N = Rows<kHeld, V, T>::kTokens;
  A weight[V];
  if constexpr (kHeld) load_or<V>(op, at, op.weight, at.lane * V, A(1), weight);
#pragma unroll 1
  for (int first = 0; first < kTeamTokens; first += N) {
    A sum[N] = {}, product[N] = {};
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int t = token_of(at, first, j);
      for_pairs(op, at, x, dy, first, j, [&](std::int64_t c, const A(&values)[V], const A(&gradients)[V]) {
        if constexpr (!kHeld) load_or<V>(op, at, op.weight, c, A(1), weight);
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const A gradient = rounded_product(gradients[e], weight[e]);
          sum[j] += gradient;
          product[j] += gradient * ((values[e] - memory.mean[t] - memory.rest[t]) * memory.scale[t]);
        }
      });
    }
    team_sum(at, sum);
    team_sum(at, product);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int t = token_of(at, first, j);
      if (at.lane != 0 || t >= at.tokens) continue;
      memory.first[t] = sum[j];
      memory.second[t] = product[j];
    }
  }
  block_barrier();
}

// p and b of the thread's token alone.
template <class A>
MEGALODON_DEVICE Suffix term_of(const GroupTile& at, const Running& running, const TileMemory<A>& memory) {
  const int t = thread_index();
  if (t >= at.tokens) return {0, 0, 0};
  const double dmean = -running.scale * memory.first[t];
  const double dvar = -0.5 * running.scale * running.scale * memory.second[t];
  return {dmean / running.n, dvar / running.n, running.mean};
}

// Of the tile's tokens from the thread's own on.
template <class A>
MEGALODON_DEVICE Suffix suffix_from(Suffix all, const TileMemory<A>& memory) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int from = lane_index() + step < kWarp ? lane_index() + step : lane_index();
    const Suffix after{warp_shuffle(all.p, from), warp_shuffle(all.b, from), warp_shuffle(all.mean, from)};
    if (from != lane_index()) all = join(all, after);
  }
  if (lane_index() == 0) write_suffix(memory.warps, warp_index(), all);
  block_barrier();
  if (warp_index() == kTimestepWarps - 1) return all;
  Suffix after = read_suffix(memory.warps, kTimestepWarps - 1);
  for (int warp = kTimestepWarps - 2; warp > warp_index(); --warp) {
    after = join(read_suffix(memory.warps, warp), after);
  }
  return join(all, after);
}

// p and b of the cotangents of the final state, with the mean and count of the last token.
template <class T>
MEGALODON_DEVICE Suffix final_term(const GradientArgs<T>& op, const GroupTile& at, double mean) {
  const std::int64_t i = at.tile.sequence * op.groups + at.g;
  const double n = initial_count(op, at.tile.sequence) + static_cast<double>(at.sequence.length);
  const double dmean = op.dmean ? op.dmean[i] : Acc<T>(0), dvar = op.dvar ? op.dvar[i] : Acc<T>(0);
  return {dmean / n, dvar / n, mean};
}

// Of all tokens after a tile that is not the last, from the tiles after it; by a whole warp.
template <class T>
MEGALODON_DEVICE Suffix suffix_after(const GradientArgs<T>& op, const GroupTile& at) {
  const std::int64_t size = op.tiles.size, tiles = (at.sequence.length + size - 1) / size;
  const Link<3> after = look_back<3, 3>(
      op.terms, at.link, -op.groups, tiles - 1 - at.tile.first / size,
      [](const Link<3>& own, int) { return own; },
      [](const Link<3>& all, const Link<3>& own) { return link_of(join(suffix_of(own), suffix_of(all))); });
  return suffix_of(after);
}

template <class T>
MEGALODON_DEVICE void write_initial_gradients(const GradientArgs<T>& op, const GroupTile& at,
                                              const Suffix& all) {
  using A = Acc<T>;
  const std::int64_t i = at.tile.sequence * op.groups + at.g;
  const double n = initial_count(op, at.tile.sequence);
  if (op.dinitial_mean) op.dinitial_mean[i] = static_cast<A>(n * moved(all, op.initial_mean[i]).p);
  if (op.dinitial_var) op.dinitial_var[i] = static_cast<A>(n * all.b);
}

// The state of an empty sequence passes through, and so does its gradient.
template <class T>
MEGALODON_KERNEL void pass_gradients_through(GradientArgs<T> op) {
  using A = Acc<T>;
  const std::int64_t i = block_x() * kTimestepThreads + thread_index(), s = i / op.groups;
  if (s >= op.tiles.sequences.count || sequence_at(op.tiles.sequences, s).length > 0) return;
  if (op.dinitial_mean) op.dinitial_mean[i] = op.dmean ? op.dmean[i] : A(0);
  if (op.dinitial_var) op.dinitial_var[i] = op.dvar ? op.dvar[i] : A(0);
}

// Links the tile into its chain; returns what comes from all tokens after it. `own` is that of the tile's
// tokens from the thread's on.
template <class T, class A = Acc<T>>
MEGALODON_DEVICE Suffix link_terms(const GradientArgs<T>& op, const GroupTile& at, const Suffix& own,
                                   const Running& running, const TileMemory<A>& memory) {
  if (thread_index() == at.tokens - 1) memory.own[0] = running.mean;
  if (thread_index() == 0 && !is_first(at) && !is_last(at)) {
    tell(op.terms, at.link, kOwn, link_of(own));
  }
  block_barrier();
  if (warp_index() == 0) {
    const Suffix after = is_last(at) ? final_term(op, at, memory.own[0]) : suffix_after(op, at);
    if (lane_index() == 0) {
      const Suffix all = join(own, after);
      if (is_first(at)) {
        write_initial_gradients(op, at, all);
      } else {
        tell(op.terms, at.link, kUpto, link_of(all));
      }
      write_suffix(memory.before, 0, after);
    }
  }
  block_barrier();
  return read_suffix(memory.before, 0);
}

// The statistics of the thread's token, from forward or from `normalize` before this kernel.
template <class T>
MEGALODON_DEVICE Running kept_statistics(const GradientArgs<T>& op, const GroupTile& at) {
  if (thread_index() >= at.tokens) return {1, 0, 0};
  const std::int64_t i = kept_at(op, at, thread_index());
  return {count_before(op, at) + thread_index() + 1, op.token_mean[i], op.token_scale[i]};
}

// All of a block but dx and the parameters: leaves the terms of dx = r g + first + second (x - mean_t) in
// memory.first and memory.second.
template <bool kHeld, int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void find_terms(const GradientArgs<T>& op, const GroupTile& at, const Rows<kHeld, V, T>& x,
                                 const Rows<kHeld, V, T>& dy, const TileMemory<A>& memory) {
  const Running running = kept_statistics(op, at);
  share_statistics(running, memory);
  sum_gradients(op, at, x, dy, memory);
  const Suffix from = suffix_from(term_of(at, running, memory), memory);
  const Suffix all = join(from, link_terms(op, at, from, running, memory));
  const double inverse = 1 / static_cast<double>(op.width);
  memory.first[thread_index()] = all.p * inverse;
  memory.second[thread_index()] = 2 * all.b * inverse;
  block_barrier();
}

}  // namespace megalodon::cuda
