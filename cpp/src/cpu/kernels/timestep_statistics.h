// The running statistics of timestep normalization.
//
// A block's own mean and variance need nothing from before it; joined in order they give the statistics
// before each block, from where the statistics of its tokens follow.
#pragma once

#include "cpu/kernels/arena.h"
#include "cpu/kernels/timestep_blocks.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Mean and count * var of every group.
struct Moments {
  double *mean, *squares;
};

// Pairs of doubles per group: one pair for each block, and one more.
class GroupPairs {
 public:
  GroupPairs(std::int64_t blocks, std::int64_t groups)
      : groups_(groups), values_((blocks + 1) * 2 * groups) {}

  Moments operator[](std::int64_t block) const {
    double* first = values_.data() + block * 2 * groups_;
    return {first, first + groups_};
  }

 private:
  std::int64_t groups_;
  Scratch<double> values_;
};

inline double count_before(const TimestepNorm& op, const TokenBlock& block) {
  const bool given = op.initial_count.defined();
  return static_cast<double>(block.first +
                             (given ? op.initial_count.as<const std::int64_t>()[block.sequence] : 0));
}

// The statistics before a sequence.
template <class A>
inline void start(const TimestepNorm& op, std::int64_t sequence, const Moments& moments) {
  const bool given = op.initial_count.defined();
  const std::int64_t first = sequence * op.num_groups;
  const double count = given ? static_cast<double>(op.initial_count.as<const std::int64_t>()[sequence]) : 0;
  for (std::int64_t g = 0; g < op.num_groups; ++g) {
    moments.mean[g] = given ? op.initial_mean.as<const A>()[first + g] : 0;
    moments.squares[g] = given ? count * op.initial_var.as<const A>()[first + g] : 0;
  }
}

template <class A>
inline double* take_doubles(Arena<A>& arena, std::int64_t count) {
  return reinterpret_cast<double*>(arena.take(count * static_cast<std::int64_t>(sizeof(double) / sizeof(A))));
}

// What normalizes tokens, (tokens, groups): their running mean, and 1 / sqrt(var + eps).
template <class A>
struct TokenStatistics {
  double* mean;
  A* scale;

  TokenStatistics(double* mean, A* scale) : mean(mean), scale(scale) {}
  TokenStatistics(Arena<A>& arena, std::int64_t count)
      : mean(take_doubles(arena, count)), scale(arena.take(count)) {}

  TokenStatistics from(std::int64_t i) const { return {mean + i, scale + i}; }
};

template <class A>
inline TokenStatistics<A> kept_statistics(const KeptStatistics& kept) {
  return {kept.mean.as<double>(), kept.scale.as<A>()};
}

// Those of a block for arithmetic in A, followed by spare lanes. The normalized x of a token is
// (x - center) * scale + shift: center is its running mean rounded to A, shift makes up for the rounding.
template <class A>
struct BlockNormalizers {
  A *center, *scale, *shift;  // (tokens, groups)

  BlockNormalizers(Arena<A>& arena, std::int64_t count) {
    for (A** array : {&center, &scale, &shift}) *array = arena.take(count + kLanes<A>);
  }

  void read(const TokenStatistics<A>& statistics, std::int64_t count) const {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) {
      center[i] = static_cast<A>(statistics.mean[i]);
      scale[i] = statistics.scale[i];
      shift[i] = static_cast<A>(static_cast<double>(center[i]) - statistics.mean[i]) * scale[i];
    }
  }
};

// What is measured of a block's tokens.
template <class A>
struct BlockStatistics {
  A* pivot;                   // (groups): what is taken from x before it is summed
  A *first_sum, *second_sum;  // (tokens, groups)
  Moments own, running;       // of the block alone; of all tokens so far

  BlockStatistics(Arena<A>& arena, std::int64_t groups, std::int64_t tokens) {
    const std::int64_t spare = kLanes<A>;
    pivot = arena.take(groups + spare);
    for (A** array : {&first_sum, &second_sum}) *array = arena.take(tokens * groups + spare);
    for (double** array : {&own.mean, &own.squares, &running.mean, &running.squares}) {
      *array = take_doubles(arena, groups);
    }
  }
};

// About the bytes of a block for each of its tokens: two rows, and the statistics.
template <class T>
inline std::int64_t timestep_bytes_per_token(const Groups& groups) {
  constexpr auto row_item = static_cast<std::int64_t>(sizeof(T));
  constexpr auto statistics = static_cast<std::int64_t>(sizeof(double) + 5 * sizeof(Acc<T>));
  return 2 * groups.width() * row_item + groups.count * statistics;
}

// Sums of x lose digits only where the mean is large beside the deviation. Elsewhere x itself is summed: the
// roundings of x - pivot are all alike where x has few bits, and would not average out.
template <class A>
inline A choose_pivot(A mean, A var) {
  return mean * mean > 4 * var ? mean : A(0);
}

// The first `tokens` rows of x, summed around the pivot.
template <int kVectors, class T, class A = Acc<T>>
inline void sum_around_pivot(const Groups& groups, const InputRows<T>& x, std::int64_t tokens,
                             const BlockStatistics<A>& statistics) {
  GroupSums<kVectors, A> sums(groups, statistics.first_sum, statistics.second_sum);
  for (std::int64_t t = 0; t < tokens; ++t) {
    sums.add_token([pivot = statistics.pivot](auto of) { return of(pivot); },
                   [row = x.row[t], next = x.ahead(t)](std::int64_t c, Vec<A> pivot, auto keep, Vec<A>& sum,
                                                       Vec<A>& square) {
                     prefetch(next + c);
                     const Vec<A> around = keep(load(row + c) - pivot);
                     sum += around;
                     square += around * around;
                   });
  }
  sums.finish();
}

// Leaves each token's mean around the pivot in first_sum and its variance in second_sum.
//
// A token's variance is its mean square around the pivot less the square of its mean around the pivot. What
// that loses where the token's mean is far from the pivot is small beside the running variance, because the
// pivot is the mean of a token that this holds too: count times it is at least half their distance squared.
template <int kVectors, class T, class A = Acc<T>>
inline void measure_tokens(const Groups& groups, const InputRows<T>& x, std::int64_t tokens,
                           const BlockStatistics<A>& statistics) {
  const A inverse_size = static_cast<A>(1.0 / static_cast<double>(groups.size));
  A *pivot = statistics.pivot, *first = statistics.first_sum, *second = statistics.second_sum;
  for (std::int64_t g = 0; g < groups.count; ++g) pivot[g] = 0;
  if constexpr (kVectors != kOneChannel) {
    sum_around_pivot<kVectors>(groups, x, 1, statistics);
    for (std::int64_t g = 0; g < groups.count; ++g) {
      const A mean = first[g] * inverse_size;
      pivot[g] = choose_pivot<A>(mean, second[g] * inverse_size - mean * mean);
    }
  }
  sum_around_pivot<kVectors>(groups, x, tokens, statistics);
#pragma omp simd
  for (std::int64_t i = 0; i < tokens * groups.count; ++i) {
    const A around = first[i] * inverse_size;
    first[i] = around;
    second[i] = kVectors == kOneChannel ? A(0) : second[i] * inverse_size - around * around;
  }
}

// The block's own statistics from those of its tokens.
template <class A>
inline void join_tokens(std::int64_t groups, std::int64_t tokens, const BlockStatistics<A>& statistics) {
  const double inverse = 1 / static_cast<double>(tokens);
  double *mean = statistics.own.mean, *squares = statistics.own.squares;
  const A* pivot = statistics.pivot;
  for (std::int64_t g = 0; g < groups; ++g) mean[g] = squares[g] = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const A* around = statistics.first_sum + t * groups;
#pragma omp simd
    for (std::int64_t g = 0; g < groups; ++g) mean[g] += static_cast<double>(around[g]);
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    const A *around = statistics.first_sum + t * groups, *variance = statistics.second_sum + t * groups;
#pragma omp simd
    for (std::int64_t g = 0; g < groups; ++g) {
      const double d = static_cast<double>(around[g]) - mean[g] * inverse;
      squares[g] += static_cast<double>(variance[g]) + d * d;
    }
  }
  for (std::int64_t g = 0; g < groups; ++g) {
    mean[g] = static_cast<double>(pivot[g]) + mean[g] * inverse;
  }
}

// The statistics after `added` more tokens whose own statistics are given.
inline void join_moments(std::int64_t groups, double count, const Moments& before, double added,
                         const Moments& own, const Moments& after) {
  const double share = added / (count + added);
#pragma omp simd
  for (std::int64_t g = 0; g < groups; ++g) {
    const double d = own.mean[g] - before.mean[g];
    after.squares[g] = before.squares[g] + (own.squares[g] + d * d * count * share);
    after.mean[g] = before.mean[g] + d * share;
  }
}

// From the statistics before a block to those of each of its tokens in `found`, and those after it in
// `running`.
template <class A>
inline void advance(std::int64_t groups, double eps, std::int64_t tokens, double count, const Moments& before,
                    const BlockStatistics<A>& statistics, const TokenStatistics<A>& found) {
  double *mean = statistics.running.mean, *squares = statistics.running.squares;
  const A* pivot = statistics.pivot;
  for (std::int64_t g = 0; g < groups; ++g) {
    mean[g] = before.mean[g];
    squares[g] = before.squares[g];
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double k = 1 / (count + static_cast<double>(t + 1));
    const A *around = statistics.first_sum + t * groups, *variance = statistics.second_sum + t * groups;
    double* token_mean = found.mean + t * groups;
    A* token_variance = found.scale + t * groups;
#pragma omp simd
    for (std::int64_t g = 0; g < groups; ++g) {
      const double d = static_cast<double>(pivot[g]) + static_cast<double>(around[g]) - mean[g];
      mean[g] += d * k;
      squares[g] += static_cast<double>(variance[g]) + d * d * (1 - k);
      token_mean[g] = mean[g];
      token_variance[g] = static_cast<A>(squares[g] * k + eps);
    }
  }
#pragma omp simd
  for (std::int64_t i = 0; i < tokens * groups; ++i) found.scale[i] = A(1) / square_root(found.scale[i]);
}

// The normalized x of one token.
template <class A>
struct Normalizer {
  Vec<A> center, scale, shift;

  Vec<A> operator()(Vec<A> x) const { return (x - center) * scale + shift; }
};

// For the block's token t, as for_groups prepares it.
template <class A>
inline auto normalizer_of(const BlockNormalizers<A>& normalizers, std::int64_t groups, std::int64_t t) {
  const A* center = normalizers.center + t * groups;
  const A* scale = normalizers.scale + t * groups;
  const A* shift = normalizers.shift + t * groups;
  return [=](auto of) { return Normalizer<A>{of(center), of(scale), of(shift)}; };
}

// What a thread needs to measure tokens, rows ending in a spare vector.
template <class T, class A = Acc<T>>
struct StatisticsSpace {
  BlockStatistics<A> statistics;
  InputRows<T> x;

  StatisticsSpace(Arena<A>& arena, const Groups& groups, std::int64_t tokens)
      : statistics(arena, groups.count, tokens), x(RowSpace<T>(arena, groups).input(tokens)) {}
};

// Finds the statistics of all tokens: threads take the blocks in turn, and a block ends what it has measured
// as soon as the statistics before it have come from the block before. found(part, block) says where its
// tokens' go, and use(part, i, found, space) of block i follows while its rows are in cache.
template <int kVectors, class T, class Found, class Use, class A = Acc<T>>
inline void for_statistics(const TimestepNorm& op, const SequenceSpan& sequences, const Groups& groups,
                           const TokenBlocks& blocks, const Found& found, const Use& use) {
  const Workspaces<StatisticsSpace<T>, A> spaces(blocks.parts(), groups, blocks.most_tokens());
  const GroupPairs before(blocks.count(), groups.count);
  const Relay relay(blocks.count());
  parallel_in_order(blocks.count(), blocks.parts(), [&](std::int64_t part, std::int64_t i) {
    const TokenBlock& block = blocks[i];
    StatisticsSpace<T> space = spaces.at(part, groups, blocks.most_tokens());
    const BlockStatistics<A>& statistics = space.statistics;
    const double count = count_before(op, block), added = static_cast<double>(block.tokens);
    space.x.read(op.x, sequences.data[block.sequence], block.first, block.tokens, groups, 1);
    measure_tokens<kVectors>(groups, space.x, block.tokens, statistics);
    if (!block.last) join_tokens(groups.count, block.tokens, statistics);
    if (block.first == 0) {
      start<A>(op, block.sequence, before[i]);
    } else {
      relay.wait_for(i);
    }
    if (!block.last) {
      join_moments(groups.count, count, before[i], added, statistics.own, before[i + 1]);
      relay.hand_over(i + 1);
    }
    const TokenStatistics<A> tokens = found(part, block);
    advance(groups.count, op.eps, block.tokens, count, before[i], statistics, tokens);
    use(part, i, tokens, space);
  });
}

// weight and bias, ones and zeros where they are not given, followed by spare lanes.
template <class A>
class NormParameters {
 public:
  NormParameters(const TimestepNorm& op, const Groups& groups)
      : values_(2 * row_pitch<A>(groups.width())),
        weight(values_.data()),
        bias(weight + row_pitch<A>(groups.width())) {
    for (std::int64_t c = 0; c < groups.width(); ++c) {
      weight[c] = op.weight.defined() ? op.weight.as<const A>()[c] : A(1);
      bias[c] = op.bias.defined() ? op.bias.as<const A>()[c] : A(0);
    }
  }

 private:
  Scratch<A> values_;

 public:
  A *const weight, *const bias;
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
