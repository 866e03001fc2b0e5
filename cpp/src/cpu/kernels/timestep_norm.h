// Timestep normalization: group norm with cumulative statistics over time.
//
// A block of x is read once, summed per token and group, and normalized while it is in cache.
#pragma once

#include "cpu/kernels/timestep_norm_backward.h"
#include "cpu/kernels/timestep_statistics.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// What a thread needs to normalize tokens once they are measured.
template <class T, class A = Acc<T>>
struct TimestepForwardSpace {
  TokenStatistics<A> statistics;
  BlockNormalizers<A> normalizers;
  T* y;  // a row

  TimestepForwardSpace(Arena<A>& arena, const Groups& groups, std::int64_t tokens)
      : statistics(arena, tokens * groups.count), normalizers(arena, tokens * groups.count) {
    y = RowSpace<T>(arena, groups).output();
  }
};

template <class A>
inline void write_state(const TimestepNormForward& op, std::int64_t sequence, double count,
                        const Moments& moments) {
  const std::int64_t first = sequence * op.num_groups;
  for (std::int64_t g = 0; g < op.num_groups; ++g) {
    op.mean.as<A>()[first + g] = static_cast<A>(moments.mean[g]);
    op.var.as<A>()[first + g] = static_cast<A>(moments.squares[g] / count);
  }
}

// The state of a sequence without tokens.
template <class A>
inline void keep_state(const TimestepNormForward& op, std::int64_t sequence) {
  const bool given = op.initial_count.defined();
  for (std::int64_t i = sequence * op.num_groups; i < (sequence + 1) * op.num_groups; ++i) {
    op.mean.as<A>()[i] = given ? op.initial_mean.as<const A>()[i] : A(0);
    op.var.as<A>()[i] = given ? op.initial_var.as<const A>()[i] : A(1);
  }
}

// The kept statistics behind those of a row with padding.
template <class A>
inline void zero_after(const TimestepNormForward& op, const Sequence& sequence) {
  const std::int64_t length = op.x.size(1), first = sequence.row * length + sequence.length;
  const TokenStatistics<A> rest = kept_statistics<A>(op.kept).from(first * op.num_groups);
  const auto count = static_cast<std::size_t>((length - sequence.length) * op.num_groups);
  std::memset(rest.mean, 0, count * sizeof(double));
  std::memset(rest.scale, 0, count * sizeof(A));
}

template <int kVectors, class T>
inline void timestep_norm_forward_as(const TimestepNormForward& op, const SequenceSpan& sequences,
                                     int threads) {
  using A = Acc<T>;
  const Groups groups{op.num_groups, op.x.size(2) / op.num_groups};
  const TokenBlocks blocks(op, sequences, timestep_bytes_per_token<T>(groups), threads);
  const NormParameters<A> parameters(op, groups);
  const Workspaces<TimestepForwardSpace<T>, A> spaces(blocks.parts(), groups, blocks.most_tokens());
  const bool past_cache = goes_past_cache(op.y, groups);
  const bool keep = op.kept.mean.defined();
  const auto statistics_of = [&](std::int64_t part, const TokenBlock& block) {
    return keep ? kept_statistics<A>(op.kept).from(block.index * groups.count)
                : spaces.at(part, groups, blocks.most_tokens()).statistics;
  };
  const auto write_block = [&](std::int64_t part, std::int64_t i, const TokenStatistics<A>& statistics,
                               const StatisticsSpace<T>& measured) {
    const TokenBlock& block = blocks[i];
    const Sequence& sequence = sequences.data[block.sequence];
    const TimestepForwardSpace<T> space = spaces.at(part, groups, blocks.most_tokens());
    space.normalizers.read(statistics, block.tokens * groups.count);
    if (block.last) {
      write_state<A>(op, block.sequence, count_before(op, block) + static_cast<double>(block.tokens),
                     measured.statistics.running);
    }
    with_output(past_cache, [&](auto output) {
      for (std::int64_t t = 0; t < block.tokens; ++t) {
        write_token(op.y, sequence, block.first + t, groups, space.y, [&](T* y) {
          for_groups<kVectors, A>(groups, normalizer_of(space.normalizers, groups.count, t),
                                  [=, x = measured.x.row[t], weight = parameters.weight,
                                   bias = parameters.bias, next = output_ahead<T>(op.y, sequence, block, t)](
                                      std::int64_t c, const Normalizer<A>& normalize) {
                                    output.prefetch_line(next + c);
                                    output.write(AllLanes<A>{}, y + c,
                                                 normalize(load(x + c)) * load(weight + c) + load(bias + c));
                                  });
        });
      }
    });
  };
  for_statistics<kVectors, T>(op, sequences, groups, blocks, statistics_of, write_block);
  for (std::int64_t s = 0; s < sequences.count; ++s) {
    const std::int64_t initial =
        op.initial_count.defined() ? op.initial_count.as<const std::int64_t>()[s] : 0;
    op.count.as<std::int64_t>()[s] = initial + sequences.data[s].length;
    if (sequences.data[s].length == 0) keep_state<A>(op, s);
    if (keep && sequences.padding != nullptr) zero_after<A>(op, sequences.data[s]);
  }
  zero_padding(op.y, sequences, threads);
}

// f(groups' vectors, null pointer of the storage type), as what is compiled for them takes them.
template <class F>
inline void with_timestep_types(const TimestepNorm& op, const F& f) {
  record_isa(kIsa);
  with_storage(op.x.dtype, [&](auto* tag) {
    with_group_vectors<Acc<std::remove_pointer_t<decltype(tag)>>>(op.x.size(2) / op.num_groups,
                                                                  [&](auto vectors) { f(vectors, tag); });
  });
}

inline void timestep_norm_forward(const TimestepNormForward& op, const SequenceSpan& sequences, int threads) {
  with_timestep_types(op, [&](auto vectors, auto* tag) {
    timestep_norm_forward_as<decltype(vectors)::value, std::remove_pointer_t<decltype(tag)>>(op, sequences,
                                                                                             threads);
  });
}

inline void timestep_norm_backward(const TimestepNormBackward& op, const SequenceSpan& sequences,
                                   int threads) {
  with_timestep_types(op, [&](auto vectors, auto* tag) {
    timestep_norm_backward_as<decltype(vectors)::value, std::remove_pointer_t<decltype(tag)>>(op, sequences,
                                                                                              threads);
  });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
