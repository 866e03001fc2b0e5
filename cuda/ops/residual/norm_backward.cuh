// The gradients of a norm, with g = dy weight and n the normalized row:
//
//   dx = scale (g - mean(g) - n mean(g n))      mean(g) only if centred
//
// A team walks rows, always in the same columns, and adds up its terms of dweight and dbias.
#pragma once

#include "ops/residual/norm.cuh"

namespace megalodon::cuda {

// f(n, c, x, dy) for the thread's columns of a row.
template <int kPacks, int V, class T, class A, class F>
MEGALODON_DEVICE void for_gradients(const NormArgs<T>& op, const Team& team, const Row<kPacks, V, A>& row,
                                    const F& f) {
  for_values(op, team, row, [&](int n, std::int64_t c, const A(&x)[V]) {
    if constexpr (kPacks > 0) {
      f(n, c, x, row.dy[n]);
    } else {
      A dy[V];
      load<V>(op.dy, row.begin + c, dy);
      f(n, c, x, dy);
    }
  });
}

// The means of g and of g n.
template <class A>
struct Projection {
  A gradient, normalized;
};

template <int kPacks, int V, class T, class A = Acc<T>>
MEGALODON_DEVICE Projection<A> project(const NormArgs<T>& op, const Team& team, const Row<kPacks, V, A>& row,
                                       const RowStatistics<A>& statistics, const Shared<A>& scratch) {
  A sums[2] = {};
  for_gradients(op, team, row, [&](int, std::int64_t c, const A(&x)[V], const A(&dy)[V]) {
    A weight[V];
    load_parameter<V>(op.weight, c, A(1), weight);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A g = rounded_product(dy[e], weight[e]);
      sums[0] += g;
      sums[1] += g * normalized(statistics, x[e]);
    }
  });
  team_sums(team, scratch, sums);
  const A inverse = A(1) / static_cast<A>(op.dim);
  return {op.center ? sums[0] * inverse : A(0), sums[1] * inverse};
}

// What a thread has summed up of dweight and dbias: in registers, or in the team's row of the workspace.
template <int kPacks, int V, class A>
struct ColumnTerms {
  A dweight[kPacks > 0 ? kPacks : 1][V], dbias[kPacks > 0 ? kPacks : 1][V];
};

template <int V, class A>
MEGALODON_DEVICE void add_columns_to(const Global<A>& sums, std::int64_t i, const A (&terms)[V]) {
  if (!sums) return;
#pragma unroll
  for (int e = 0; e < V; ++e) sums[i + e] += terms[e];
}

// Where the team's sums begin.
template <class T>
MEGALODON_DEVICE std::int64_t part_of(const NormArgs<T>& op, const Team& team) {
  return (block_x() * team.count + team.index) * op.dim;
}

// dx of a row. g is rounded once: its mean must cancel it where D is 1.
template <int kPacks, int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void write_row(const NormArgs<T>& op, const Team& team, const Row<kPacks, V, A>& row,
                                const Shared<A>& scratch, ColumnTerms<kPacks, V, A>& terms) {
  const RowStatistics<A> statistics = measure_row(op, team, row, scratch);
  const Projection<A> means = project(op, team, row, statistics, scratch);
  for_gradients(op, team, row, [&](int n, std::int64_t c, const A(&x)[V], const A(&dy)[V]) {
    A weight[V], dx[V];
    load_parameter<V>(op.weight, c, A(1), weight);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A value = normalized(statistics, x[e]), g = rounded_product(dy[e], weight[e]);
      dx[e] = (g - (value * means.normalized + means.gradient)) * statistics.scale;
      terms.dweight[n][e] = (kPacks > 0 ? terms.dweight[n][e] : A(0)) + dy[e] * value;
      terms.dbias[n][e] = (kPacks > 0 ? terms.dbias[n][e] : A(0)) + dy[e];
    }
    store<V>(op.out, row.begin + c, dx);
    if constexpr (kPacks == 0) {
      add_columns_to(op.dweight, part_of(op, team) + c, terms.dweight[n]);
      add_columns_to(op.dbias, part_of(op, team) + c, terms.dbias[n]);
    }
  });
}

template <int kPacks, int V, class T>
MEGALODON_KERNEL MEGALODON_RESIDENT(kMostRowWarps* kWarp, 1) void norm_backward_kernel(NormArgs<T> op) {
  using A = Acc<T>;
  SharedMemory memory;
  const Shared<A> scratch = memory.take<A>(kMostRowWarps * 2);
  const Team team = team_of(op);
  ColumnTerms<kPacks, V, A> terms{};
  const auto write_sums = [&](int n, std::int64_t c) {
    if (op.dweight) store<V>(op.dweight, part_of(op, team) + c, terms.dweight[n]);
    if (op.dbias) store<V>(op.dbias, part_of(op, team) + c, terms.dbias[n]);
  };
  if constexpr (kPacks == 0) for_columns<kPacks, V>(team, op.dim, write_sums);
  for (std::int64_t first = block_x() * team.count; first < op.rows; first += blocks_x() * team.count) {
    const auto row = read_row<kPacks, V, true>(op, team, first + team.index);
    write_row(op, team, row, scratch, terms);
  }
  if constexpr (kPacks > 0) for_columns<kPacks, V>(team, op.dim, write_sums);
}

}  // namespace megalodon::cuda
