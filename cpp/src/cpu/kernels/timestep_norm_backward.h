// Gradients of timestep normalization.
//
// The running mean and variance are averages over all earlier tokens, so that with S the size of a group,
// n the count at a token, r = rsqrt(var + eps), g = dy weight and z = (x - mean) r:
//
//   dx_t = r_t g_t + (P_t + (x_t - c) W_t) / S
//   W_t = sum_{s >= t} 2 dvar_s / n_s                             dvar_s  = -r_s^2 sum(g_s z_s) / 2
//   P_t = sum_{s >= t} (dmean_s - 2 (mean_s - c) dvar_s) / n_s    dmean_s = -r_s sum(g_s)
//
// and for the initial ones, n_0 (P_1 + (mean_0 - c) W_1) and n_0 W_1 / 2; the gradients of the last ones join
// dmean and dvar of the last token. Any c gives the same dx. It is the mean after a token's block, so that
// little cancels.
//
// The statistics of all tokens come first, unless forward kept them. Then threads take the blocks in turn,
// from the last to the first: the sums over later blocks arrive from the block after.
#pragma once

#include "cpu/kernels/column_sums.h"
#include "cpu/kernels/timestep_statistics.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// P and W of every group.
struct LaterSums {
  double *p, *w;
};

// What a thread needs, rows ending in a spare vector.
template <class T, class A = Acc<T>>
struct TimestepBackwardSpace {
  BlockNormalizers<A> normalizers;
  A *sum, *product;   // (tokens, groups): of g and of g z
  LaterSums later;    // (tokens, groups), over the block's tokens
  A *slope, *offset;  // (tokens, groups): dx = r g + slope (x - center) + offset
  InputRows<T> x, dy;
  T* dx;  // a row

  TimestepBackwardSpace(Arena<A>& arena, const Groups& groups, std::int64_t tokens)
      : normalizers(arena, tokens * groups.count) {
    for (double** array : {&later.p, &later.w}) *array = take_doubles(arena, tokens * groups.count);
    for (A** array : {&sum, &product, &slope, &offset}) {
      *array = arena.take(tokens * groups.count + kLanes<A>);
    }
    const RowSpace<T> rows(arena, groups);
    for (InputRows<T>* input : {&x, &dy}) *input = rows.input(tokens);
    dx = rows.output();
  }
};

// dx of one token.
template <class A>
struct TokenGradient {
  Vec<A> center, scale, slope, offset;

  Vec<A> operator()(Vec<A> x, Vec<A> g) const { return g * scale + ((x - center) * slope + offset); }
};

// One block.
template <int kVectors, class T, class A = Acc<T>>
struct TimestepBlockGradient {
  const TimestepNormBackward& op;
  const Groups groups;
  const TokenBlock& block;
  const Sequence& sequence;
  const double count;                   // before the block
  const TokenStatistics<A> statistics;  // of its tokens, behind those of the one before
  const double* reference;              // c of every group
  const TimestepBackwardSpace<T>& space;

  // sum(g) and sum(g z) of every token and group, and the parameters'.
  void sum_gradients(const A* all_weights, A* dweight_sums, A* dbias_sums) const {
    GroupSums<kVectors, A> sums(groups, space.sum, space.product);
    for (std::int64_t t = 0; t < block.tokens; ++t) {
      sums.add_token(
          normalizer_of(space.normalizers, groups.count, t),
          [weight = all_weights, dweight = dweight_sums, dbias = dbias_sums, x = space.x.row[t],
           dy = space.dy.row[t], next_x = space.x.ahead(t), next_dy = space.dy.ahead(t)](
              std::int64_t c, const Normalizer<A>& normalize, auto keep, Vec<A>& sum, Vec<A>& product) {
            prefetch(next_x + c);
            prefetch(next_dy + c);
            const Vec<A> z = normalize(load(x + c)), d = keep(load(dy + c));
            const Vec<A> g = keep(d * load(weight + c));
            store(dweight + c, load(dweight + c) + keep(d * z));
            store(dbias + c, load(dbias + c) + d);
            sum += g;
            product += keep(g * z);
          });
    }
    sums.finish();
  }

  // P and W over the block's tokens from each on, without what comes after the block.
  void sum_later() const {
    const std::int64_t width = groups.count;
    const double* c = reference;
    for (std::int64_t t = block.tokens - 1; t >= 0; --t) {
      const double k = 1 / (count + static_cast<double>(t + 1));
      const bool first = t == block.tokens - 1;
      double *p = space.later.p + t * width, *w = space.later.w + t * width;
      const double* mean = statistics.mean + t * width;
      const A *scale = statistics.scale + t * width, *sum = space.sum + t * width;
      const A* product = space.product + t * width;
#pragma omp simd
      for (std::int64_t g = 0; g < width; ++g) {
        const double r = static_cast<double>(scale[g]) * k;
        const double b = static_cast<double>(scale[g]) * r * static_cast<double>(product[g]);
        w[g] = (first ? 0 : w[g + width]) - b;
        p[g] = (first ? 0 : p[g + width]) + ((mean[g] - c[g]) * b - r * static_cast<double>(sum[g]));
      }
    }
  }

  // The gradients of the last mean and variance, as sums over what comes after the last block.
  void start_later(const LaterSums& after) const {
    const double n = count + static_cast<double>(block.tokens);
    for (std::int64_t g = 0; g < groups.count; ++g) {
      const std::int64_t i = block.sequence * groups.count + g;
      const double dmean = op.dmean.defined() ? op.dmean.as<const A>()[i] : 0;
      const double dvar = op.dvar.defined() ? op.dvar.as<const A>()[i] : 0;
      after.w[g] = 2 * dvar / n;
      after.p[g] = dmean / n;
    }
  }

  // What the block before, with c from its own end, is handed.
  void add_later(const LaterSums& after, const LaterSums& before) const {
    const double* end = statistics.mean - groups.count;
    for (std::int64_t g = 0; g < groups.count; ++g) {
      before.w[g] = after.w[g] + space.later.w[g];
      before.p[g] = after.p[g] + space.later.p[g] + (end[g] - reference[g]) * before.w[g];
    }
  }

  // The gradients of the initial statistics, for the first block.
  void write_initial_gradients(const LaterSums& after) const {
    if (!op.dinitial_mean.defined()) return;
    for (std::int64_t g = 0; g < groups.count; ++g) {
      const std::int64_t i = block.sequence * groups.count + g;
      const double w = after.w[g] + space.later.w[g], p = after.p[g] + space.later.p[g];
      const double mean = op.initial_mean.as<const A>()[i];
      op.dinitial_mean.as<A>()[i] = static_cast<A>(count * (p + (mean - reference[g]) * w));
      op.dinitial_var.as<A>()[i] = static_cast<A>(count * w / 2);
    }
  }

  template <class Output>
  void write_gradients(Output output, const A* all_weights, const LaterSums& after) const {
    const double inverse_size = 1.0 / static_cast<double>(groups.size);
    for (std::int64_t t = 0; t < block.tokens; ++t) {
      const std::int64_t at = t * groups.count;
      const A *center = space.normalizers.center + at, *scale = space.normalizers.scale + at;
      A *slope = space.slope + at, *offset = space.offset + at;
      const double *p = space.later.p + at, *w = space.later.w + at;
#pragma omp simd
      for (std::int64_t g = 0; g < groups.count; ++g) {
        const double s = w[g] + after.w[g];
        slope[g] = static_cast<A>(s * inverse_size);
        offset[g] = static_cast<A>(
            ((p[g] + after.p[g]) + (static_cast<double>(center[g]) - reference[g]) * s) * inverse_size);
      }
      write_token(op.dx, sequence, block.first + t, groups, space.dx, [&](T* dx) {
        for_groups<kVectors, A>(
            groups, [=](auto of) { return TokenGradient<A>{of(center), of(scale), of(slope), of(offset)}; },
            [output, dx, weight = all_weights, x = space.x.row[t], dy = space.dy.row[t],
             next_dx = output_ahead<T>(op.dx, sequence, block, t)](std::int64_t c,
                                                                   const TokenGradient<A>& gradient) {
              output.prefetch_line(next_dx + c);
              output.write(AllLanes<A>{}, dx + c, gradient(load(x + c), load(dy + c) * load(weight + c)));
            });
      });
    }
  }
};

// A sequence without tokens hands the gradients of its last statistics on.
template <class A>
inline void keep_state_gradients(const TimestepNormBackward& op, std::int64_t sequence) {
  if (!op.dinitial_mean.defined()) return;
  for (std::int64_t i = sequence * op.num_groups; i < (sequence + 1) * op.num_groups; ++i) {
    op.dinitial_mean.as<A>()[i] = op.dmean.defined() ? op.dmean.as<const A>()[i] : A(0);
    op.dinitial_var.as<A>()[i] = op.dvar.defined() ? op.dvar.as<const A>()[i] : A(0);
  }
}

template <int kVectors, class T>
inline void timestep_norm_backward_as(const TimestepNormBackward& op, const SequenceSpan& sequences,
                                      int threads) {
  using A = Acc<T>;
  const Groups groups{op.num_groups, op.x.size(2) / op.num_groups};
  const TokenBlocks blocks(op, sequences, timestep_bytes_per_token<T>(groups), threads);
  const bool kept = op.kept.mean.defined();
  const std::int64_t found_again = kept ? 0 : op.x.size(0) * op.x.size(1) * groups.count;
  const Scratch<double> means(found_again);
  const Scratch<A> scales(found_again);
  const TokenStatistics<A> all =
      kept ? kept_statistics<A>(op.kept) : TokenStatistics<A>(means.data(), scales.data());
  const auto statistics_of = [&](std::int64_t, const TokenBlock& block) {
    return all.from(block.index * groups.count);
  };
  if (!kept) {
    const auto no_use = [](std::int64_t, std::int64_t, const TokenStatistics<A>&, const StatisticsSpace<T>&) {
    };
    for_statistics<kVectors, T>(op, sequences, groups, blocks, statistics_of, no_use);
  }
  const NormParameters<A> parameters(op, groups);
  const Workspaces<TimestepBackwardSpace<T>, A> spaces(blocks.parts(), groups, blocks.most_tokens());
  const std::int64_t pitch = row_pitch<A>(groups.width());
  const ColumnSums<A> weight_sums(blocks.parts(), pitch), bias_sums(blocks.parts(), pitch);
  const GroupPairs later(blocks.count(), groups.count);
  const auto after = [&](std::int64_t i) { return LaterSums{later[i].mean, later[i].squares}; };
  const Relay relay(blocks.count());
  const bool past_cache = goes_past_cache(op.dx, groups);
  parallel_in_order(blocks.count(), blocks.parts(), [&](std::int64_t part, std::int64_t step) {
    const std::int64_t i = blocks.count() - 1 - step;
    const TokenBlock& block = blocks[i];
    const Sequence& sequence = sequences.data[block.sequence];
    TimestepBackwardSpace<T> space = spaces.at(part, groups, blocks.most_tokens());
    space.x.read(op.x, sequence, block.first, block.tokens, groups, 2);
    space.dy.read(op.dy, sequence, block.first, block.tokens, groups, 2);
    const double count = count_before(op, block);
    const TokenStatistics<A> statistics = statistics_of(part, block);
    space.normalizers.read(statistics, block.tokens * groups.count);
    const double* last_mean = statistics.mean + (block.tokens - 1) * groups.count;
    const TimestepBlockGradient<kVectors, T> gradient{op,    groups,     block,     sequence,
                                                      count, statistics, last_mean, space};
    gradient.sum_gradients(parameters.weight, weight_sums.block(part), bias_sums.block(part));
    gradient.sum_later();
    if (block.last) {
      gradient.start_later(after(i));
    } else {
      relay.wait_for(i);
    }
    if (block.first == 0) {
      gradient.write_initial_gradients(after(i));
    } else {
      gradient.add_later(after(i), after(i - 1));
      relay.hand_over(i - 1);
    }
    with_output(past_cache,
                [&](auto output) { gradient.write_gradients(output, parameters.weight, after(i)); });
    weight_sums.rows_added(part, block.tokens);
    bias_sums.rows_added(part, block.tokens);
  });
  if (op.dweight.defined()) {
    weight_sums.finish(0, blocks.parts(), groups.width(), op.dweight.as<A>());
    bias_sums.finish(0, blocks.parts(), groups.width(), op.dbias.as<A>());
  }
  for (std::int64_t s = 0; s < sequences.count; ++s) {
    if (sequences.data[s].length == 0) keep_state_gradients<A>(op, s);
  }
  zero_padding(op.dx, sequences, threads);
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
