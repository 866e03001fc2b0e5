// Gradients of timestep normalization.
//
// A sequence is walked forward for the statistics of its tokens, then backward, tile by tile, pulling the
// gradients of the running mean and variance along. Four numbers are kept per token and group; where groups
// are so small that this is no longer little beside x itself, they are kept for one segment of the sequence
// at a time, from the running statistics before it.
#pragma once

#include "cpu/kernels/column_sums.h"
#include "cpu/kernels/timestep_statistics.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Tokens of a segment, a multiple of a tile's.
template <class A>
inline std::int64_t segment_tokens(const TimestepNormPlan& plan, const SequenceSpan& sequences) {
  constexpr std::int64_t kSmallGroup = 16, kSegmentBytes = 256 << 10;
  const std::int64_t tiles = sequences.longest / plan.tile_tokens + 1;
  const std::int64_t tile_bytes = plan.tile_tokens * plan.widest() * 4 * static_cast<std::int64_t>(sizeof(A));
  const std::int64_t fitting = plan.group_size < kSmallGroup ? kSegmentBytes / tile_bytes : tiles;
  return plan.tile_tokens * clamp(fitting, 1, tiles);
}

// What a task needs, rows ending in a spare vector.
template <class A>
struct TimestepBackwardSpace {
  TimestepStatistics<A> statistics;
  double *before_mean, *before_squares;  // (segments, groups): the running statistics before each segment
  InputRows<A> x, dy;
  A* weight;
  A* row;  // of dx, where it needs conversion
  double *dmean, *dvar;

  TimestepBackwardSpace(Arena<A>& arena, const TimestepNormPlan& plan, std::int64_t segment,
                        std::int64_t segments)
      : statistics(arena, plan, segment) {
    for (double** array : {&before_mean, &before_squares})
      *array = take_doubles(arena, segments * plan.widest());
    for (double** array : {&dmean, &dvar}) *array = take_doubles(arena, plan.widest());
    for (InputRows<A>* rows : {&x, &dy}) {
      rows->pitch = plan.pitch;
      rows->buffer = arena.take(plan.tile_tokens * plan.pitch);
    }
    for (A** array : {&weight, &row}) *array = arena.take(plan.pitch);
  }
};

// dx of one token: scale g + slope (x - center) + offset, with g = dy weight.
template <class A>
struct TokenGradient {
  Vec<A> center, scale, slope, offset;

  Vec<A> operator()(Vec<A> x, Vec<A> g) const { return g * scale + ((x - center) * slope + offset); }
};

// One task at one sequence.
template <int kVectors, class A>
struct TimestepNormGradient {
  const TimestepNormBackward& op;
  const TimestepNormPlan& plan;
  const Sequence& sequence;
  const GroupRange range;
  TimestepBackwardSpace<A>& space;
  const std::int64_t task;
  const ColumnSums<A>&weight_sums, &bias_sums;
  const double initial_count;

  std::int64_t tokens_of_tile(std::int64_t first) const {
    return clamp(sequence.length - first, 0, plan.tile_tokens);
  }

  // Advances over the segment that begins at `begin`, keeping its tokens' statistics.
  void walk_forward(std::int64_t begin, std::int64_t end) const {
    space.statistics.count = initial_count + static_cast<double>(begin);
    for (std::int64_t first = begin; first < end; first += plan.tile_tokens) {
      const std::int64_t tokens = tokens_of_tile(first);
      space.x.read(op.x, sequence, first, tokens, first + plan.tile_tokens, range);
      advance<kVectors>(range, op.eps, space.x, tokens, first - begin, space.statistics);
    }
  }

  // From the last tile of the segment to its first.
  void walk_backward(std::int64_t begin, std::int64_t end) const {
    const std::int64_t tiles = (end - begin + plan.tile_tokens - 1) / plan.tile_tokens;
    for (std::int64_t first = begin + (tiles - 1) * plan.tile_tokens; first >= begin;
         first -= plan.tile_tokens) {
      const std::int64_t tokens = tokens_of_tile(first), next = first - plan.tile_tokens;
      space.x.read(op.x, sequence, first, tokens, next, range);
      space.dy.read(op.dy, sequence, first, tokens, next, range);
      sum_gradients(tokens, first - begin);
      pull_back(tokens, first - begin, initial_count + static_cast<double>(first));
      write_gradients(first, tokens, first - begin);
      weight_sums.rows_added(task, tokens);
      bias_sums.rows_added(task, tokens);
    }
  }

  // sum(g) and sum(g n) of every token and group, n = (x - mean) r being the normalized x, and the
  // parameters'.
  void sum_gradients(std::int64_t tokens, std::int64_t at) const {
    GroupSums<kVectors, A> sums(range, space.statistics.first_sum, space.statistics.second_sum);
    for (std::int64_t t = 0; t < tokens; ++t) {
      sums.add_token(normalizer_of(space.statistics, range, at + t),
                     [weight = space.weight, dweight = weight_sums.block(task), dbias = bias_sums.block(task),
                      x = space.x.row[t], dy = space.dy.row[t], x_ahead = space.x.ahead[t],
                      dy_ahead = space.dy.ahead[t]](std::int64_t c, const Normalizer<A>& normalize, auto keep,
                                                    Vec<A>& sum, Vec<A>& product) {
                       x_ahead.prefetch(c);
                       dy_ahead.prefetch(c);
                       const Vec<A> n = normalize(load(x + c)), d = keep(load(dy + c));
                       const Vec<A> g = keep(d * load(weight + c));
                       store(dweight + c, load(dweight + c) + keep(d * n));
                       store(dbias + c, load(dbias + c) + d);
                       sum += g;
                       product += keep(g * n);
                     });
    }
    sums.finish();
  }

  // Pulls M and V, the gradients of the running mean and variance after a tile, back to before it. Including
  // what they get through the token's own y, with S the size of a group and k = 1 / count:
  //
  //   M += -r sum(g)        V += -r^2 / 2 sum(g n)                      use by y = n weight + bias
  //   dm = k M + C          dv = k V          C = 2 k (1 - k) delta V   mean and variance of the token
  //   M <- (1 - k) M - C    V <- (1 - k) V                              for the token before
  //   dx = r g + dm / S + 2 dv (x - m) / S,   x - m = n / r - (1 - k) delta
  //
  // Leaves offset and slope of dx in first_sum and second_sum, which were sum(g) and sum(g n).
  void pull_back(std::int64_t tokens, std::int64_t at, double count) const {
    const std::int64_t groups = range.count;
    const double inverse_size = 1.0 / static_cast<double>(range.size);
    double *dmean = space.dmean, *dvar = space.dvar;
    for (std::int64_t t = tokens - 1; t >= 0; --t) {
      const double k = 1 / (count + static_cast<double>(t + 1)), rest = 1 - k;
      const A* scale = space.statistics.scale + (at + t) * groups;
      const A* shift = space.statistics.shift + (at + t) * groups;
      const A* delta = space.statistics.delta + (at + t) * groups;
      A* first = space.statistics.first_sum + t * groups;
      A* second = space.statistics.second_sum + t * groups;
#pragma omp simd
      for (std::int64_t g = 0; g < groups; ++g) {
        const double r = scale[g], d = delta[g];
        const double m = dmean[g] - r * first[g];
        const double v = dvar[g] - 0.5 * r * r * second[g];
        const double coupling = 2 * k * rest * d * v;
        const double slope = 2 * k * v * inverse_size;
        dmean[g] = rest * m - coupling;
        dvar[g] = rest * v;
        first[g] = static_cast<A>((k * m + coupling) * inverse_size - slope * rest * d) +
                   static_cast<A>(slope) * shift[g] / scale[g];
        second[g] = static_cast<A>(slope);
      }
    }
  }

  void write_gradients(std::int64_t first, std::int64_t tokens, std::int64_t at) const {
    const TimestepStatistics<A>& statistics = space.statistics;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const A* center = statistics.center + (at + t) * range.count;
      const A* scale = statistics.scale + (at + t) * range.count;
      const A* slope = statistics.second_sum + t * range.count;
      const A* offset = statistics.first_sum + t * range.count;
      write_token(op.dx, sequence, first + t, range, space.row, plan.pitch, [&](A* dx) {
        for_groups<kVectors, A>(
            range, [=](auto of) { return TokenGradient<A>{of(center), of(scale), of(slope), of(offset)}; },
            [dx, ahead = Ahead(op.dx, sequence, first + t - plan.tile_tokens, range), weight = space.weight,
             x = space.x.row[t], dy = space.dy.row[t]](std::int64_t c, const TokenGradient<A>& gradient) {
              ahead.prefetch(c);
              store(dx + c, gradient(load(x + c), load(dy + c) * load(weight + c)));
            });
      });
    }
  }
};

inline void copy_doubles(const double* from, std::int64_t count, double* to) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(double));
}

template <int kVectors, class A>
inline void differentiate_sequence(const TimestepNormGradient<kVectors, A>& gradient, std::int64_t s,
                                   std::int64_t segment) {
  const TimestepNormBackward& op = gradient.op;
  const GroupRange range = gradient.range;
  TimestepBackwardSpace<A>& space = gradient.space;
  const std::int64_t length = gradient.sequence.length, segments = (length + segment - 1) / segment;
  const auto end = [=](std::int64_t begin) { return begin + segment < length ? begin + segment : length; };
  const std::int64_t widest = gradient.plan.widest();
  for (std::int64_t i = 0; i < segments; ++i) {
    copy_doubles(space.statistics.mean, range.count, space.before_mean + i * widest);
    copy_doubles(space.statistics.squares, range.count, space.before_squares + i * widest);
    gradient.walk_forward(i * segment, end(i * segment));
  }
  const std::int64_t first = s * op.num_groups + range.first;
  for (std::int64_t g = 0; g < range.count; ++g) {
    space.dmean[g] = op.dmean.defined() ? op.dmean.as<const A>()[first + g] : 0;
    space.dvar[g] = op.dvar.defined() ? op.dvar.as<const A>()[first + g] : 0;
  }
  for (std::int64_t i = segments - 1; i >= 0; --i) {
    if (i < segments - 1) {
      copy_doubles(space.before_mean + i * widest, range.count, space.statistics.mean);
      copy_doubles(space.before_squares + i * widest, range.count, space.statistics.squares);
      gradient.walk_forward(i * segment, end(i * segment));
    }
    gradient.walk_backward(i * segment, end(i * segment));
  }
  if (!op.dinitial_mean.defined()) return;
  for (std::int64_t g = 0; g < range.count; ++g) {
    op.dinitial_mean.as<A>()[first + g] = static_cast<A>(space.dmean[g]);
    op.dinitial_var.as<A>()[first + g] = static_cast<A>(space.dvar[g]);
  }
}

template <int kVectors, class A>
inline void timestep_norm_backward_as(const TimestepNormBackward& op, const SequenceSpan& sequences,
                                      int threads) {
  const TimestepNormPlan plan = timestep_norm_plan<A>(op, sequences, 2, threads);
  const std::int64_t segment = segment_tokens<A>(plan, sequences);
  const std::int64_t segments = (sequences.longest + segment - 1) / segment;
  const Workspaces<TimestepBackwardSpace<A>, A> spaces(plan.tasks(), plan, segment, segments);
  const ColumnSums<A> weight_sums(plan.tasks(), plan.pitch), bias_sums(plan.tasks(), plan.pitch);
  parallel_for(plan.tasks(), threads, [&](std::int64_t task) {
    const GroupRange range = plan.range(task);
    TimestepBackwardSpace<A> space = spaces.at(task, plan, segment, segments);
    copy_parameter(op.weight, range, A(1), space.weight);
    plan.for_sequences(task, sequences.count, [&](std::int64_t s) {
      space.statistics.start(op, s, range);
      const TimestepNormGradient<kVectors, A> gradient{
          op, plan, sequences.data[s], range, space, task, weight_sums, bias_sums, space.statistics.count};
      differentiate_sequence(gradient, s, segment);
    });
  });
  for (std::int64_t task = 0; op.dweight.defined() && task < plan.tasks(); task += plan.parts) {
    const GroupRange range = plan.range(task);
    weight_sums.finish(task, task + plan.parts, range.width(), op.dweight.as<A>() + range.channel());
    bias_sums.finish(task, task + plan.parts, range.width(), op.dbias.as<A>() + range.channel());
  }
  zero_padding(op.dx, sequences, threads);
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
