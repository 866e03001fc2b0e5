// Timestep normalization: group norm with cumulative statistics over time.
//
// A task owns a range of groups and walks its sequences tile by tile: a tile of x is read once, summed per
// token and group, the running statistics advance over its tokens in double, and the tile is normalized while
// it is in cache.
#pragma once

#include "cpu/kernels/timestep_norm_backward.h"
#include "cpu/kernels/timestep_statistics.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// What a task needs, rows ending in a spare vector.
template <class A>
struct TimestepForwardSpace {
  TimestepStatistics<A> statistics;
  InputRows<A> x;
  A *weight, *bias;
  A* row;  // of y, where it needs conversion

  TimestepForwardSpace(Arena<A>& arena, const TimestepNormPlan& plan)
      : statistics(arena, plan, plan.tile_tokens) {
    x.pitch = plan.pitch;
    x.buffer = arena.take(plan.tile_tokens * plan.pitch);
    for (A** array : {&weight, &bias, &row}) *array = arena.take(plan.pitch);
  }
};

template <class A>
inline void write_state(const TimestepNormForward& op, const Sequence& sequence, std::int64_t s,
                        const GroupRange& range, const TimestepStatistics<A>& statistics) {
  const std::int64_t first = s * op.num_groups + range.first;
  const bool given = op.initial_count.defined();
  A *mean = op.mean.as<A>() + first, *var = op.var.as<A>() + first;
  for (std::int64_t g = 0; g < range.count; ++g) {
    if (sequence.length > 0) {
      mean[g] = static_cast<A>(statistics.mean[g]);
      var[g] = static_cast<A>(statistics.squares[g] / statistics.count);
    } else {
      mean[g] = given ? op.initial_mean.as<const A>()[first + g] : A(0);
      var[g] = given ? op.initial_var.as<const A>()[first + g] : A(1);
    }
  }
}

template <int kVectors, class A>
inline void normalize_sequence(const TimestepNormForward& op, const Sequence& sequence,
                               const GroupRange& range, const TimestepNormPlan& plan,
                               TimestepForwardSpace<A>& space) {
  for (std::int64_t first = 0; first < sequence.length; first += plan.tile_tokens) {
    const std::int64_t next = first + plan.tile_tokens;
    const std::int64_t tokens = clamp(sequence.length - first, 0, plan.tile_tokens);
    space.x.read(op.x, sequence, first, tokens, next, range);
    advance<kVectors>(range, op.eps, space.x, tokens, 0, space.statistics);
    for (std::int64_t t = 0; t < tokens; ++t) {
      write_token(op.y, sequence, first + t, range, space.row, plan.pitch, [&](A* y) {
        for_groups<kVectors, A>(
            range, normalizer_of(space.statistics, range, t),
            [y, ahead = Ahead(op.y, sequence, next + t, range), x = space.x.row[t], weight = space.weight,
             bias = space.bias](std::int64_t c, const Normalizer<A>& normalize) {
              ahead.prefetch(c);
              store(y + c, normalize(load(x + c)) * load(weight + c) + load(bias + c));
            });
      });
    }
  }
}

template <int kVectors, class A>
inline void timestep_norm_forward_as(const TimestepNormForward& op, const SequenceSpan& sequences,
                                     int threads) {
  const TimestepNormPlan plan = timestep_norm_plan<A>(op, sequences, 1, threads);
  const Workspaces<TimestepForwardSpace<A>, A> spaces(plan.tasks(), plan);
  parallel_for(plan.tasks(), threads, [&](std::int64_t task) {
    const GroupRange range = plan.range(task);
    TimestepForwardSpace<A> space = spaces.at(task, plan);
    copy_parameter(op.weight, range, A(1), space.weight);
    copy_parameter(op.bias, range, A(0), space.bias);
    plan.for_sequences(task, sequences.count, [&](std::int64_t s) {
      space.statistics.start(op, s, range);
      normalize_sequence<kVectors>(op, sequences.data[s], range, plan, space);
      write_state(op, sequences.data[s], s, range, space.statistics);
    });
  });
  for (std::int64_t s = 0; s < sequences.count; ++s) {
    const std::int64_t before = op.initial_count.defined() ? op.initial_count.as<const std::int64_t>()[s] : 0;
    op.count.as<std::int64_t>()[s] = before + sequences.data[s].length;
  }
  zero_padding(op.y, sequences, threads);
}

inline void timestep_norm_forward(const TimestepNormForward& op, const SequenceSpan& sequences, int threads) {
  record_isa(kIsa);
  with_accumulator(op.x.dtype, [&](auto* tag) {
    using A = std::remove_pointer_t<decltype(tag)>;
    with_group_vectors<A>(op.x.size(2) / op.num_groups, [&](auto vectors) {
      timestep_norm_forward_as<decltype(vectors)::value, A>(op, sequences, threads);
    });
  });
}

inline void timestep_norm_backward(const TimestepNormBackward& op, const SequenceSpan& sequences,
                                   int threads) {
  record_isa(kIsa);
  with_accumulator(op.x.dtype, [&](auto* tag) {
    using A = std::remove_pointer_t<decltype(tag)>;
    with_group_vectors<A>(op.x.size(2) / op.num_groups, [&](auto vectors) {
      timestep_norm_backward_as<decltype(vectors)::value, A>(op, sequences, threads);
    });
  });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
