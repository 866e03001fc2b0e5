// The running statistics of timestep normalization, and how its work falls into tasks and tiles.
#pragma once

#include "cpu/kernels/arena.h"
#include "cpu/kernels/token_rows.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Task i owns group range i / parts and walks the sequences of part i % parts, tile by tile.
struct TimestepNormPlan {
  std::int64_t groups, group_size;
  std::int64_t ranges, parts;
  std::int64_t tile_tokens;
  std::int64_t pitch;  // of a row of the widest range

  std::int64_t tasks() const { return ranges * parts; }
  GroupRange range(std::int64_t task) const {
    const std::int64_t r = task / parts, first = groups * r / ranges;
    return {first, groups * (r + 1) / ranges - first, group_size};
  }
  std::int64_t widest() const { return (groups + ranges - 1) / ranges; }

  // f(s) for every sequence of the task.
  template <class F>
  void for_sequences(std::int64_t task, std::int64_t count, const F& f) const {
    const std::int64_t part = task % parts;
    for (std::int64_t s = count * part / parts; s < count * (part + 1) / parts; ++s) f(s);
  }
};

// A tile of each of `arrays` arrays takes 16 KiB together: the first-level cache holds it and what is
// prefetched of the next.
template <class A>
inline TimestepNormPlan timestep_norm_plan(const TimestepNorm& op, const SequenceSpan& sequences, int arrays,
                                           int threads) {
  constexpr std::int64_t kTileBytes = 16 << 10, kLeastChannels = 64;
  const std::int64_t dim = op.x.size(2);
  const std::int64_t useful = threads_for_elements(threads, op.x.numel());
  TimestepNormPlan plan;
  plan.groups = op.num_groups;
  plan.group_size = dim / op.num_groups;
  plan.ranges = clamp(dim / kLeastChannels, 1, useful < plan.groups ? useful : plan.groups);
  plan.parts = clamp(useful / plan.ranges, 1, sequences.count);
  plan.pitch = row_pitch<A>(plan.widest() * plan.group_size);
  const std::int64_t row_bytes = arrays * plan.pitch * static_cast<std::int64_t>(sizeof(A));
  plan.tile_tokens = clamp(kTileBytes / row_bytes, 1, kMostTileTokens);
  return plan;
}

template <class A>
inline double* take_doubles(Arena<A>& arena, std::int64_t count) {
  return reinterpret_cast<double*>(arena.take(count * static_cast<std::int64_t>(sizeof(double) / sizeof(A))));
}

// The running statistics of a task's groups, and those of as many tokens as its user keeps. The normalized x
// of a token is (x - center) * scale + shift: center is the mean rounded to A, shift makes up for the
// rounding.
template <class A>
struct TimestepStatistics {
  double count = 0;
  double *mean, *squares;     // (groups): squares is count * var
  A* pivot;                   // (groups): what is taken from x before it is summed
  A *center, *scale, *shift;  // (tokens, groups)
  A* delta;                   // (tokens, groups): the token's mean less the running mean before it
  A *first_sum, *second_sum;  // (tokens of a tile, groups)

  TimestepStatistics(Arena<A>& arena, const TimestepNormPlan& plan, std::int64_t kept_tokens) {
    const std::int64_t spare = kLanes<A>;
    mean = take_doubles(arena, plan.widest());
    squares = take_doubles(arena, plan.widest());
    pivot = arena.take(plan.widest() + spare);
    for (A** array : {&center, &scale, &shift, &delta}) {
      *array = arena.take(kept_tokens * plan.widest() + spare);
    }
    for (A** array : {&first_sum, &second_sum}) *array = arena.take(plan.tile_tokens * plan.widest() + spare);
  }

  void start(const TimestepNorm& op, std::int64_t sequence, const GroupRange& range) {
    const bool given = op.initial_count.defined();
    const std::int64_t first = sequence * op.num_groups + range.first;
    count = given ? static_cast<double>(op.initial_count.as<const std::int64_t>()[sequence]) : 0;
    for (std::int64_t g = 0; g < range.count; ++g) {
      mean[g] = given ? op.initial_mean.as<const A>()[first + g] : 0;
      squares[g] = given ? count * op.initial_var.as<const A>()[first + g] : 0;
    }
  }
};

// Sums of x lose digits only where the mean is large beside the deviation. Elsewhere x itself is summed: the
// roundings of x - pivot are all alike where x has few bits, and would not average out.
template <class A>
inline A choose_pivot(double mean, double var) {
  return mean * mean > 4 * var ? static_cast<A>(mean) : A(0);
}

// The first `tokens` rows of x, summed around the pivot.
template <int kVectors, class A>
inline void sum_around_pivot(const GroupRange& range, const InputRows<A>& x, std::int64_t tokens,
                             const TimestepStatistics<A>& statistics) {
  GroupSums<kVectors, A> sums(range, statistics.first_sum, statistics.second_sum);
  for (std::int64_t t = 0; t < tokens; ++t) {
    sums.add_token([pivot = statistics.pivot](auto of) { return of(pivot); },
                   [row = x.row[t], ahead = x.ahead[t]](std::int64_t c, Vec<A> pivot, auto keep, Vec<A>& sum,
                                                        Vec<A>& square) {
                     ahead.prefetch(c);
                     const Vec<A> around = keep(load(row + c) - pivot);
                     sum += around;
                     square += around * around;
                   });
  }
  sums.finish();
}

// Advances the running statistics over the tokens of a tile and keeps those of each token from place `at` on.
//
// A token's variance is its mean square around the pivot less the square of its mean around the pivot. What
// that loses where the token's mean is far from the pivot is small beside delta^2, which joins the variance
// with it; the first token of all, where delta has no weight, has its own mean as the pivot.
template <int kVectors, class A>
inline void advance(const GroupRange& range, double eps, const InputRows<A>& x, std::int64_t tokens,
                    std::int64_t at, TimestepStatistics<A>& statistics) {
  const std::int64_t groups = range.count;
  const A inverse_size = static_cast<A>(1.0 / static_cast<double>(range.size));
  double *mean = statistics.mean, *squares = statistics.squares;
  A* pivot = statistics.pivot;
  const double before = statistics.count;
  for (std::int64_t g = 0; g < groups; ++g) {
    pivot[g] = before == 0 ? A(0) : choose_pivot<A>(mean[g], squares[g] / before);
  }
  if (before == 0) {
    sum_around_pivot<kVectors>(range, x, 1, statistics);
    for (std::int64_t g = 0; g < groups; ++g) {
      const A m = statistics.first_sum[g] * inverse_size;
      pivot[g] = choose_pivot<A>(m, statistics.second_sum[g] * inverse_size - m * m);
    }
  }
  sum_around_pivot<kVectors>(range, x, tokens, statistics);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double k = 1 / (before + static_cast<double>(t + 1));
    const std::int64_t pair = (at + t) * groups;
    const A *sum = statistics.first_sum + t * groups, *square = statistics.second_sum + t * groups;
    A *center = statistics.center + pair, *scale = statistics.scale + pair;
    A *shift = statistics.shift + pair, *delta = statistics.delta + pair;
#pragma omp simd
    for (std::int64_t g = 0; g < groups; ++g) {
      const A around = sum[g] * inverse_size;
      const A variance = kVectors == kOneChannel ? A(0) : square[g] * inverse_size - around * around;
      const double d = static_cast<double>(pivot[g]) + static_cast<double>(around) - mean[g];
      const double m = mean[g] + d * k;
      const double s = squares[g] + (static_cast<double>(variance) + d * d * (1 - k));
      mean[g] = m;
      squares[g] = s;
      center[g] = static_cast<A>(m);
      scale[g] = A(1) / square_root(static_cast<A>(s * k + eps));
      shift[g] = static_cast<A>(static_cast<double>(center[g]) - m) * scale[g];
      delta[g] = static_cast<A>(d);
    }
  }
  statistics.count = before + static_cast<double>(tokens);
}

// The normalized x of one token.
template <class A>
struct Normalizer {
  Vec<A> center, scale, shift;

  Vec<A> operator()(Vec<A> x) const { return (x - center) * scale + shift; }
};

// For the token kept in place `at`, as for_groups prepares it.
template <class A>
inline auto normalizer_of(const TimestepStatistics<A>& statistics, const GroupRange& range, std::int64_t at) {
  const A* center = statistics.center + at * range.count;
  const A* scale = statistics.scale + at * range.count;
  const A* shift = statistics.shift + at * range.count;
  return [=](auto of) { return Normalizer<A>{of(center), of(scale), of(shift)}; };
}

// The range's values of a parameter (D,), or `absent` where it is not given.
template <class A>
inline void copy_parameter(const Tensor& parameter, const GroupRange& range, A absent, A* to) {
  for (std::int64_t c = 0; c < range.width(); ++c) {
    to[c] = parameter.defined() ? parameter.as<const A>()[range.channel() + c] : absent;
  }
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
